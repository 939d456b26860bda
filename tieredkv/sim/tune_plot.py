"""The outcome of a search as four panels."""

from collections.abc import Callable
from typing import Final

from tieredkv.sim.figure import Axes, Figure, new_figure
from tieredkv.sim.tune_result import Figures, Point, Tuning, marginal, policy_words

_GIB: Final = 1 << 30
_TRAIN: Final = {"color": "tab:blue", "alpha": 0.4, "label": "the same, first part"}
_COLD: Final = {"color": "tab:purple", "label": "and cold"}
_CHOSEN: Final = {"color": "tab:green", "linestyle": ":", "linewidth": 2}


def draw_tuning(tuning: Tuning) -> Figure:
    """Hit rate, TTFT, gain of each size over memory, and the policies. Raises NoMatplotlib."""
    figure, panels = new_figure(2, 2, (13.0, 9.0))
    _hit_rates(panels[0], tuning)
    _ttft(panels[1], tuning)
    _gains(panels[2], tuning)
    _policies(panels[3], tuning)
    figure.suptitle(
        f"{tuning.trace}: the held-out {1 - tuning.split:.0%} of the time ({tuning.requests[1]:,} requests)"
    )
    return figure


def _hit_rates(axes: Axes, tuning: Tuning) -> None:
    axes.set_title("Hit rate over memory")
    axes.set_ylabel("share of full blocks")
    _curves(axes, tuning, lambda figures: figures.hit_rate)
    warm_gib = [_gib(point) for point in tuning.curve]
    axes.plot(warm_gib, tuning.min_hit_rates, color="gray", label="MIN of GPU and warm")
    axes.axhline(tuning.infinite_hit_rate[1], color="gray", linestyle="--", label="infinite")
    axes.set_ylim(0, None)
    _memory_axis(axes, tuning)


def _ttft(axes: Axes, tuning: Tuning) -> None:
    axes.set_title("Predicted TTFT over memory (no queueing)")
    axes.set_ylabel("mean, ms")
    _curves(axes, tuning, _ms)
    axes.plot([_gib(tuning.lru)], [_ms(tuning.lru.held_out)], "x", color="tab:red", label="lru, chosen size")
    axes.set_ylim(0, None)
    _memory_axis(axes, tuning)


def _curves(axes: Axes, tuning: Tuning, value: Callable[[Figures], float]) -> None:
    warm_gib = [_gib(point) for point in tuning.curve]
    axes.plot(warm_gib, [value(point.held_out) for point in tuning.curve], "o-", label="GPU and warm")
    axes.plot(warm_gib, [value(point.train) for point in tuning.curve], ".--", **_TRAIN)
    if tuning.cold is not None:
        cold = [tuning.cold.without, *tuning.cold.curve]
        axes.plot([_gib(point) for point in cold], [value(point.held_out) for point in cold], "s-", **_COLD)
    axes.axhline(value(tuning.without.held_out), color="tab:orange", linestyle="-.", label="GPU alone")


def _gains(axes: Axes, tuning: Tuning) -> None:
    axes.set_title("What each GiB more buys")
    axes.set_ylabel("ms of mean TTFT saved per GiB")
    _steps(axes, [tuning.without, *tuning.curve], "tab:blue", "warm")
    if tuning.cold is not None:
        _steps(axes, [tuning.cold.without, *tuning.cold.curve], "tab:purple", "cold")
    axes.axhline(0, color="black", linewidth=0.8)
    _memory_axis(axes, tuning)


def _steps(axes: Axes, points: list[Point], colour: str, label: str) -> None:
    """A bar from each size to the next, as high as what a GiB of it brings."""
    for number, (after, (gain_ms, _)) in enumerate(zip(points[1:], marginal(points), strict=True)):
        # The first size begins at nothing, which a logarithmic axis has no place for.
        start = _gib(points[number]) or _gib(after) / 2
        shown = label if number == 0 else None
        axes.plot([start, _gib(after)], [gain_ms] * 2, color=colour, linewidth=4, solid_capstyle="butt", label=shown)


def _policies(axes: Axes, tuning: Tuning) -> None:
    axes.set_title("Policies at the chosen size, first part")
    axes.set_xlabel("mean TTFT, ms (not from 0); green is chosen")
    ranked = sorted(tuning.candidates, key=lambda each: -each.mean_ttft_s)
    for row, each in enumerate(ranked):
        colour = "tab:green" if each.chosen else "tab:blue"
        axes.plot([each.mean_ttft_s * 1e3], [row], "o", color=colour)
        axes.annotate(policy_words(each.policy), (0.01, row + 0.15), xycoords=("axes fraction", "data"), fontsize=8)
        axes.axhline(row, color="lightgray", linewidth=0.8, zorder=0)
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(ranked))


def _memory_axis(axes: Axes, tuning: Tuning) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("warm memory, bytes" + (" (and cold behind the chosen warm)" if tuning.cold is not None else ""))
    axes.xaxis.set_major_formatter(_memory)
    axes.axvline(_gib(tuning.chosen), label="chosen", **_CHOSEN)
    if tuning.knee != tuning.chosen:
        axes.axvline(_gib(tuning.knee), label="knee", color="gray", linestyle=":")
    axes.legend(fontsize=8)


def _memory(gib: float, position: int | None) -> str:
    del position
    if gib >= 1024:
        return f"{gib / 1024:g}Ti"
    return f"{gib:g}Gi" if gib >= 1 else f"{gib * 1024:g}Mi"


def _gib(point: Point) -> float:
    return (point.warm_bytes + point.cold_bytes) / _GIB


def _ms(figures: Figures) -> float:
    return figures.mean_ttft_s * 1e3
