"""A trace as a picture of four panels."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tieredkv.sim.figure import Axes, new_figure, save_figure
from tieredkv.sim.stats import Study, reuse_times_s

_TIME_BINS: Final = 60
_SHORTEST_S: Final = 0.1
"""Times below this are drawn here: a logarithmic axis has no zero."""


def plot_stats(study: Study, path: Path) -> None:
    """Write the picture to `path`. Raises TieredKVError when matplotlib is missing or the file cannot be written."""
    figure, panels = new_figure(2, 2, (12.0, 8.0))
    _distances(panels[0], study)
    _times(panels[1], study)
    _turns(panels[2], study)
    _over_time(panels[3], study)
    stats = study.stats
    figure.suptitle(
        f"{stats.trace}: {stats.requests:,} requests in {stats.duration_s:,.0f} s, "
        f"{stats.block_refs:,} references to {stats.unique_blocks:,} blocks of {stats.block_tokens} tokens"
    )
    save_figure(figure, path)


def _distances(axes: Axes, study: Study) -> None:
    runs, stats = study.reuse.runs, study.stats
    axes.set_title("Reuse distance: what an LRU cache of a size would hit")
    axes.set_xlabel("distinct blocks since the last use = blocks of cache")
    axes.set_ylabel("share of block references")
    axes.set_ylim(0, 1)
    if len(runs.distance):
        sizes, shares = _cumulated(runs.distance + 1, runs.blocks, stats.block_refs)
        axes.semilogx(sizes, shares, drawstyle="steps-post", label="references within it")
    axes.axhline(stats.infinite_hit_rate, linestyle="--", color="gray", label="infinite cache")
    axes.legend(loc="upper left")


def _times(axes: Axes, study: Study) -> None:
    axes.set_title("Times between uses")
    axes.set_xlabel("seconds")
    axes.set_ylabel("share at or below")
    axes.set_ylim(0, 1)
    axes.set_xscale("log")
    runs = study.reuse.runs
    gaps_s = study.sessions.gaps_s(study.trace)
    if len(runs.blocks):
        axes.plot(
            *_cumulated(
                np.maximum(reuse_times_s(study.trace, study.reuse), _SHORTEST_S), runs.blocks, runs.blocks.sum()
            ),
            drawstyle="steps-post",
            label="reuse of a block",
        )
    if len(gaps_s):
        ones = np.ones(len(gaps_s), np.int64)
        label = "next turn of a session" if study.stats.sessions_named else "next turn of a session (inferred)"
        axes.plot(*_cumulated(np.maximum(gaps_s, _SHORTEST_S), ones, len(gaps_s)), drawstyle="steps-post", label=label)
    if axes.lines:
        axes.legend(loc="upper left")


def _turns(axes: Axes, study: Study) -> None:
    odds = study.stats.continues
    axes.set_title(
        f"How {study.stats.sessions:,} sessions go on" + ("" if study.stats.sessions_named else " (inferred)")
    )
    axes.set_xlabel("turn (0 = the first)")
    axes.set_ylabel("P(there is a next turn)")
    axes.set_ylim(0, 1)
    axes.bar(range(len(odds)), odds, label="P(next turn)")
    axes.set_xticks(range(max(len(odds), 1)))
    for turn, share in enumerate(odds):
        axes.annotate(f"{share:.2f}", (turn, share), ha="center", va="bottom", fontsize=8)


def _over_time(axes: Axes, study: Study) -> None:
    trace = study.trace
    axes.set_title("Blocks over time")
    axes.set_xlabel("seconds")
    axes.set_ylabel("block references a second")
    times_s = np.array([request.time_s for request in trace.requests])
    lengths = np.array([len(request.keys) for request in trace.requests])
    known = study.reuse.known
    edges = np.linspace(0.0, max(trace.requests[-1].time_s, 1e-3), _TIME_BINS + 1)
    width_s = edges[1]
    used, _ = np.histogram(times_s, edges, weights=known)
    new, _ = np.histogram(times_s, edges, weights=lengths - known)
    axes.stackplot(edges[:-1] + width_s / 2, used / width_s, new / width_s, labels=["seen before", "new"])
    axes.legend(loc="upper left")


def _cumulated(
    values: NDArray[Any], weights: NDArray[np.int64], total: float
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The distinct values, and the share of `total` at or below each."""
    order = np.argsort(values, kind="stable")
    distinct, first = np.unique(values[order], return_index=True)
    sums = np.add.reduceat(weights[order], first)
    return distinct, np.cumsum(sums) / total
