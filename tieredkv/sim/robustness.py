"""Loads that break policies, generated: what a policy loses to LRU on each at most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tieredkv.config import PolicyConfig
from tieredkv.sim.capacities import Size
from tieredkv.sim.comparison import Comparison, Plan, compare
from tieredkv.sim.generate import generate

LOADS: Final[dict[str, tuple[str, float]]] = {
    "one-shot flood": ("flood", 1.0),
    "trunk churn": ("churn", 1.0),
    "think times x0.3": ("chat", 0.3),
    "think times x3": ("chat", 3.0),
    "think times x4 halfway": ("shift", 1.0),
    "agentic, think times x0.3": ("agentic", 0.3),
    "agentic, think times x3": ("agentic", 3.0),
    "retrieval": ("rag", 1.0),
}
"""Name of a load -> kind of workload, and the factor on its think times."""

FRACTIONS: Final = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)
_REFERENCE: Final = PolicyConfig(name="lru")


@dataclass(frozen=True, slots=True)
class Stressed:
    """One load: the comparison, and the most that the policy is below LRU at any capacity.

    `loss` is in points of the block hit rate over 100; negative when the policy is above LRU everywhere.
    """

    load: str
    seed: int
    loss: float
    comparison: Comparison


def stress(
    policy: PolicyConfig,
    load: str,
    *,
    requests: int,
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
    jobs: int = 1,
    on_refs: Callable[[int, int], None] | None = None,
) -> Stressed:
    """Replay `policy` beside LRU on one of LOADS. Raises ConfigError."""
    kind, think_time = LOADS[load]
    trace = generate(kind, seed=seed, requests=requests, think_time=think_time)
    sizes = [Size(max(1, int(fraction * trace.unique_blocks)), fraction) for fraction in fractions]
    plan = Plan((_REFERENCE, policy), seed=seed)
    comparison = compare(trace, plan, sizes, jobs=jobs, on_refs=on_refs)
    rates = [result.block_hit_rate for result in comparison.results]
    pairs = zip(rates[: len(sizes)], rates[len(sizes) :], strict=True)
    return Stressed(load, seed, max(lru - own for lru, own in pairs), comparison)
