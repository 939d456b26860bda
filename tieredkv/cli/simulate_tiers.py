"""`tieredkv simulate --tiers`: the same through hot, warm and cold, with loads that take time."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from tieredkv.config import PolicyConfig
    from tieredkv.sim.capacities import Capacity
    from tieredkv.sim.hardware import Hardware
    from tieredkv.sim.tiers import TierOutcome
    from tieredkv.sim.traces import Trace

_PREFETCH: Final = {"on": (True,), "off": (False,), "both": (True, False)}
_TIERS: Final = ("hot", "warm", "cold")


@dataclass(frozen=True, slots=True)
class TiersAsked:
    """What the options ask for: sizes of the three tiers, speeds, and the variants to compare."""

    capacities: "list[Capacity]"
    hardware: "Hardware"
    copies: tuple[str, ...]
    prefetch: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TierResult:
    """One replay. Rates are of all tiers and of each; times in seconds per request."""

    policy: str
    copies: str
    prefetch: bool
    block_hit_rate: float
    token_hit_rate: float
    hot_block_hit_rate: float
    warm_block_hit_rate: float
    cold_block_hit_rate: float
    hot_token_hit_rate: float
    warm_token_hit_rate: float
    cold_token_hit_rate: float
    mean_ready_s: float
    p99_ready_s: float
    mean_queue_s: float
    mean_cold_wait_s: float
    stored_bytes: int
    loaded_bytes: int
    demoted_bytes: int
    promoted_bytes: int
    dropped_chunks: int


@dataclass(frozen=True, slots=True)
class TierComparison:
    """What `--json` writes for a trace. Sizes of tiers in blocks; `servers` streams of prefill."""

    trace: str
    requests: int
    block_refs: int
    unique_blocks: int
    servers: int
    hot_blocks: int
    warm_blocks: int
    cold_blocks: int
    results: list[TierResult]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def tiers_asked(tiers: str, hardware: Path | None, copies: str, prefetch: str) -> TiersAsked:
    """The options, understood. Raises ConfigError."""
    from tieredkv.brain.cold import Copies
    from tieredkv.sim.capacities import parse_capacities
    from tieredkv.sim.hardware import read_hardware

    parts = tiers.split(",")
    if len(parts) != len(_TIERS):
        raise ConfigError(f"--tiers {tiers}: must be three sizes, of hot, warm and cold, such as 0.003,0.018,0.12")
    if hardware is None:
        raise ConfigError(
            "--tiers needs --hardware FILE, which says how fast they are; tieredkv tune --example-hardware prints one"
        )
    machine = read_hardware(hardware)
    if machine.cold_bytes_per_s is None:
        raise ConfigError(f"--tiers {tiers}: {hardware} has no section cold; say how fast it is")
    kinds = tuple(part.strip() for part in copies.split(","))
    known = tuple(kind.value for kind in Copies)
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"--copies {kind}: must be among {', '.join(known)}")
    if prefetch not in _PREFETCH:
        raise ConfigError(f"--prefetch {prefetch}: must be one of {', '.join(_PREFETCH)}")
    return TiersAsked([parse_capacities(part)[0] for part in parts], machine, kinds, _PREFETCH[prefetch])


def compare_tiers(trace: "Trace", policies: "list[PolicyConfig]", asked: TiersAsked) -> TierComparison:
    """Replay every policy in every variant."""
    from tieredkv.brain.cold import Copies
    from tieredkv.cli.progress import progress_bar
    from tieredkv.sim.tier_replay import replay_tiers
    from tieredkv.sim.tiers import Setting, Sizes, Speeds, servers_for

    machine = asked.hardware
    assert machine.cold_bytes_per_s is not None
    assert machine.cold_store_bytes_per_s is not None
    speeds = Speeds(
        chunk_bytes=trace.block_tokens * machine.kv_bytes_per_token,
        prefill_tokens_per_s=machine.prefill_tokens_per_s,
        load_bytes_per_s=machine.warm_bytes_per_s,
        promote_bytes_per_s=machine.cold_bytes_per_s,
        demote_bytes_per_s=machine.cold_store_bytes_per_s,
        cold_latency_s=machine.cold_latency_s,
    )
    sizes = Sizes(*(size.size(trace.unique_blocks, speeds.chunk_bytes, 1).blocks for size in asked.capacities))
    servers = servers_for(trace, sizes, speeds)
    variants = [(policy, kind, prefetch) for policy in policies for kind in asked.copies for prefetch in asked.prefetch]
    results: list[TierResult] = []
    with progress_bar(f"replay {trace.name}") as on_progress:
        total = len(variants) * len(trace.requests)
        for number, (policy, kind, prefetch) in enumerate(variants):

            def on_requests(done: int, before: int = number * len(trace.requests)) -> None:
                on_progress(before + done, total)

            setting = Setting(policy, sizes, servers, Copies(kind), prefetch)
            outcome = replay_tiers(trace, setting, speeds, on_progress=on_requests)
            results.append(_result(policy.name, kind, prefetch, outcome))
    return TierComparison(
        trace=trace.name,
        requests=len(trace.requests),
        block_refs=trace.block_refs,
        unique_blocks=trace.unique_blocks,
        servers=servers,
        hot_blocks=sizes.hot,
        warm_blocks=sizes.warm,
        cold_blocks=sizes.cold,
        results=results,
    )


def print_tiers(compared: TierComparison, console: "Console") -> None:
    """The results as a table for people."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(
        box=SIMPLE,
        title=f"{compared.trace}: hot {compared.hot_blocks:,}, warm {compared.warm_blocks:,}, "
        f"cold {compared.cold_blocks:,} blocks",
        caption="block hit rates; seconds from arrival to all KV on the GPU, queue included; ahead: prefetch at "
        "arrival; GB demoted to cold and promoted from it",
    )
    columns = ("policy", "copies", "ahead", "hot", "warm", "cold", "all", "ready", "p99", "GB down", "GB up")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in columns[:3] else "right", no_wrap=True)
    for row in compared.results:
        rates = (row.hot_block_hit_rate, row.warm_block_hit_rate, row.cold_block_hit_rate, row.block_hit_rate)
        table.add_row(
            row.policy,
            row.copies,
            "on" if row.prefetch else "off",
            *(f"{rate:.3f}" for rate in rates),
            f"{row.mean_ready_s:.3f}",
            f"{row.p99_ready_s:.2f}",
            f"{row.demoted_bytes / 1e9:,.0f}",
            f"{row.promoted_bytes / 1e9:,.0f}",
        )
    console.print(table)


