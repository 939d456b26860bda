"""Policies beside each other and beside the bounds, at several capacities, on one trace."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any, Final

from tieredkv.config import PolicyConfig
from tieredkv.sim.bounds import Future, Hits, foresee, infinite_hits, min_hits
from tieredkv.sim.capacities import Size
from tieredkv.sim.oracle_hints import Truth, oracle_hints
from tieredkv.sim.replay import ONE_ENGINE, Fleet, Outcome
from tieredkv.sim.replays import OnRefs, Replays
from tieredkv.sim.traces import Trace

MIN: Final = "min"
INFINITE: Final = "infinite"
BOUNDS: Final = (MIN, INFINITE)
_REFERENCE: Final = "lru"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare. `bounds` are those that get rows of their own; `hints` replace the trace's."""

    policies: Sequence[PolicyConfig]
    bounds: Sequence[str] = ()
    fleet: Fleet = ONE_ENGINE
    hints: Truth | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One policy at one capacity, with what no policy beats.

    Rates are of all blocks (tokens) asked for. `lru_to_min_gap_percent` is how much of the way from LRU to
    MIN it goes: None without LRU in the comparison, or where MIN is no better; `us_per_block_ref` is processor
    time. `stores`, `refusals` and
    `evictions` count chunks; bounds have none.
    """

    policy: str
    capacity_fraction: float
    capacity_blocks: int
    block_hit_rate: float
    token_hit_rate: float
    us_per_block_ref: float
    min_block_hit_rate: float
    infinite_block_hit_rate: float
    lru_to_min_gap_percent: float | None
    stores: int | None
    refusals: int | None
    evictions: int | None
    engines: int
    pool: str
    routing: str
    hints: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All results on one trace, policy by policy, bounds last."""

    trace: str
    requests: int
    block_refs: int
    unique_blocks: int
    block_tokens: int
    infinite_block_hit_rate: float
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(
    trace: Trace, plan: Plan, sizes: Sequence[Size], *, jobs: int = 1, on_refs: OnRefs | None = None
) -> Comparison:
    """Replay each policy at each of `sizes`, in up to `jobs` processes. Raises ConfigError.

    `on_refs` is told how many block refs are done, and how many there are in all.
    """
    hints = None if plan.hints is None else oracle_hints(trace, plan.hints, plan.seed)
    replays = Replays(trace, fleet=plan.fleet, seed=plan.seed, hints=hints)
    capacities = sorted({size.blocks for size in sizes})
    settings = [(policy, capacity) for policy in plan.policies for capacity in capacities]
    with replays.started(settings, jobs, on_refs) as outcomes:
        # The bounds are found while other processes replay.
        future = foresee(trace)
        tokens = sum(request.tokens for request in trace.requests)
        limits = {capacity: _min(future, capacity) for capacity in capacities}
        infinite = int(infinite_hits(future).sum())
        replayed = dict(zip(((policy.name, capacity) for policy, capacity in settings), outcomes(), strict=True))
    lru = {capacity: outcome.block_hits for (name, capacity), outcome in replayed.items() if name == _REFERENCE}

    def row(policy: str, size: Size, block_hits: int, us_per_block_ref: float, outcome: Outcome | None) -> Result:
        capacity = size.blocks
        best = int(limits[capacity][0].sum())
        gap = best - lru.get(capacity, best)
        return Result(
            policy=policy,
            capacity_fraction=size.fraction,
            capacity_blocks=capacity,
            block_hit_rate=block_hits / max(1, trace.block_refs),
            token_hit_rate=block_hits * trace.block_tokens / max(1, tokens),
            us_per_block_ref=us_per_block_ref,
            min_block_hit_rate=best / max(1, trace.block_refs),
            infinite_block_hit_rate=infinite / max(1, trace.block_refs),
            lru_to_min_gap_percent=100 * (block_hits - lru[capacity]) / gap if gap else None,
            stores=None if outcome is None else outcome.stores,
            refusals=None if outcome is None else outcome.refusals,
            evictions=None if outcome is None else outcome.evictions,
            engines=plan.fleet.engines,
            pool="shared" if plan.fleet.shared else "private",
            routing=plan.fleet.routing.value,
            hints="trace" if plan.hints is None else plan.hints.value,
        )

    results: list[Result] = []
    for policy in plan.policies:
        for size in sizes:
            outcome = replayed[policy.name, size.blocks]
            results.append(row(policy.name, size, outcome.block_hits, outcome.us_per_block_ref, outcome))
    for bound in plan.bounds:
        for size in sizes:
            hits, cpu_s = limits[size.blocks]
            block_hits = int(hits.sum()) if bound == MIN else infinite
            results.append(row(bound, size, block_hits, cpu_s * 1e6 / max(1, trace.block_refs), None))
    return Comparison(
        trace=trace.name,
        requests=len(trace.requests),
        block_refs=trace.block_refs,
        unique_blocks=trace.unique_blocks,
        block_tokens=trace.block_tokens,
        infinite_block_hit_rate=infinite / max(1, trace.block_refs),
        results=results,
    )


def _min(future: Future, capacity_chunks: int) -> tuple[Hits, float]:
    """Hits of MIN, and the processor time that finding them took."""
    start_cpu_s = process_time()
    return min_hits(future, capacity_chunks), process_time() - start_cpu_s
