"""Which memory is worth it, and how to use it: a search by replay on the first part of a trace.

Everything is chosen on the first part of the time and reported on the rest, which no choice has seen. A
replay runs through both, so that the held-out part starts with the caches as the first left them. The warm
tier is the production brain at each size, in virtual time without waiting. A cold tier behind it is
replayed through all three tiers, with links that have a speed and a queue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from tieredkv.config import PolicyConfig
from tieredkv.config.units import approximate_size
from tieredkv.errors import ConfigError
from tieredkv.sim.bounds import foresee, infinite_hits, min_hits
from tieredkv.sim.hardware import Hardware
from tieredkv.sim.latency import LatencyModel, Served
from tieredkv.sim.replays import Replays
from tieredkv.sim.tiers import Sizes
from tieredkv.sim.traces import Trace
from tieredkv.sim.tune_cold import replay_cold
from tieredkv.sim.tune_result import Candidate, ColdPart, Figures, Point, Tuning
from tieredkv.sim.tune_worth import Terms, choose_size, judge_cold, judge_warm, knee

_BLOCKS_OF_TIME: Final = 20
_RESAMPLES: Final = 1000
_GAIN_MIN: Final = 0.005
"""Another policy must lower the mean TTFT of the first part by this share, and reliably."""

OnPhase = Callable[[str, int, int], None]
"""Told what is being done, and how much of it is done of how much."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent and how the search goes. `enough`: of the best gain within the budget, so much
    must the chosen size bring; `gain_min`: a tier that lowers mean TTFT by a smaller share is not worth it."""

    warm_bytes: int
    cold_bytes: int = 0
    split: float = 0.6
    sizes: int = 8
    trials: int = 6
    policies: tuple[str, ...] = ("gix", "lru")
    enough: float = 0.95
    gain_min: float = 0.02
    seed: int = 1
    jobs: int = 1


def tune(trace: Trace, hardware: Hardware, budget: Budget, *, on_phase: OnPhase | None = None) -> Tuning:
    """Search, and report. Equal arguments give equal results. Raises ConfigError."""
    return _Search(trace, hardware, budget, on_phase).run()


class _Search:
    """One search: the trace in two parts, and every replay that was made."""

    def __init__(self, trace: Trace, hardware: Hardware, budget: Budget, on_phase: OnPhase | None) -> None:
        self._trace = trace
        self._hardware = hardware
        self._budget = budget
        self._on_phase = on_phase
        self._latency = LatencyModel.of(hardware)
        self._chunk_bytes = trace.block_tokens * hardware.kv_bytes_per_token
        requests = trace.requests
        border_s = requests[-1].time_s * budget.split
        self._border = sum(request.time_s < border_s for request in requests)
        if not 0 < self._border < len(requests):
            raise ConfigError(
                f"--split {budget.split:g}: of {len(requests)} requests none are left "
                f"{'to choose by' if not self._border else 'to report on'}; choose another, or a longer trace"
            )
        if not trace.unique_blocks:
            raise ConfigError(
                f"{trace.name}: no prompt fills a block of {trace.block_tokens} tokens, so nothing can be cached"
            )
        budgets = {"--budget": budget.warm_bytes, "--cold-budget": budget.cold_bytes or self._chunk_bytes}
        for option, size_bytes in budgets.items():
            if size_bytes >= self._chunk_bytes:
                continue
            raise ConfigError(
                f"{option}: less than one chunk, which is {approximate_size(self._chunk_bytes)} "
                f"({trace.block_tokens} tokens of {hardware.kv_bytes_per_token} bytes)"
            )
        self._durations_s = (border_s, requests[-1].time_s - border_s)
        self._refs = np.array([len(request.keys) for request in requests], np.int64)
        self._tokens = np.array([request.tokens for request in requests], np.int64)
        self._known: dict[tuple[PolicyConfig, int], NDArray[np.int64]] = {}
        self._future = foresee(trace)

    def run(self) -> Tuning:
        budget, hardware = self._budget, self._hardware
        sizes = self._sizes(budget.warm_bytes)
        hot_chunks = hardware.hot_bytes // self._chunk_bytes
        infinite = infinite_hits(self._future)
        infinite_rates = tuple(self._rate(infinite[part], part) for part in self._parts())
        terms = Terms(self._latency, hardware.prices, budget.gain_min, infinite_rates[0])
        default = PolicyConfig()
        lru = PolicyConfig(name="lru")
        self._replay("hot tier", [(lru, hot_chunks)] if hot_chunks else [])
        self._hot = self._hits(lru, hot_chunks)
        without = self._point(default, 0)
        self._replay("sizes", [(default, self._chunks(size)) for size in sizes])
        curve = [self._point(default, size) for size in sizes]
        chosen = choose_size(without, curve, hardware.prices, budget.enough)
        policies = self._candidates(chosen.warm_bytes)
        policy = next(each for each in policies if each.chosen).policy
        if policy != default:
            self._replay("sizes, chosen policy", [(policy, self._chunks(size)) for size in sizes])
            curve = [self._point(policy, size) for size in sizes]
            chosen = choose_size(without, curve, hardware.prices, budget.enough)
        warm = judge_warm(without, chosen, curve, terms)
        cold = self._cold(policy, chosen, terms) if budget.cold_bytes and hardware.cold_bytes_per_s else None
        self._replay("lru beside it", [(lru, self._chunks(chosen.warm_bytes))])
        return Tuning(
            trace=self._trace.name,
            block_tokens=self._trace.block_tokens,
            chunk_bytes=self._chunk_bytes,
            requests=(self._border, len(self._refs) - self._border),
            split=budget.split,
            seed=budget.seed,
            infinite_hit_rate=infinite_rates,
            without=without,
            curve=curve,
            min_hit_rates=[self._min_rate(hot_chunks + self._chunks(size)) for size in sizes],
            chosen=chosen,
            knee=knee(without, curve),
            lru=self._point(lru, chosen.warm_bytes),
            policy=policy,
            candidates=policies,
            warm=warm,
            cold=cold,
        )

    def _cold(self, policy: PolicyConfig, chosen: Point, terms: Terms) -> ColdPart:
        """Sizes of a cold tier behind the chosen warm tier, beside the least that there can be."""
        # Every other size, from the budget down: these replays take longest.
        sizes = self._sizes(self._budget.cold_bytes)[::-2][::-1]
        hot_chunks = max(1, self._hardware.hot_bytes // self._chunk_bytes)
        tiers = [Sizes(hot_chunks, chosen.warm_chunks, max(1, self._chunks(size))) for size in (0, *sizes)]

        def on_requests(done: int, total: int) -> None:
            if self._on_phase is not None:
                self._on_phase("cold sizes", done, total)

        replays = replay_cold(self._trace, self._hardware, policy, tiers, on_requests)
        without, *curve = (
            self._point_of(each.served, chosen.warm_bytes, size)
            for each, size in zip(replays, (0, *sizes), strict=True)
        )
        best = choose_size(without, curve, self._hardware.prices, self._budget.enough)
        held_out = self._parts()[1]
        ready_s = [float(each.ready_s[held_out].mean()) for each in replays]
        waited_s = (ready_s[0], ready_s[1 + curve.index(best)])
        return ColdPart(without, curve, best, ready_s, judge_cold(without, best, curve, waited_s, terms))

    def _candidates(self, warm_bytes: int) -> list[Candidate]:
        """Policies at the chosen size, judged on the first part; the default stays unless one is surely better."""
        budget = self._budget
        random = default_rng([budget.seed, 1])
        default = PolicyConfig()
        configs = [default]
        configs += [PolicyConfig(name=name) for name in budget.policies if name != default.name]
        for _ in range(budget.trials if "gix" in budget.policies else 0):
            theta = round(float(random.uniform(0, 1.5)), 2)
            half_life_s = round(300 * 96 ** float(random.uniform()))  # 5 minutes to 8 hours
            configs.append(PolicyConfig.model_validate({"theta": theta, "half_life": f"{half_life_s}s"}))
        chunks = self._chunks(warm_bytes)
        train = self._parts()[0]
        requests = self._trace.requests[train]
        refs = int(self._refs[train].sum())
        first = replace(self._trace, requests=requests, block_refs=refs)
        hits = self._outcomes(first, "policies", [(config, chunks) for config in configs])
        times_s = [self._latency.ttft_s(self._served(each, self._hot[train])) for each in hits]
        best = 0
        gains: list[float | None] = [None]
        for number in range(1, len(configs)):
            least = self._sure_gain(times_s[0], times_s[number])
            gains.append(least)
            if least >= _GAIN_MIN and times_s[number].mean() < times_s[best].mean():
                best = number
        return [
            Candidate(
                config, number == best, self._rate(hits[number], train), float(times_s[number].mean()), gains[number]
            )
            for number, config in enumerate(configs)
        ]

    def _sure_gain(self, before_s: NDArray[np.float64], after_s: NDArray[np.float64]) -> float:
        """Share of the mean that is gained in 95 of 100 resamplings of stretches of the time."""
        starts = np.linspace(0, len(before_s), min(_BLOCKS_OF_TIME, len(before_s)), endpoint=False, dtype=np.int64)
        sums: NDArray[np.float64] = np.add.reduceat(before_s - after_s, starts)
        random = default_rng([self._budget.seed, 2])
        drawn = random.integers(0, len(sums), (_RESAMPLES, len(sums)))
        resampled: NDArray[np.float64] = sums[drawn].sum(axis=1)
        return float(np.quantile(resampled, 0.05) / before_s.sum())

    def _sizes(self, most_bytes: int) -> list[int]:
        """Half and half again from `most_bytes` down, smallest first, none below a chunk."""
        sizes = [most_bytes >> step for step in range(self._budget.sizes)]
        return sorted({size for size in sizes if size >= self._chunk_bytes})

    def _chunks(self, size_bytes: int) -> int:
        return size_bytes // self._chunk_bytes

    def _enough(self, chunks: int) -> int:
        """No more than there are: beyond that all sizes are the same."""
        return min(chunks, self._trace.unique_blocks)

    def _replay(self, phase: str, settings: Sequence[tuple[PolicyConfig, int]]) -> None:
        """Make what is not known yet of `settings`."""
        wanted = [(policy, self._enough(chunks)) for policy, chunks in settings]
        missing = [setting for setting in dict.fromkeys(wanted) if setting not in self._known and setting[1]]
        outcomes = self._outcomes(self._trace, phase, missing)
        self._known.update(zip(missing, outcomes, strict=True))

    def _outcomes(
        self, trace: Trace, phase: str, settings: Sequence[tuple[PolicyConfig, int]]
    ) -> list[NDArray[np.int64]]:
        if not settings:
            return []

        def on_refs(done: int, total: int) -> None:
            if self._on_phase is not None:
                self._on_phase(phase, done, total)

        with Replays(trace, seed=self._budget.seed).started(settings, self._budget.jobs, on_refs) as outcomes:
            return [outcome.request_hits.astype(np.int64) for outcome in outcomes()]

    def _hits(self, policy: PolicyConfig, chunks: int) -> NDArray[np.int64]:
        if not chunks:
            return np.zeros(len(self._refs), np.int64)
        return self._known[policy, self._enough(chunks)]

    def _min_rate(self, chunks: int) -> float:
        """What Belady's MIN hits of the held-out part."""
        held_out = self._parts()[1]
        return self._rate(min_hits(self._future, max(1, self._enough(chunks)))[held_out], held_out)

    def _point(self, policy: PolicyConfig, warm_bytes: int) -> Point:
        """What this warm tier gives, on either part."""
        warm = self._hits(policy, self._chunks(warm_bytes))
        return self._point_of(self._served(warm, self._hot), warm_bytes, 0)

    def _point_of(self, served: Served, warm_bytes: int, cold_bytes: int) -> Point:
        figures = [
            self._figures(served[part], part, duration_s)
            for part, duration_s in zip(self._parts(), self._durations_s, strict=True)
        ]
        return Point(warm_bytes, cold_bytes, self._chunks(warm_bytes), self._chunks(cold_bytes), *figures)

    def _served(self, warm: NDArray[np.int64], hot: NDArray[np.int64]) -> Served:
        """Tokens by where they come from: warm serves what goes on where the GPU's prefix ends."""
        block = self._trace.block_tokens
        tokens = self._tokens[: len(warm)]
        return Served(tokens, hot * block, np.maximum(warm - hot, 0) * block, np.zeros_like(warm))

    def _figures(self, served: Served, part: slice, duration_s: float) -> Figures:
        times_s = self._latency.ttft_s(served)
        refs = max(int(self._refs[part].sum()), 1) * self._trace.block_tokens
        loaded = int(served.warm.sum() + served.cold.sum())
        return Figures(
            hot_hit_rate=float(served.hot.sum()) / refs,
            warm_hit_rate=float(served.warm.sum()) / refs,
            cold_hit_rate=float(served.cold.sum()) / refs,
            mean_ttft_s=float(times_s.mean()),
            p99_ttft_s=float(np.quantile(times_s, 0.99)),
            gpu_saved_s_per_s=loaded * self._latency.prefill_s / duration_s if duration_s else 0.0,
        )

    def _rate(self, hits: NDArray[np.int64] | NDArray[np.int32], part: slice) -> float:
        return float(hits.sum()) / max(int(self._refs[part].sum()), 1)

    def _parts(self) -> tuple[slice, slice]:
        """Requests to choose by, and requests to report on."""
        return slice(0, self._border), slice(self._border, len(self._refs))
