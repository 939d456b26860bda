"""What a search found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from tieredkv.config import PolicyConfig

_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Figures:
    """One part of the time with one set of tiers. Rates are of full-block tokens asked for.

    `gpu_saved_s_per_s`: seconds of prefill that loads spared, per second of the trace.
    """

    hot_hit_rate: float
    warm_hit_rate: float
    cold_hit_rate: float
    mean_ttft_s: float
    p99_ttft_s: float
    gpu_saved_s_per_s: float

    @property
    def hit_rate(self) -> float:
        """Of all tiers together."""
        return self.hot_hit_rate + self.warm_hit_rate + self.cold_hit_rate


@dataclass(frozen=True, slots=True)
class Point:
    """Sizes of the tiers, and what they gave in the part that chose (`train`) and in the rest (`held_out`)."""

    warm_bytes: int
    cold_bytes: int
    warm_chunks: int
    cold_chunks: int
    train: Figures
    held_out: Figures


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy at the chosen size, on the first part. `sure_gain`: share of the default's mean TTFT that it
    saves in 95 of 100 resamplings (None for the default itself)."""

    policy: PolicyConfig
    chosen: bool
    hit_rate: float
    mean_ttft_s: float
    sure_gain: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tier pays, and why in whole sentences."""

    worth_it: bool
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class ColdPart:
    """Cold tiers behind the chosen warm tier. `without` has the least cold that there can be, in the same
    replay. `ready_s`: of `without` and of each size, the held-out mean time from arrival to all of the KV
    on the GPU, with queueing."""

    without: Point
    curve: list[Point]
    chosen: Point
    ready_s: list[float]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Tuning:
    """The whole result. `min_hit_rates`: of Belady's MIN on the held-out part at the sizes of `curve`."""

    trace: str
    block_tokens: int
    chunk_bytes: int
    requests: tuple[int, int]
    split: float
    seed: int
    infinite_hit_rate: tuple[float, ...]
    without: Point
    curve: list[Point]
    min_hit_rates: list[float]
    chosen: Point
    knee: Point
    lru: Point
    policy: PolicyConfig
    candidates: list[Candidate]
    warm: Verdict
    cold: ColdPart | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = asdict(self)
        plain["policy"] = policy_words(self.policy)
        for candidate, words in zip(plain["candidates"], self.candidates, strict=True):
            candidate["policy"] = policy_words(words.policy)
        return plain


def policy_words(policy: PolicyConfig) -> str:
    """The policy as --set would write it: its name, and what differs from the defaults."""
    written = policy.model_dump(mode="json", by_alias=True)
    usual = PolicyConfig(name=policy.name).model_dump(mode="json", by_alias=True)
    return " ".join([policy.name, *(f"{key}={value}" for key, value in written.items() if value != usual[key])])


def marginal(points: Sequence[Point]) -> list[tuple[float, float]]:
    """For each of `points` but the first, against the one before: ms of mean TTFT and GPU seconds an hour that
    each GiB more saves, on the held-out part."""
    result: list[tuple[float, float]] = []
    for before, after in pairwise(points):
        gib = (after.warm_bytes + after.cold_bytes - before.warm_bytes - before.cold_bytes) / _GIB
        saved_ms = (before.held_out.mean_ttft_s - after.held_out.mean_ttft_s) * 1e3
        spared_s = (after.held_out.gpu_saved_s_per_s - before.held_out.gpu_saved_s_per_s) * 3600
        result.append((saved_ms / gib, spared_s / gib))
    return result
