"""Reads vLLM's /metrics: which tier the prompt tokens came from."""

from dataclasses import dataclass
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

from tieredkv.demo.failure import DemoFailed
from tieredkv.metrics import MOVED_BYTES

PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
BY_SOURCE: Final = "vllm:prompt_tokens_by_source_total"
HOT: Final = "local_cache_hit"
WARM: Final = "external_kv_transfer"
RECOMPUTED: Final = "local_compute"


class MetricsError(DemoFailed):
    """vLLM's metrics lack what the demo reads, or contradict each other."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Prompt tokens of some requests by where their KV came from; the three parts sum to `asked`."""

    asked: int = 0
    hot: int = 0
    warm: int = 0
    recomputed: int = 0

    def __post_init__(self) -> None:
        if self.hot + self.warm + self.recomputed != self.asked or min(self.hot, self.warm, self.recomputed) < 0:
            raise MetricsError(f"vLLM's prompt token counters do not add up: {self}")

    def __add__(self, other: Self) -> "PromptTokens":
        return PromptTokens(
            self.asked + other.asked, self.hot + other.hot, self.warm + other.warm, self.recomputed + other.recomputed
        )

    def __sub__(self, earlier: Self) -> "PromptTokens":
        return PromptTokens(
            self.asked - earlier.asked,
            self.hot - earlier.hot,
            self.warm - earlier.warm,
            self.recomputed - earlier.recomputed,
        )


def read_prompt_tokens(text: str) -> PromptTokens:
    """Counters since the server's start, summed over its engines. Raises MetricsError."""
    asked: float | None = None
    sources: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == PROMPT_TOKENS:
                asked = (asked or 0.0) + sample.value
            elif sample.name == BY_SOURCE:
                source = sample.labels["source"]
                sources[source] = sources.get(source, 0.0) + sample.value
    missing = [name for name in (HOT, WARM, RECOMPUTED) if name not in sources]
    if asked is None or missing:
        raise MetricsError(f"vLLM's /metrics has no {PROMPT_TOKENS if asked is None else missing}")
    return PromptTokens(int(asked), int(sources[HOT]), int(sources[WARM]), int(sources[RECOMPUTED]))


def read_moved_bytes(text: str) -> dict[str, int]:
    """Bytes moved between hot and warm, {"store": ..., "load": ...}; empty without tieredkv."""
    moved: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == MOVED_BYTES:
                movement = sample.labels["movement"]
                moved[movement] = moved.get(movement, 0) + int(sample.value)
    return moved
