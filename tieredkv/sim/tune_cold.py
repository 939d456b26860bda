"""Cold tiers of several sizes behind one warm tier, by replay through all three tiers with real waiting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tieredkv.config import PolicyConfig
from tieredkv.sim.hardware import Hardware
from tieredkv.sim.latency import Served
from tieredkv.sim.tier_replay import replay_tiers
from tieredkv.sim.tiers import Setting, Sizes, Speeds, servers_for
from tieredkv.sim.traces import Trace


@dataclass(frozen=True, slots=True, eq=False)
class ColdReplay:
    """One size. `ready_s`: of each request from its arrival to all of its KV on the GPU, queueing included."""

    served: Served
    ready_s: NDArray[np.float64]


def replay_cold(
    trace: Trace,
    hardware: Hardware,
    policy: PolicyConfig,
    sizes: Sequence[Sizes],
    on_requests: Callable[[int, int], None],
) -> list[ColdReplay]:
    """Replay each of `sizes`. `on_requests` is told how many requests are done of how many."""
    assert hardware.cold_bytes_per_s is not None
    assert hardware.cold_store_bytes_per_s is not None
    speeds = Speeds(
        chunk_bytes=trace.block_tokens * hardware.kv_bytes_per_token,
        prefill_tokens_per_s=hardware.prefill_tokens_per_s,
        load_bytes_per_s=hardware.warm_bytes_per_s,
        promote_bytes_per_s=hardware.cold_bytes_per_s,
        demote_bytes_per_s=hardware.cold_store_bytes_per_s,
        cold_latency_s=hardware.cold_latency_s,
    )
    tokens = np.array([request.tokens for request in trace.requests], np.int64)
    total = len(sizes) * len(tokens)
    # The GPUs do not change with the memory: enough for the first of the sizes serves all.
    servers = servers_for(trace, sizes[0], speeds)
    replays: list[ColdReplay] = []
    for number, each in enumerate(sizes):

        def on_progress(done: int, before: int = number * len(tokens)) -> None:
            on_requests(before + done, total)

        outcome = replay_tiers(trace, Setting(policy, each, servers), speeds, on_progress=on_progress)
        hot, warm, cold = (hits.astype(np.int64) * trace.block_tokens for hits in outcome.request_hits)
        replays.append(ColdReplay(Served(tokens, hot, warm, cold), outcome.ready_s))
    return replays
