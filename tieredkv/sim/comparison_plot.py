"""Comparisons as a picture: hit rate over capacity for every policy, between LRU's floor and the bounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tieredkv.sim.comparison import BOUNDS, Comparison, Result
from tieredkv.sim.figure import Axes, new_figure, save_figure

_PANEL_INCHES: Final = (6.5, 5.0)
_COLUMNS_MAX: Final = 3


def plot_comparisons(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write a picture with a panel for each trace. Raises TieredKVError."""
    columns = min(len(comparisons), _COLUMNS_MAX)
    rows = -(-len(comparisons) // columns)
    figure, panels = new_figure(rows, columns, (columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]))
    for comparison, axes in zip(comparisons, panels, strict=False):
        _draw(axes, comparison)
    for axes in panels[len(comparisons) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _draw(axes: Axes, comparison: Comparison) -> None:
    by_policy: dict[str, list[Result]] = {}
    for result in comparison.results:
        by_policy.setdefault(result.policy, []).append(result)
    ordered = sorted(next(iter(by_policy.values())), key=lambda result: result.capacity_fraction)
    percent = [100 * result.capacity_fraction for result in ordered]
    axes.axhline(comparison.infinite_block_hit_rate, color="gray", linestyle=":", label="infinite cache")
    axes.plot(
        percent,
        [result.min_block_hit_rate for result in ordered],
        color="black",
        linestyle="--",
        marker=".",
        label="MIN (Belady)",
    )
    for policy, results in by_policy.items():
        if policy not in BOUNDS:
            points = sorted((100 * result.capacity_fraction, result.block_hit_rate) for result in results)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=policy)
    axes.set_xscale("log")
    axes.set_xticks(percent, [f"{each:.3g}" for each in percent])
    axes.minorticks_off()
    axes.set_xlabel(f"capacity, % of {comparison.unique_blocks:,} unique blocks of {comparison.block_tokens} tokens")
    axes.set_ylabel("block hit rate")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{comparison.trace}: {comparison.requests:,} requests, {comparison.block_refs:,} block references")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