def _result(policy: str, copies: str, prefetch: bool, outcome: "TierOutcome") -> TierResult:
    import numpy as np

    refs, tokens = max(1, outcome.block_refs), max(1, outcome.tokens)
    block_tokens, chunk_bytes = outcome.block_tokens, outcome.chunk_bytes
    return TierResult(
        policy=policy,
        copies=copies,
        prefetch=prefetch,
        block_hit_rate=outcome.block_hit_rate,
        token_hit_rate=outcome.token_hit_rate,
        hot_block_hit_rate=outcome.hot_hits / refs,
        warm_block_hit_rate=outcome.warm_hits / refs,
        cold_block_hit_rate=outcome.cold_hits / refs,
        hot_token_hit_rate=outcome.hot_hits * block_tokens / tokens,
        warm_token_hit_rate=outcome.warm_hits * block_tokens / tokens,
        cold_token_hit_rate=outcome.cold_hits * block_tokens / tokens,
        mean_ready_s=float(np.mean(outcome.ready_s)),
        p99_ready_s=float(np.quantile(outcome.ready_s, 0.99)),
        mean_queue_s=float(np.mean(outcome.queue_s)),
        mean_cold_wait_s=float(np.mean(outcome.cold_wait_s)),
        stored_bytes=outcome.stores * chunk_bytes,
        loaded_bytes=outcome.loads * chunk_bytes,
        demoted_bytes=outcome.demotions * chunk_bytes,
        promoted_bytes=outcome.promotions * chunk_bytes,
        dropped_chunks=outcome.dropped,
    )
