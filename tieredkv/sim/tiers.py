"""A replay through three tiers: what it is given, and what it tells."""

from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import Copies
from tieredkv.config import PolicyConfig
from tieredkv.sim.replay import replay
from tieredkv.sim.traces import Trace

BUSY_PART: Final = 0.7
"""Part of the time that the streams of prefill are busy when there are just as many as a trace needs."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the three tiers, in chunks."""

    hot: int
    warm: int
    cold: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of the machine. `load_*` is warm to GPU, `promote_*` cold to warm, `demote_*` warm to cold."""

    chunk_bytes: int
    prefill_tokens_per_s: float
    load_bytes_per_s: float
    promote_bytes_per_s: float
    demote_bytes_per_s: float
    cold_latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One replay."""

    policy: PolicyConfig
    sizes: Sizes
    servers: int
    copies: Copies = Copies.CLEAN
    prefetch: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class TierOutcome:
    """What one replay gave. Hits are blocks of the longest prefix that a request got from the tiers without
    computing it; `request_hits` has those of each request, in rows for hot, warm and cold. Times are seconds
    per request: `ready_s`, in the order of the trace, from arrival to all of its KV on the GPU, `queue_s`
    of it in line for a stream, `cold_wait_s` waiting for cold loads past that.
    """

    requests: int
    servers: int
    block_refs: int
    hot_hits: int
    warm_hits: int
    cold_hits: int
    request_hits: npt.NDArray[np.int32]
    block_tokens: int
    tokens: int
    ready_s: npt.NDArray[np.float64]
    queue_s: npt.NDArray[np.float64]
    cold_wait_s: npt.NDArray[np.float64]
    stores: int
    loads: int
    demotions: int
    promotions: int
    dropped: int
    chunk_bytes: int
    busy_part: float

    @property
    def block_hit_rate(self) -> float:
        """Hits of all tiers over all blocks asked for."""
        return (self.hot_hits + self.warm_hits + self.cold_hits) / max(1, self.block_refs)

    @property
    def token_hit_rate(self) -> float:
        """Tokens of the blocks hit over all tokens asked for."""
        return (self.hot_hits + self.warm_hits + self.cold_hits) * self.block_tokens / max(1, self.tokens)


def servers_for(trace: Trace, sizes: Sizes, speeds: Speeds) -> int:
    """Streams of prefill that serve the trace with time to spare, if all tiers were one LRU cache."""
    one = replay(trace, PolicyConfig(name="lru"), sizes.hot + sizes.warm + sizes.cold)
    computed_s = (one.tokens - one.token_hits) / speeds.prefill_tokens_per_s
    span_s = max(trace.requests[-1].time_s, 1e-9)
    return max(1, ceil(computed_s / span_s / BUSY_PART))
