"""A trace, replayed through the production TierManager: what a policy and a capacity would have given.

One tier in virtual time: requests come when the trace says, and nothing takes time between. Each request
arrives at an engine, uses the longest resident prefix of its chain (a *hit* is a block of that prefix) and
stores the rest, head first. Engines keep a reserve of free slots leased, as in production, and refill it
right after each publication; a pool has so many slots more than its capacity, so that never more chunks
than that are resident when a request comes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.clock import ManualClock
from tieredkv.config import PolicyConfig
from tieredkv.garbage import collected_in_pauses
from tieredkv.manager import TierManager
from tieredkv.policy import make_policy
from tieredkv.sim.routing import Routing, route
from tieredkv.sim.traces import Request, Trace
from tieredkv.trace import Hints
from tieredkv.types import EngineId, Key, RequestId

RESERVE_CHUNKS_MAX: Final = 64
RESERVE_PART: Final = 8


def reserve_for(capacity_chunks: int) -> int:
    """Slots that a simulated engine keeps leased, and so the chunks that it publishes at a time, at most.

    Small beside the pool, as in production: what a policy is told of the pool's size includes it.
    """
    return max(1, min(RESERVE_CHUNKS_MAX, capacity_chunks // RESERVE_PART))


_PROGRESS_REQUESTS: Final = 256
_START: Final = Key(b"")

Hits = npt.NDArray[np.int32]
"""Blocks of the longest resident prefix at arrival, per request of the trace."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines of a node, with one pool for all of them or an equal part of it for each."""

    engines: int = 1
    shared: bool = True
    routing: Routing = Routing.SESSION


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one replay gave. `stores`, `refusals` (by admission) and `evictions` count chunks; `cpu_s` is the
    processor time of the whole replay.
    """

    request_hits: Hits
    block_hits: int
    block_refs: int
    token_hits: int
    tokens: int
    stores: int
    refusals: int
    evictions: int
    cpu_s: float

    @property
    def block_hit_rate(self) -> float:
        """Hits over all blocks asked for, the first sight of each included."""
        return self.block_hits / max(1, self.block_refs)

    @property
    def token_hit_rate(self) -> float:
        """Tokens of hit blocks over all tokens asked for."""
        return self.token_hits / max(1, self.tokens)

    @property
    def us_per_block_ref(self) -> float:
        """Processor time of the whole brain for a block, in microseconds."""
        return self.cpu_s * 1e6 / max(1, self.block_refs)


ONE_ENGINE: Final = Fleet()


class SimulatedEngine:
    """One engine at a manager: uses what is found of a request, and stores the rest."""

    def __init__(self, name: str, manager: TierManager, reserve_chunks: int) -> None:
        assert reserve_chunks >= 1
        self._id = EngineId(name)
        self._manager = manager
        self._requests = 0
        manager.attach(self._id)
        self._reserve = manager.lease(self._id, reserve_chunks).slots
        assert len(self._reserve) == reserve_chunks
        self._positions = np.arange(reserve_chunks, dtype=np.int32)

    def serve(self, request: Request, hints: Hints) -> int:
        """Run one request to its end; the blocks that it found."""
        self._requests += 1
        name = RequestId(f"{self._requests}")
        found = self._manager.arrive(
            self._id, name, request.keys, strides=(1,), tokens=request.tokens, tenant="", hints=hints
        )
        self._manager.step()
        (slots,) = found.slots
        hits = len(slots) if not len(slots) or slots.min() >= 0 else int(np.argmax(slots < 0))
        if hits < len(request.keys):
            self._store(request.keys, hits)
        self._manager.release(self._id, name)
        return hits

    def _store(self, keys: list[Key], start: int) -> None:
        """Publish `keys[start:]` a reserve at a time, until a part of them is not kept."""
        most = len(self._reserve)
        for first in range(start, len(keys), most):
            batch = keys[first : first + most]
            parents = [keys[first - 1] if first else _START, *batch[:-1]]
            slots = self._reserve[: len(batch)]
            published = self._manager.publish(
                self._id, 0, batch, parents, self._positions[: len(batch)] + np.int32(first), slots
            )
            leased = self._manager.lease(self._id, len(batch))
            self._reserve = np.concatenate((self._reserve[len(batch) :], leased.slots))
            assert len(self._reserve) == most, "a reserve could not be refilled"
            # Below a block that is not resident nothing can be hit.
            if len(published.rows) < len(batch) or batch[-1] in leased.evicted.get(0, ()):
                return


def replay(
    trace: Trace,
    policy: PolicyConfig,
    capacity_chunks: int,
    *,
    fleet: Fleet = ONE_ENGINE,
    seed: int = 1,
    hints: Sequence[Hints] | None = None,
    reserve_chunks: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Replay `trace` with one tier of `capacity_chunks` (at least one for each pool). Raises ConfigError.

    `seed` is that of the routing; `hints` replaces the trace's own, one for each request; `reserve_chunks`
    what `reserve_for` says. `on_progress` is told now and then how many requests are done.
    """
    assert hints is None or len(hints) == len(trace.requests)
    clock = ManualClock()
    # Slots that no block of the trace can need would cost memory for nothing.
    needed = min(capacity_chunks, max(1, trace.unique_blocks) * (1 if fleet.shared else fleet.engines))
    managers, engines = _build(policy, needed, fleet, reserve_chunks, clock)
    routed = route(trace, fleet.engines, fleet.routing, seed)
    request_hits = np.zeros(len(trace.requests), np.int32)
    # As in the sidecar: a collection would look at all keys of the trace, again and again.
    with collected_in_pauses():
        start_cpu_s = process_time()
        for number, request in enumerate(trace.requests):
            clock.advance(max(0.0, request.time_s - clock.now_s()))
            said = request.hints if hints is None else hints[number]
            request_hits[number] = engines[routed[number]].serve(request, said)
            if on_progress is not None and number % _PROGRESS_REQUESTS == 0:
                on_progress(number)
        cpu_s = process_time() - start_cpu_s
    block_hits = int(request_hits.sum())
    return Outcome(
        request_hits=request_hits,
        block_hits=block_hits,
        block_refs=trace.block_refs,
        token_hits=block_hits * trace.block_tokens,
        tokens=sum(request.tokens for request in trace.requests),
        stores=sum(manager.tallies.publications.get("stored", 0) for manager in managers),
        refusals=sum(manager.tallies.publications.get("refused", 0) for manager in managers),
        evictions=sum(manager.tallies.evictions.get("room", 0) for manager in managers),
        cpu_s=cpu_s,
    )


def _build(
    policy: PolicyConfig, capacity_chunks: int, fleet: Fleet, reserve_chunks: int | None, clock: ManualClock
) -> tuple[list[TierManager], list[SimulatedEngine]]:
    """The pools, and the engines in the order of their numbers."""
    pools = 1 if fleet.shared else fleet.engines
    assert capacity_chunks >= pools
    reserve = reserve_for(capacity_chunks // fleet.engines) if reserve_chunks is None else reserve_chunks
    managers: list[TierManager] = []
    engines: list[SimulatedEngine] = []
    for pool in range(pools):
        of_pool = fleet.engines // pools
        capacity = capacity_chunks // pools + (pool < capacity_chunks % pools)
        slots = capacity + of_pool * reserve
        chosen = make_policy(policy, slots)
        manager = TierManager(
            slots=slots,
            groups=1,
            policy=chosen.eviction,
            admission=chosen.admission,
            clock=clock,
            engine_share_max=1.0,
        )
        manager.populate(0, slots)
        managers.append(manager)
        engines += [SimulatedEngine(f"engine-{len(engines) + each}", manager, reserve) for each in range(of_pool)]
    return managers, engines
