"""Predicted time to the first token: prefill of what is missing, and loads of what is not. No queueing."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tieredkv.sim.hardware import Hardware

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Served:
    """Where the tokens of each request came from; parallel arrays. What is left is computed."""

    tokens: Tokens
    hot: Tokens
    warm: Tokens
    cold: Tokens

    def __getitem__(self, chosen: slice) -> Self:
        return type(self)(self.tokens[chosen], self.hot[chosen], self.warm[chosen], self.cold[chosen])


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Seconds per token of each way to get it, and the time to start a cold load."""

    prefill_s: float
    warm_s: float
    cold_s: float
    cold_latency_s: float

    @classmethod
    def of(cls, hardware: Hardware) -> Self:
        """A cold load is read into the warm tier and goes on from there, so it costs both ways."""
        warm_s = hardware.kv_bytes_per_token / hardware.warm_bytes_per_s
        cold_s = hardware.kv_bytes_per_token / hardware.cold_bytes_per_s if hardware.cold_bytes_per_s else 0.0
        return cls(1 / hardware.prefill_tokens_per_s, warm_s, warm_s + cold_s, hardware.cold_latency_s)

    def ttft_s(self, served: Served) -> NDArray[np.float64]:
        """Of each request. The last token is always computed."""
        missing = np.maximum(served.tokens - served.hot - served.warm - served.cold, 1)
        started = np.where(served.cold > 0, self.cold_latency_s, 0.0)
        times_s: NDArray[np.float64] = (
            missing * self.prefill_s + served.warm * self.warm_s + served.cold * self.cold_s + started
        )
        return times_s

    def cold_break_even_tokens(self) -> float:
        """From how many tokens on a cold load is sooner than computing them; infinite when never."""
        gain_s = self.prefill_s - self.cold_s
        return self.cold_latency_s / gain_s if gain_s > 0 else float("inf")
