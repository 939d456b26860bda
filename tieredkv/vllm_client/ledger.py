"""Counts what the warm tier did for this engine, once, for two readers: vLLM's /metrics and the sidecar.

Names are those of `tieredkv.metrics`; every prompt token of an admitted request is counted once as asked
and once as hot, warm or missed, so the parts add up.
"""

from collections.abc import Mapping

from prometheus_client import REGISTRY

from tieredkv.metrics import (
    COUNTERS,
    FAILURES,
    HINTS,
    MISS_TOKENS,
    MOVE_SECONDS,
    MOVED_BYTES,
    PREFILL,
    PREFIX_TOKENS,
    SLOTS,
    SLOTS_METRIC,
)
from tieredkv.types import MissReason
from tieredkv.vllm_client.compat import (
    OffloadingConnectorStats,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)


def metric_definitions() -> dict[str, OffloadingMetricMetadata]:
    """All metrics that an engine may emit; vLLM's front end refuses others."""
    definitions: dict[str, OffloadingMetricMetadata] = {
        metric.name: OffloadingCounterMetadata(documentation=metric.text, labelnames=(metric.label,))
        for metric in COUNTERS.values()
    }
    definitions[SLOTS] = OffloadingGaugeMetadata(documentation=SLOTS_METRIC.text, labelnames=(SLOTS_METRIC.label,))
    return definitions


def forget_metrics() -> None:
    """Take our metrics of a former engine out of the process's registry, as vLLM does with its own."""
    names = REGISTRY._collector_to_names  # pyright: ignore[reportPrivateUsage] - vLLM does the same
    definitions = metric_definitions()
    for collector in list(names):
        if not definitions.keys().isdisjoint(names[collector]):
            REGISTRY.unregister(collector)


class EngineLedger:
    """Increments since the last reading, kept separately for each reader."""

    def __init__(self) -> None:
        self._stats: dict[str, dict[str, float]] = {}
        self._report: dict[str, dict[str, float]] = {}
        self._slots: dict[str, int] = {}

    def prefix(self, asked: int, hot: int, warm: int, misses: Mapping[MissReason, int]) -> None:
        """One admitted request: `asked` = `hot` + `warm` + the sum of `misses`, in tokens."""
        missed = sum(misses.values())
        assert asked == hot + warm + missed, f"{asked} tokens asked, {hot} hot, {warm} warm, {missed} missed"
        for result, tokens in (("asked", asked), ("hot", hot), ("warm", warm), ("miss", missed)):
            self._add(PREFIX_TOKENS, result, tokens)
        for reason, tokens in misses.items():
            self._add(MISS_TOKENS, reason.value, tokens)

    def moved(self, movement: str, size_bytes: int, seconds: float) -> None:
        """Copies of this step: `movement` is store or load."""
        self._add(MOVED_BYTES, movement, size_bytes)
        self._add(MOVE_SECONDS, movement, seconds)

    def prefill(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in that time."""
        self._add(PREFILL, "tokens", tokens)
        self._add(PREFILL, "seconds", seconds)

    def failure(self, kind: str, count: int = 1) -> None:
        """Something of ours failed and became a miss."""
        self._add(FAILURES, kind, count)

    def hints(self, taken: int, ignored: int) -> None:
        """Hints of one request: told to the sidecar, or unknown, or no value of their kind."""
        self._add(HINTS, "taken", taken)
        self._add(HINTS, "ignored", ignored)

    def slots(self, by_state: Mapping[str, int]) -> None:
        """What the sidecar says of the pool's slots; told on to vLLM as it is."""
        self._slots = dict(by_state)

    def take_stats(self) -> OffloadingConnectorStats | None:
        """For vLLM's /metrics; None when nothing happened."""
        if not self._stats and not self._slots:
            return None
        taken, self._stats = self._stats, {}
        slots, self._slots = self._slots, {}
        stats = OffloadingConnectorStats()
        for state, count in slots.items():
            stats.set_gauge(SLOTS, count, (state,))
        for name, values in taken.items():
            for label, amount in values.items():
                stats.increase_counter(name, amount, (label,))
        return stats

    def take_report(self) -> dict[str, dict[str, float]]:
        """For the sidecar; empty when nothing happened."""
        taken, self._report = self._report, {}
        return taken

    def put_back(self, counters: Mapping[str, Mapping[str, float]]) -> None:
        """A report that could not be sent."""
        for name, values in counters.items():
            mine = self._report.setdefault(name, {})
            for label, amount in values.items():
                mine[label] = mine.get(label, 0) + amount

    def _add(self, name: str, label: str, amount: float) -> None:
        if amount:
            for counters in (self._stats, self._report):
                values = counters.setdefault(name, {})
                values[label] = values.get(label, 0) + amount
