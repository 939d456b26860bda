"""The ledger: every metric's name and meaning, the sums of what is reported, Prometheus' text format.

Engines count and report increments; the sidecar adds its own and sums. Each counter has one label whose
values come from code, never from requests, so the number of series is bounded; it is bounded here again,
because reports come from other processes.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

PREFIX_TOKENS: Final = "tieredkv_prefix_tokens_total"
MISS_TOKENS: Final = "tieredkv_miss_tokens_total"
MOVED_BYTES: Final = "tieredkv_moved_bytes_total"
MOVE_SECONDS: Final = "tieredkv_move_seconds_total"
SLOTS: Final = "tieredkv_slots"
PAGES: Final = "tieredkv_pages"
PREFILL: Final = "tieredkv_prefill_total"
BREAKERS: Final = "tieredkv_peer_breaker"
EVICTIONS: Final = "tieredkv_evictions_total"
PUBLICATIONS: Final = "tieredkv_publications_total"
FAILURES: Final = "tieredkv_failures_total"
HINTS: Final = "tieredkv_hints_total"

LABEL_VALUES_MAX: Final = 64
"""Distinct label values of one metric; more are counted as a failure and dropped."""

_LABEL_VALUE: Final = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric means. `label` is the name of its only label."""

    name: str
    text: str
    label: str


COUNTERS: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric(PREFIX_TOKENS, "Prompt tokens of admitted requests: asked = hot + warm + miss.", "result"),
        Metric(MISS_TOKENS, "Prompt tokens that were recomputed, by reason.", "reason"),
        Metric(MOVED_BYTES, "KV bytes moved between tiers and nodes.", "movement"),
        Metric(MOVE_SECONDS, "Seconds spent moving KV between tiers and nodes.", "movement"),
        Metric(PREFILL, "Prompt tokens that engines computed in steps of many, and the seconds of those.", "what"),
        Metric(EVICTIONS, "Chunks that left the warm tier, by reason.", "reason"),
        Metric(PUBLICATIONS, "Chunks offered to the warm tier, by what became of them.", "result"),
        Metric(HINTS, "Hints of applications, by what became of them.", "result"),
        Metric(FAILURES, "Operations that failed and became a miss, by kind.", "kind"),
    )
}
BREAKERS_METRIC: Final = Metric(BREAKERS, "Other nodes: 0 asked, 1 on trial, 2 not asked.", "node")
PAGES_METRIC: Final = Metric(PAGES, "Pages of the cold tier on this node, by state.", "state")
SLOTS_METRIC: Final = Metric(SLOTS, "Slots of the warm tier, by state.", "state")

Increments = dict[str, dict[str, float]]
"""{metric: {label value: amount}}"""


class Totals:
    """Sums of increments. Not thread safe."""

    def __init__(self) -> None:
        self._values: Increments = {name: {} for name in COUNTERS}

    def add(self, metric: str, label_value: str, amount: float = 1.0) -> None:
        """Count `amount` of one of COUNTERS. For this process's own counting."""
        assert amount >= 0
        values = self._values[metric]
        values[label_value] = values.get(label_value, 0.0) + amount

    def merge(self, increments: Mapping[str, Mapping[str, float]]) -> int:
        """Add another process's report; returns how many of its values were nonsense and left out."""
        refused = 0
        for name, reported in increments.items():
            for label_value, amount in reported.items():
                if self._acceptable(name, label_value, amount):
                    self.add(name, label_value, amount)
                else:
                    refused += 1
        return refused

    def values(self) -> Increments:
        """A copy of all sums."""
        return {name: dict(values) for name, values in self._values.items()}

    def _acceptable(self, name: str, label_value: str, amount: float) -> bool:
        values = self._values.get(name)
        if values is None or not math.isfinite(amount) or amount < 0:
            return False
        if label_value in values:
            return True
        return len(values) < LABEL_VALUES_MAX and _LABEL_VALUE.fullmatch(label_value) is not None


def exposition(
    counters: Mapping[str, Mapping[str, float]],
    slots: Mapping[str, int],
    pages: Mapping[str, int],
    breakers: Mapping[str, int],
) -> str:
    """Prometheus' text format 0.0.4 of all counters, of slots and pages by state, and of breakers by node."""
    lines: list[str] = []
    for metric in COUNTERS.values():
        lines += _family(metric, "counter", counters.get(metric.name, {}).items())
    lines += _family(SLOTS_METRIC, "gauge", slots.items())
    lines += _family(PAGES_METRIC, "gauge", pages.items())
    lines += _family(BREAKERS_METRIC, "gauge", ((_escaped(node), state) for node, state in breakers.items()))
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A node's name as a label's value; it is a peer's word."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(metric: Metric, kind: str, values: Iterable[tuple[str, float]]) -> Iterable[str]:
    yield f"# HELP {metric.name} {metric.text}"
    yield f"# TYPE {metric.name} {kind}"
    for label_value, value in sorted(values):
        yield f'{metric.name}{{{metric.label}="{label_value}"}} {value:.17g}'
