"""What a request costs the sidecar's brain: arrival, eviction and publication, and the policy in them.

In this process, with a pool that is full and sessions that come back: of all requests 70 % are a later
turn of one of 200 sessions, which adds new chunks to the chain; the rest begin a session. A chain that
has grown too long is cut in half, as if edited. Garbage collection is as in the sidecar: in the pauses,
like the rebuild of the policy's tables, which no request waits for; both are told apart.
"""

import gc
import random
import tracemalloc
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Final

import numpy as np

from tieredkv.clock import ManualClock
from tieredkv.config import PolicyConfig
from tieredkv.manager import TierManager
from tieredkv.policy import make_policy
from tieredkv.types import EngineId, Key, RequestId

POLICIES: Final = ("gix", "lru")
REQUESTS_PER_S: Final = 100.0
SESSIONS: Final = 200
RETURNING: Final = 0.7
PAUSE_EVERY: Final = 50
"""Requests between two pauses of the sidecar's loop."""

PUBLISHED_MAX: Final = 512
"""Chunks of one publication: what a step of the scheduler computes at most, 8192 tokens in blocks of 16."""

ENGINE: Final = EngineId("bench")


@dataclass(frozen=True, slots=True)
class Workload:
    """Chunks of a first request, new ones of a later turn, requests, and slots of the pool."""

    chunks: int
    new_chunks: int
    requests: int
    slots: int


WORKLOADS: Final = (Workload(24, 6, 12_000, 60_000), Workload(256, 8, 1_500, 100_000), Workload(8192, 64, 120, 200_000))


@dataclass(frozen=True, slots=True)
class BrainCost:
    """One line of the result: microseconds of the brain's work per request and per chunk of its chain.

    `longest_call_ms` is the longest single call of the brain while a request waits, `pause_ms_max` the
    longest rebuild of the tables.
    """

    policy: str
    chunks: int
    new_chunks: int
    requests: int
    us_per_request: float
    us_per_request_p99: float
    us_per_chunk: float
    longest_call_ms: float
    pause_ms_max: float


def brain_costs(*, scale: float = 1.0) -> list[BrainCost]:
    """Every policy at every workload; some seconds each. `scale` shortens the workloads."""
    return [_cost(name, workload, scale) for workload in WORKLOADS for name in POLICIES]


def bytes_per_tracked_chunk(policy: str, chunks: int = 24, chains: int = 8000) -> float:
    """Python memory per chunk that the policy tracks, resident or not, its key included."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    eviction = make_policy(PolicyConfig(name=policy), chunks * chains).eviction
    source = random.Random(1)
    for number in range(chains):
        chain = [Key(source.randbytes(32)) for _ in range(chunks)]
        eviction.access(chain, number / REQUESTS_PER_S)
        eviction.insert(chain, [Key(b""), *chain[:-1]], number / REQUESTS_PER_S)
        del chain
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / (chunks * chains)


def _cost(policy: str, workload: Workload, scale: float) -> BrainCost:
    clock = ManualClock()
    chosen = make_policy(PolicyConfig(name=policy), workload.slots)
    manager = TierManager(
        slots=workload.slots,
        groups=1,
        policy=chosen.eviction,
        admission=chosen.admission,
        clock=clock,
        engine_share_max=1.0,
    )
    manager.populate(0, workload.slots)
    manager.attach(ENGINE)
    chains = _chains(workload, max(10, int(workload.requests * scale)))
    reserve = manager.lease(ENGINE, 2 * workload.chunks).slots
    gc.collect()
    gc.freeze()
    gc.disable()
    seconds: list[float] = []
    pauses = [0.0]
    longest = 0.0
    chunks = 0
    try:
        for number, chain in enumerate(chains):
            clock.advance(1 / REQUESTS_PER_S)
            # Every message brings keys of its own.
            keys = [Key(bytes(bytearray(key))) for key in chain]
            reserve, calls = _serve(manager, RequestId(str(number)), keys, reserve)
            seconds.append(sum(calls))
            longest = max(longest, *calls)
            chunks += len(keys)
            if number % PAUSE_EVERY == 0:
                start = perf_counter()
                manager.step()
                pauses.append(perf_counter() - start)
    finally:
        gc.enable()
        gc.unfreeze()
    # The first half fills the pool.
    counted = seconds[len(seconds) // 2 :]
    mean = sum(counted) / len(counted)
    return BrainCost(
        policy=policy,
        chunks=workload.chunks,
        new_chunks=workload.new_chunks,
        requests=len(chains),
        us_per_request=mean * 1e6,
        us_per_request_p99=quantiles(counted, n=100)[98] * 1e6,
        us_per_chunk=mean * 1e6 * len(chains) / chunks,
        longest_call_ms=longest * 1e3,
        pause_ms_max=max(pauses) * 1e3,
    )


def _serve(
    manager: TierManager, request: RequestId, keys: list[Key], reserve: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], list[float]]:
    """One request from arrival to release; the reserve afterwards, and the seconds of each call."""
    times = [perf_counter()]
    found = manager.arrive(ENGINE, request, keys, strides=(1,), tokens=16 * len(keys), tenant="", hints={})
    times.append(perf_counter())
    at = len(found.slots[0])
    stored = min(len(keys) - at, len(reserve))
    parents = [Key(b""), *keys[:-1]][at : at + stored]
    own, positions, slots = keys[at : at + stored], np.arange(at, at + stored, dtype=np.int32), reserve[:stored]
    calls = [times[1] - times[0]]
    rest = [reserve[stored:]]
    for first in range(0, stored, PUBLISHED_MAX):
        batch = slice(first, first + PUBLISHED_MAX)
        times = [perf_counter()]
        manager.publish(ENGINE, 0, own[batch], parents[batch], positions[batch], slots[batch])
        times.append(perf_counter())
        leased = manager.lease(ENGINE, len(slots[batch]))
        times.append(perf_counter())
        rest.append(leased.slots)
        calls += [times[1] - times[0], times[2] - times[1]]
    times = [perf_counter()]
    manager.release(ENGINE, request)
    calls.append(perf_counter() - times[0])
    return np.concatenate(rest), calls


def _chains(workload: Workload, requests: int) -> list[list[bytes]]:
    source = random.Random(workload.chunks)
    sessions: list[list[bytes]] = []
    chains: list[list[bytes]] = []
    for _ in range(requests):
        if sessions and source.random() < RETURNING:
            at = source.randrange(len(sessions))
            kept = sessions[at]
            if len(kept) >= 2 * workload.chunks - workload.new_chunks:
                kept = kept[: workload.chunks // 2]
            chain = kept + [source.randbytes(32) for _ in range(workload.new_chunks)]
            sessions[at] = chain
        else:
            chain = [source.randbytes(32) for _ in range(workload.chunks)]
            sessions.append(chain)
            del sessions[:-SESSIONS]
        chains.append(chain)
    return chains
