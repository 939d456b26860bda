"""What a trace is like: sizes, reuse, sessions, sharing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tieredkv.sim.reuse import Reuse, measure_reuse
from tieredkv.sim.session_structure import Sessions, find_sessions
from tieredkv.sim.traces import Trace

QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
TURNS_SHOWN: Final = 10
SESSIONS_MIN: Final = 20
"""Fewer sessions than this say nothing of a probability."""
TRUNKS_SHOWN: Final = 5
TRUNK_FANOUT_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of a quantity (QUANTILES, then the largest). All None when there is none of it."""

    p10: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p90: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Trunk:
    """A block with several children: that many continuations of `depth_blocks` equal blocks."""

    depth_blocks: int
    children: int
    uses: int


@dataclass(frozen=True, slots=True)
class TraceStats:
    """Figures of one trace. Blocks are full blocks; shares are of block references unless they say else.

    `continues[t]` is the part of the sessions with a turn t (0 = first) that have a further one, as far
    as the trace goes. `sessions_named`: the trace names its sessions; else they are inferred.
    """

    trace: str
    block_tokens: int
    requests: int
    duration_s: float
    requests_per_s: float | None
    input_tokens: int
    output_tokens: int
    block_refs: int
    unique_blocks: int
    infinite_hit_rate: float
    one_hit_share_of_blocks: float
    branched_share: float
    chain_blocks: Spread
    reuse_distance_blocks: Spread
    reuse_time_s: Spread
    sessions: int
    sessions_named: bool
    turns_per_session: Spread
    continues: list[float]
    think_time_s: Spread
    trunks: int
    largest_trunks: list[Trunk]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Study:
    """A trace with everything that was found in it; the picture needs more than the figures."""

    trace: Trace
    reuse: Reuse
    sessions: Sessions
    stats: TraceStats


def study(trace: Trace, *, on_progress: Callable[[int, int], None] | None = None) -> Study:
    """Take the figures of `trace`."""
    reuse = measure_reuse(trace, on_progress=on_progress)
    sessions = find_sessions(trace, reuse)
    return Study(trace, reuse, sessions, _stats(trace, reuse, sessions))


def reuse_times_s(trace: Trace, reuse: Reuse) -> NDArray[np.float64]:
    """Seconds since the last use, per run of `reuse`."""
    times_s = np.array([request.time_s for request in trace.requests])
    ages: NDArray[np.float64] = times_s[reuse.runs.request] - times_s[reuse.runs.last]
    return ages


def continues(turns: NDArray[np.int64]) -> list[float]:
    """P(a session has a further turn | it has turn t), t = 0, 1, ..., while enough sessions say so."""
    odds: list[float] = []
    for turn in range(TURNS_SHOWN):
        there = int(np.count_nonzero(turns > turn))
        if there < SESSIONS_MIN:
            break
        odds.append(float(np.count_nonzero(turns > turn + 1)) / there)
    return odds


def _stats(trace: Trace, reuse: Reuse, sessions: Sessions) -> TraceStats:
    duration_s = trace.requests[-1].time_s
    refs, unique = trace.block_refs, trace.unique_blocks
    lengths = np.array([len(request.keys) for request in trace.requests])
    depths, children = _tree(trace, reuse)
    trunks = np.flatnonzero(children >= TRUNK_FANOUT_MIN)
    largest = trunks[np.argsort(-children[trunks], kind="stable")][:TRUNKS_SHOWN]
    turns = sessions.turns
    return TraceStats(
        trace=trace.name,
        block_tokens=trace.block_tokens,
        requests=len(trace.requests),
        duration_s=duration_s,
        requests_per_s=len(trace.requests) / duration_s if duration_s else None,
        input_tokens=sum(request.tokens for request in trace.requests),
        output_tokens=sum(request.output_tokens for request in trace.requests),
        block_refs=refs,
        unique_blocks=unique,
        infinite_hit_rate=1 - unique / refs if refs else 0.0,
        one_hit_share_of_blocks=float(np.count_nonzero(reuse.uses == 1)) / unique if unique else 0.0,
        branched_share=float(reuse.uses[_above_branches(reuse, children)].sum()) / refs if refs else 0.0,
        chain_blocks=spread(lengths),
        reuse_distance_blocks=spread(reuse.runs.distance, reuse.runs.blocks),
        reuse_time_s=spread(reuse_times_s(trace, reuse), reuse.runs.blocks),
        sessions=len(turns),
        sessions_named=sessions.named,
        turns_per_session=spread(turns),
        continues=continues(turns),
        think_time_s=spread(sessions.gaps_s(trace)),
        trunks=len(trunks),
        largest_trunks=[Trunk(int(depths[at]) + 1, int(children[at]), int(reuse.uses[at])) for at in largest],
    )


def spread(values: NDArray[Any], weights: NDArray[np.int64] | None = None) -> Spread:
    """Quantiles of `values`, each counted `weights` times: the least value that enough are at or below."""
    if not len(values):
        return Spread(*(None,) * (len(QUANTILES) + 1))
    order = np.argsort(values, kind="stable")
    counts = np.ones(len(values), np.int64) if weights is None else weights[order]
    cumulated: NDArray[np.int64] = np.cumsum(counts)
    at = np.searchsorted(cumulated, np.array(QUANTILES) * int(cumulated[-1]))
    chosen: list[float] = [*values[order][at].tolist(), values.max().item()]
    return Spread(*(round(float(value), 6) for value in chosen))


def _tree(trace: Trace, reuse: Reuse) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position of each block in its chain, and how many blocks follow it directly."""
    parent = reuse.parent
    children = np.bincount(parent[parent >= 0], minlength=trace.unique_blocks)
    # Blocks are numbered by first sight, so new ones of one request are neighbours, and parents come first.
    apart = parent != np.arange(len(parent)) - 1
    apart[:1] = True
    starts = np.flatnonzero(apart).tolist()
    depths = np.zeros(trace.unique_blocks, np.int64)
    for start, end in pairwise([*starts, len(parent)]):
        first = int(depths[parent[start]]) + 1 if parent[start] >= 0 else 0
        depths[start:end] = np.arange(first, first + end - start)
    return depths, children


def _above_branches(reuse: Reuse, children: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which blocks are part of two different continuations: those at or above a block with two children."""
    above = children >= 2
    marked = np.flatnonzero(above).tolist()
    parent = reuse.parent
    for start in reversed(marked):
        at = int(parent[start])
        while at >= 0 and not above[at]:
            above[at] = True
            at = int(parent[at])
    return above
