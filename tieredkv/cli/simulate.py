"""`tieredkv simulate`: what a policy, or so much memory, would have given on a trace."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from tieredkv.config import PolicyConfig
    from tieredkv.sim.capacities import Capacity, Size
    from tieredkv.sim.comparison import Plan
    from tieredkv.sim.traces import Trace

_TRIAL_CHUNKS: Final = 1024
"""Every policy is made once with this capacity: what cannot be imported is said before long work."""

Traces = Annotated[
    list[Path], typer.Argument(metavar="TRACE...", help="Traces in Mooncake's format (JSON lines, plain or gzip).")
]
Policies = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Policies to compare, with commas between; also min and infinite (the bounds), and "
        "package.module:name of your own.",
    ),
]
Capacities = Annotated[
    str,
    typer.Option(
        "--capacity",
        metavar="SIZES",
        help="Fractions of the trace's unique blocks (0.03), chunks (5000c) or bytes (64GiB), with commas between.",
    ),
]
ChunkBytes = Annotated[str | None, typer.Option(metavar="SIZE", help="Size of a chunk, for capacities in bytes: 2MiB.")]
BytesPerToken = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The same by its KV size per token: 128KiB for an 8B Llama.")
]
BlockTokens = Annotated[
    int | None,
    typer.Option(min=1, max=1 << 20, help="Tokens of a block, where the trace does not say and they are not 512."),
]
PartialBlocks = Annotated[
    bool, typer.Option("--partial-blocks", help="Count a prompt's last block even if it is not full; vLLM does not.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw hit rate over capacity, with the bounds.")]
Engines = Annotated[int, typer.Option(min=1, max=1024, help="Engines of the node.")]
Pool = Annotated[str, typer.Option(metavar="KIND", help="shared (one pool for all engines) or private (equal parts).")]
RoutingOption = Annotated[
    str,
    typer.Option(
        "--routing",
        metavar="KIND",
        help="How requests reach engines: session (a session stays), skewed (most begin at one engine) or random.",
    ),
]
HintsOption = Annotated[
    str | None,
    typer.Option(
        "--hints",
        metavar="TRUTH",
        help="Replace the trace's hints by ones made from its future: truthful, 80 (percent), useless or lying.",
    ),
]
Tiers = Annotated[
    str | None,
    typer.Option(
        metavar="HOT,WARM,COLD",
        help="Replay through three tiers of these sizes instead of one, at the speeds of --hardware.",
    ),
]
HardwareFile = Annotated[
    Path | None,
    typer.Option("--hardware", metavar="FILE", help="With --tiers: speeds and KV size, as tune reads them."),
]
CopiesOption = Annotated[
    str,
    typer.Option(
        "--copies",
        metavar="KINDS",
        help="With --tiers: what becomes of a cold copy while its chunk is in warm: clean (kept), spare (kept, "
        "first to leave), none (exclusive), all (inclusive); with commas between.",
    ),
]
Prefetch = Annotated[
    str, typer.Option(metavar="WHEN", help="With --tiers: promote at arrival (on), when scheduled (off), or both.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of routing and hints; equal seeds give equal results.")]
Jobs = Annotated[int | None, typer.Option(min=1, max=1024, help="Processes at a time. Default: one per core.")]


def simulate(
    traces: Traces,
    policies: Policies = "lru,gix,min",
    capacity: Capacities = "0.003,0.01,0.03,0.1,0.2,0.4",
    json: settings.JsonFile = None,
    plot: Plot = None,
    chunk_bytes: ChunkBytes = None,
    bytes_per_token: BytesPerToken = None,
    block_tokens: BlockTokens = None,
    partial_blocks: PartialBlocks = False,
    engines: Engines = 1,
    pool: Pool = "shared",
    routing: RoutingOption = "session",
    hints: HintsOption = None,
    tiers: Tiers = None,
    hardware: HardwareFile = None,
    copies: CopiesOption = "clean",
    prefetch: Prefetch = "on",
    seed: Seed = 1,
    jobs: Jobs = None,
    config: settings.ConfigFile = None,
    assignments: settings.Set = None,
) -> None:
    """Replay traces through the production brain, and compare policies with what none can beat."""
    from rich.console import Console

    from tieredkv.cli.progress import progress_bar
    from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
    from tieredkv.cli.simulate_tables import print_comparison
    from tieredkv.cli.simulate_tiers import TierComparison, compare_tiers, print_tiers, tiers_asked
    from tieredkv.sim.capacities import parse_capacities
    from tieredkv.sim.comparison import Comparison, Plan, compare
    from tieredkv.sim.comparison_plot import plot_comparisons
    from tieredkv.sim.figure import check_picture
    from tieredkv.sim.oracle_hints import Truth
    from tieredkv.sim.replay import Fleet
    from tieredkv.sim.replays import cores
    from tieredkv.sim.routing import Routing
    from tieredkv.sim.traces import read_trace

    check_destination(json)
    if plot is not None:
        check_picture(plot)
    replayed, bounds = _chosen(policies, config, assignments)
    if tiers is not None:
        if plot is not None or hints is not None or engines != 1:
            raise ConfigError("--tiers goes with one engine, without --plot and --hints")
        asked_tiers = tiers_asked(tiers, hardware, copies, prefetch)
        compared: list[TierComparison] = []
        for path in traces:
            with progress_bar(f"read {path.name}") as on_progress:
                trace = read_trace(
                    path, block_tokens=block_tokens, full_blocks=not partial_blocks, on_progress=on_progress
                )
            compared.append(compare_tiers(trace, replayed, asked_tiers))
            if json != STANDARD_OUTPUT:
                print_tiers(compared[-1], Console())
        if json is not None:
            write_json(json, [comparison.to_json() for comparison in compared])
        return
    plan = Plan(
        policies=replayed,
        bounds=bounds,
        fleet=Fleet(
            engines,
            _one_of("--pool", pool, ("shared", "private")) == "shared",
            Routing(_one_of("--routing", routing, tuple(Routing))),
        ),
        hints=None if hints is None else Truth(_one_of("--hints", hints, tuple(Truth))),
        seed=seed,
    )
    asked = _Sizes(
        parse_capacities(capacity), _size("--chunk-bytes", chunk_bytes), _size("--bytes-per-token", bytes_per_token)
    )
    found: list[Comparison] = []
    for path in traces:
        with progress_bar(f"read {path.name}") as on_progress:
            trace = read_trace(path, block_tokens=block_tokens, full_blocks=not partial_blocks, on_progress=on_progress)
        sizes = asked.of(trace, 1 if plan.fleet.shared else engines)
        with progress_bar(f"replay {path.name}") as on_progress:
            comparison = compare(trace, plan, sizes, jobs=jobs or cores(), on_refs=on_progress)
        found.append(comparison)
        if json != STANDARD_OUTPUT:
            print_comparison(comparison, Console())
    if plot is not None:
        plot_comparisons(found, plot)
    if json is not None:
        recipe = _recipe(plan, full_blocks=not partial_blocks)
        write_json(json, [comparison.to_json() | {"recipe": recipe} for comparison in found])


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Capacities as they were asked for."""

    capacities: "list[Capacity]"
    chunk_bytes: int | None
    bytes_per_token: int | None

    def of(self, trace: "Trace", pools: int) -> "list[Size]":
        """The sizes of one trace, each once, rising."""
        chunk_bytes = self.chunk_bytes
        if chunk_bytes is None and self.bytes_per_token is not None:
            chunk_bytes = self.bytes_per_token * trace.block_tokens
        return sorted({capacity.size(trace.unique_blocks, chunk_bytes, pools) for capacity in self.capacities})


