"""When a tier pays.

A tier pays when both hold: loading a token from it is sooner than computing the token, and it brings enough
hits for its size. Without prices enough means that the mean TTFT of the held-out part falls by a share that
can be felt; with prices it means that the GPU time it spares costs more than its memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tieredkv.config.units import approximate_size
from tieredkv.sim.hardware import Prices
from tieredkv.sim.latency import LatencyModel
from tieredkv.sim.tune_result import Figures, Point, Verdict

HOURS_PER_MONTH: Final = 730.0
_GIB: Final = 1 << 30
_HITS_LEFT_MIN: Final = 0.01


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tier is judged by. `gain_min`: the share of mean TTFT that it must save where there are no prices.
    `infinite_hit_rate`: of the part that chooses."""

    latency: LatencyModel
    prices: Prices | None
    gain_min: float
    infinite_hit_rate: float


def choose_size(without: Point, curve: Sequence[Point], prices: Prices | None, share: float) -> Point:
    """The size to take, judged on the part that chooses.

    Without prices the smallest that gains `share` of the mean TTFT that the best gains; with prices the one
    with the largest net saving (the smallest if none saves anything).
    """
    if prices is not None:
        return max(curve, key=lambda point: (net_per_month(without, point, prices, _train), -_size_bytes(point)))
    gains = [without.train.mean_ttft_s - point.train.mean_ttft_s for point in curve]
    best = max(gains)
    if best <= 0:
        return curve[0]
    return next(point for point, gain in zip(curve, gains, strict=True) if gain >= share * best)


def knee(without: Point, curve: Sequence[Point]) -> Point:
    """Where the curve bends most: the size whose share of the gain exceeds its share of the memory by most
    (Satopaa et al., Kneedle, 2011), on the part that chooses. Memory beyond it still pays, but less a GiB."""
    gains = [without.train.mean_ttft_s - point.train.mean_ttft_s for point in curve]
    best, most = max(*gains, 1e-9), _size_bytes(curve[-1]) - _size_bytes(without)
    bends = [
        gain / best - (_size_bytes(point) - _size_bytes(without)) / most
        for gain, point in zip(gains, curve, strict=True)
    ]
    return curve[bends.index(max(bends))]


def _bend(without: Point, chosen: Point, curve: Sequence[Point]) -> list[str]:
    bend = knee(without, curve)
    gain = without.held_out.mean_ttft_s - chosen.held_out.mean_ttft_s
    if _size_bytes(bend) >= _size_bytes(chosen) or gain <= 0:
        return []
    share = (without.held_out.mean_ttft_s - bend.held_out.mean_ttft_s) / gain
    size = approximate_size(_size_bytes(bend) - _size_bytes(without))
    return [f"The knee of the curve is at {size}, which brings {share:.0%} of that gain."]


def _budget_binds(chosen: Point, curve: Sequence[Point], terms: Terms) -> list[str]:
    """A sentence when the search ended at the budget with hits left to have, as far as it could see."""
    if chosen != curve[-1] or terms.infinite_hit_rate - chosen.train.hit_rate < _HITS_LEFT_MIN:
        return []
    return ["The gain still grows where the budget ends: a larger one may pay too."]


def net_per_month(without: Point, point: Point, prices: Prices, part: Callable[[Point], Figures]) -> float:
    """What `point` saves in GPU time against `without`, less what its additional memory costs."""
    saved = part(point).gpu_saved_s_per_s - part(without).gpu_saved_s_per_s
    warm_gib = (point.warm_bytes - without.warm_bytes) / _GIB
    cold_gib = (point.cold_bytes - without.cold_bytes) / _GIB
    gpu = saved * prices.gpu_hour * HOURS_PER_MONTH
    return gpu - warm_gib * prices.warm_gib_month - cold_gib * prices.cold_gib_month


def judge_warm(without: Point, chosen: Point, curve: Sequence[Point], terms: Terms) -> Verdict:
    """Does the warm tier pay on the held-out part?"""
    latency = terms.latency
    sooner = latency.warm_s < latency.prefill_s
    reasons = [_pace("warm", latency.warm_s, latency.prefill_s)]
    verdict = _judge(without, chosen, sooner, reasons, terms)
    if verdict.worth_it:
        verdict.reasons.extend([*_bend(without, chosen, curve), *_budget_binds(chosen, curve, terms)])
    return verdict


def judge_cold(
    without: Point, chosen: Point, curve: Sequence[Point], waited_s: tuple[float, float], terms: Terms
) -> Verdict:
    """Does a cold tier behind the chosen warm tier pay on the held-out part?

    `waited_s`: mean time to all KV on the GPU without and with it, in the replay with queues. A link that is
    busy can make requests wait longer than computing would take, whatever one load alone takes.
    """
    latency = terms.latency
    tokens = latency.cold_break_even_tokens()
    sooner = latency.cold_s < latency.prefill_s
    reasons = [_pace("cold", latency.cold_s, latency.prefill_s)]
    if sooner and tokens >= 1:
        reasons.append(f"A cold load begins to pay at {tokens:,.0f} tokens.")
    verdict = _judge(without, chosen, sooner, reasons, terms)
    before_s, after_s = waited_s
    verdict.reasons.append(
        f"With queues, at the GPU and on the links, the mean time to all KV on the GPU goes from "
        f"{before_s * 1e3:,.0f} to {after_s * 1e3:,.0f} ms."
    )
    if verdict.worth_it:
        verdict.reasons.extend([*_bend(without, chosen, curve), *_budget_binds(chosen, curve, terms)])
    return Verdict(verdict.worth_it and after_s < before_s, verdict.reasons)


def _judge(without: Point, chosen: Point, sooner: bool, reasons: list[str], terms: Terms) -> Verdict:
    before_s, after_s = without.held_out.mean_ttft_s, chosen.held_out.mean_ttft_s
    gain = (before_s - after_s) / before_s
    size = approximate_size(_size_bytes(chosen) - _size_bytes(without))
    more = chosen.held_out.hit_rate - without.held_out.hit_rate
    verb = "lowers" if gain >= 0 else "raises"
    reasons.append(
        f"On the held-out part {size} brings {more * 100:+.1f} points of hits and {verb} the mean TTFT by "
        f"{abs(gain):.1%}, from {before_s * 1e3:.0f} to {after_s * 1e3:.0f} ms."
    )
    if terms.prices is None:
        enough = gain >= terms.gain_min
        if not enough:
            reasons.append(f"That is less than the {terms.gain_min:.1%} asked for.")
    else:
        net = net_per_month(without, chosen, terms.prices, _held_out)
        enough = net > 0 and gain > 0
        saved = chosen.held_out.gpu_saved_s_per_s - without.held_out.gpu_saved_s_per_s
        reasons.append(
            f"It spares {saved * 3600:,.0f} s of GPU time an hour; with its memory paid that is {net:+,.2f} a month."
        )
    return Verdict(sooner and enough, reasons)


def _pace(tier: str, load_s: float, prefill_s: float) -> str:
    if load_s < prefill_s:
        return f"Loading a token from {tier} takes {load_s * 1e6:.1f} us, computing it {prefill_s * 1e6:.1f} us."
    return (
        f"Loading a token from {tier} takes {load_s * 1e6:.1f} us and computing it {prefill_s * 1e6:.1f} us: "
        "recomputing is sooner, whatever the hits."
    )


def _size_bytes(point: Point) -> int:
    return point.warm_bytes + point.cold_bytes


def _train(point: Point) -> Figures:
    return point.train


def _held_out(point: Point) -> Figures:
    return point.held_out