def _chosen(
    names: str, config_file: Path | None, assignments: list[str] | None
) -> "tuple[list[PolicyConfig], list[str]]":
    """What to replay and which bounds to list. Raises ConfigError for what is no policy."""
    from tieredkv.config.source import suggestion
    from tieredkv.policy import POLICIES, make_policy
    from tieredkv.sim.comparison import BOUNDS

    given = settings.flags(assignments=assignments)
    for key in given:
        if not key.startswith("policy."):
            raise ConfigError(f"--set {key}: not used here; parameters of policies are policy.NAME")
    common = settings.load(config_file, given).config.policy
    chosen: list[PolicyConfig] = []
    bounds: list[str] = []
    known = (*sorted(POLICIES), *BOUNDS)
    for name in dict.fromkeys(part.strip() for part in names.split(",")):
        if name in BOUNDS:
            bounds.append(name)
        elif name in POLICIES or ":" in name:
            policy = common.model_copy(update={"name": name})
            make_policy(policy, _TRIAL_CHUNKS)
            chosen.append(policy)
        else:
            raise ConfigError(
                f"--policies {name}: no such policy{suggestion(name, known)}; there are {', '.join(known)}, and "
                "package.module:name of your own"
            )
    return chosen, bounds


def _one_of(option: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ConfigError(f"{option} {text}: must be one of {', '.join(choices)}")
    return text


def _size(option: str, text: str | None) -> int | None:
    from tieredkv.config.units import SIZE_HINT, parse_size

    if text is None:
        return None
    try:
        size_bytes = parse_size(int(text) if text.isdigit() else text)
    except ValueError as error:
        raise ConfigError(f"{option} {text}: {error}") from None
    if size_bytes < 1:
        raise ConfigError(f"{option} {text}: must be at least one byte; {SIZE_HINT}")
    return size_bytes


def _recipe(plan: "Plan", *, full_blocks: bool) -> dict[str, object]:
    """What another person needs to get the same figures."""
    from tieredkv.bench.machine import describe_machine

    return {
        **describe_machine(),
        "seed": plan.seed,
        "full_blocks": full_blocks,
        "config": [policy.model_dump(mode="json", by_alias=True) for policy in plan.policies],
    }
