"""The brain of one pool: which chunk is in which slot, who may write it, who needs it, who leaves.

Ownership: one thread owns a manager and makes all calls. It does no I/O, reads no clock of its own and
never waits; its caller applies the answers to the slot headers and tells the engines. A peer's nonsense
is a smaller answer and a count; a broken invariant is an AssertionError.

A *position* is one key of a prefix chain, a *chunk* is one KV group of a position. The policy knows
positions only: the chunks of a position leave together.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tieredkv.brain.audit import audit
from tieredkv.brain.cold import PageState
from tieredkv.brain.holder import Holder
from tieredkv.brain.intake import Offered
from tieredkv.brain.moves import PeerId
from tieredkv.brain.publication import Judge, of_rows
from tieredkv.brain.sessions import Sessions
from tieredkv.brain.tiering import ColdTier, Tiering
from tieredkv.brain.values import (
    NOTHING_STEPPED,
    AdoptedChunk,
    Forgotten,
    Found,
    Generations,
    Leased,
    Published,
    Slots,
    Stepped,
    Tallies,
)
from tieredkv.brain.warm import Warm
from tieredkv.clock import Clock
from tieredkv.policy.admission import Admission
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.hints import parse_hints, spell_hints
from tieredkv.trace import AccessRecord, Arrival, Hints
from tieredkv.types import KEY_SIZES, EngineId, Key, RequestId, SlotState

__all__ = [
    "AccessRecord",
    "AdoptedChunk",
    "ColdTier",
    "Forgotten",
    "Found",
    "Leased",
    "Published",
    "Stepped",
    "Tallies",
    "TierManager",
]

DEFERRED_MAX = 64
"""Accesses that may wait for a step; the next arrival applies them first."""


class TierManager:
    """See the module. All slots start UNPOPULATED; after a restart call adopt and quarantine first.

    `groups` is the number of KV groups, `engine_share_max` the share of all slots that one engine may
    pin and lease, `ghosts_max` how many evicted keys are remembered to tell evicted from absent,
    `next_generation` greater than every generation that the pool's headers and trailers hold.
    """

    def __init__(
        self,
        *,
        slots: int,
        groups: int,
        policy: EvictionPolicy,
        admission: Admission,
        clock: Clock,
        engine_share_max: float = 0.5,
        ghosts_max: int = 1_000_000,
        next_generation: int = 1,
        record: AccessRecord | None = None,
        cold: ColdTier | None = None,
    ) -> None:
        assert groups >= 1
        assert 0 < engine_share_max <= 1
        assert len(policy) == 0
        self.tallies = Tallies()
        self._warm = Warm(
            slots=slots,
            groups=groups,
            policy=policy,
            clock=clock,
            ghosts_max=ghosts_max,
            next_generation=next_generation,
            tallies=self.tallies,
        )
        self._table = self._warm.table
        self._allowance = max(1, int(slots * engine_share_max))
        self._policy = policy
        self._clock = clock
        self._record = record
        self._tiering = Tiering(self._warm, cold) if cold is not None else None
        self._judge = Judge(self._warm, admission, self._tiering)
        self._sessions = Sessions()
        self._holders: dict[EngineId, Holder] = {}
        self._holders_ever = 0
        self._deferred: list[Arrival] = []

    # --- the pool -----------------------------------------------------------------------------------

    def populate(self, first: int, count: int) -> None:
        """The pages of these slots are there: UNPOPULATED ones become FREE."""
        self._table.populate(first, count)

    def adopt(self, chunks: Sequence[AdoptedChunk]) -> None:
        """Take over published chunks after a restart (slots must be UNPOPULATED).

        Of two that claim the same chunk the newer tenancy counts; the other slot stays UNPOPULATED, as
        does one whose header cannot be part of the forest. Recency follows the generations.
        """
        taken: list[AdoptedChunk] = []
        seen: set[tuple[int, Key]] = set()
        for chunk in sorted(chunks, key=lambda chunk: chunk.generation, reverse=True):
            name = (chunk.group, chunk.key)
            if name in seen or not self._warm.forest.add_one(chunk.key, chunk.parent, chunk.position):
                continue
            seen.add(name)
            self._table.adopt(chunk.slot, chunk.generation)
            taken.append(chunk)
        self._policy.insert([chunk.key for chunk in taken], [chunk.parent for chunk in taken], self._clock.now_s())
        # The older tenancy of a chain is its head.
        taken.reverse()
        for group, residents in enumerate(self._warm.residents):
            own = [chunk for chunk in taken if chunk.group == group]
            if own:
                residents.add(
                    [chunk.key for chunk in own],
                    [chunk.parent for chunk in own],
                    [chunk.position for chunk in own],
                    [chunk.slot for chunk in own],
                )
                self._warm.changes.entered(group, [chunk.key for chunk in own], [chunk.slot for chunk in own])
        if self._tiering is not None:
            self._tiering.entered([chunk.key for chunk in taken], [chunk.parent for chunk in taken])

    def adopt_pages(self, chunks: Sequence[AdoptedChunk]) -> None:
        """Take over the cold pages of before a restart, after `adopt`; `slot` is the page. Only with a cold tier."""
        assert self._tiering is not None
        self._tiering.adopt(chunks)

    def watch_changes(self) -> None:
        """From now on `take_changes` tells which chunk is where."""
        self._warm.changes.watched = True
        if self._tiering is not None:
            self._tiering.table.changes.watched = True

    def take_changes(self) -> dict[int, tuple[int, Key] | None]:
        """Places whose chunk changed since the last call, and what they hold now (group and key, or None).

        Pages count on from the slots.
        """
        changed = self._warm.changes.take()
        if self._tiering is not None:
            pages = self._tiering.table.changes.take()
            changed.update((self._table.slots + page, chunk) for page, chunk in pages.items())
        return changed

    def place_generations(self, places: Sequence[int]) -> list[int]:
        """The tenancies of these places."""
        slots = self._table.slots
        pages = self._tiering.table if self._tiering is not None else None
        return [
            self._table.generation_of[place] if place < slots or pages is None else pages.generation(place - slots)
            for place in places
        ]

    def quarantine(self, slots: Slots, generations: Generations) -> None:
        """After a restart: nobody gets these UNPOPULATED slots while a former writer may live.

        `generations` are those of their trailers: the tenancies that may be resumed.
        """
        self._table.quarantine(slots.astype(np.int64), generations)

    def end_quarantine(self) -> None:
        """All former writers are gone or have resumed: what is QUARANTINED becomes FREE."""
        self._table.end_quarantine()

    # --- engines ------------------------------------------------------------------------------------

    def attach(self, engine: EngineId) -> None:
        """The engine has its first connection. It must not be attached."""
        assert engine not in self._holders
        self._holders[engine] = Holder(self._holders_ever, self._table, self._allowance)
        self._holders_ever += 1

    def detach(self, engine: EngineId) -> None:
        """The last connection of the engine closed: nothing of it writes or reads slots any more."""
        self._release(engine, self._requests(engine))
        holder = self._holders.pop(engine)
        self._table.end_leases(self._table.leases(holder.number).tolist())

    def resume(self, engine: EngineId, slots: Slots) -> Slots:
        """The engine reconnected and is still writing `slots`: quarantined ones are its leases again.

        Returns those. They may exceed its share: refusing them would let somebody else write too.
        """
        holder = self._holders[engine]
        resumed = self._table.resumable(slots)
        self._table.resume(resumed, holder.number)
        holder.leased += len(resumed)
        holder.allowance = max(holder.allowance, holder.held)
        return resumed.astype(np.int32)

    # --- requests -----------------------------------------------------------------------------------

    def arrive(
        self,
        engine: EngineId,
        request: RequestId,
        chain: Sequence[Key],
        *,
        strides: tuple[int, ...],
        tokens: int,
        tenant: str,
        hints: Hints,
        again: bool = False,
    ) -> Found:
        """A request came with all keys of its `chain`: find and pin its resident chunks.

        Chunk k of group g is that of chain[(k + 1) * strides[g] - 1]. Of a chain that cannot be, with a key
        twice or of no possible size, what is before that counts. Pins last until `release`; a
        second arrival of a request adds to them. What would exceed the engine's share is cut from the
        tail. The policy hears of the access at the next step, so that the answer can leave first; not
        when the request asks `again`, because it uses its chain once.
        """
        assert len(strides) == len(self._warm.residents)
        if len(set(chain)) < len(chain) or not KEY_SIZES.issuperset(map(len, chain)):
            chain = _possible(chain)
        if not again:
            if len(self._deferred) >= DEFERRED_MAX:
                self._apply_deferred()
            self._deferred.append(Arrival(self._clock.now_s(), engine, chain, tokens, tenant, hints))
        found = self._warm.find(chain, strides)
        holder = self._holders[engine]
        pinned = holder.pin(request, found, strides)
        end = max(len(slots) * stride for slots, stride in zip(found, strides, strict=True))
        coming = 0
        if self._tiering is not None:
            self._tiering.demotions.keep_slots(pinned)
            # What the share has no room for now, it has not after a load.
            if all(len(kept) == len(slots) for kept, slots in zip(pinned, found, strict=True)):
                coming = self._tiering.promotions.wish(engine, request, holder, chain, found, strides)
        evicted = self._warm.ghosts.known(chain, max(end, coming), min(strides))
        return Found(tuple(pinned), tuple(map(self._table.generations, pinned)), evicted, coming)

    def release(self, engine: EngineId, request: RequestId) -> None:
        """The request needs its pins no more. Unknown requests are fine."""
        self._release(engine, (request,))

    def keep_only(self, engine: EngineId, live: AbstractSet[RequestId]) -> None:
        """Release every request of the engine that is not in `live` (its release was lost)."""
        self._release(engine, [request for request in self._requests(engine) if request not in live])

    def hint(self, session: str, hints: Hints, *, tenant: str = "") -> bool:
        """The application says something of a session between its requests.

        False, and nothing happened, when no chain of this session of `tenant` is known (any more).
        """
        self._apply_deferred()
        key = self._sessions.last(tenant, session)
        if key is None:
            return False
        told = replace(parse_hints(hints), session=session)
        self._policy.advise(key, told, self._clock.now_s())
        if self._tiering is not None:
            self._tiering.table.policy.advise(key, told, self._clock.now_s())
        return True

    def chain(self, session: str, *, tenant: str = "") -> list[Key]:
        """The chain that this session of `tenant` used last, from its head on.

        Empty when the session is not known (any more), or not all of its chain is in this node's tiers, or
        without a cold tier.
        """
        self._apply_deferred()
        key = self._sessions.last(tenant, session)
        return self._tiering.chain(key) if self._tiering is not None and key is not None else []

    # --- stores -------------------------------------------------------------------------------------

    def lease(self, engine: EngineId, count: int) -> Leased:
        """Up to `count` slots for the engine to write, evicting as needed: nothing waits for cold.

        Fewer when its share is used up or when the rest is pinned, leased or not populated.
        """
        self._apply_deferred()
        holder = self._holders[engine]
        count = max(0, min(count, holder.room))
        self._evict(count - self._table.free)
        slots, generations = self._table.lease(min(count, self._table.free), holder.number)
        holder.leased += len(slots)
        return Leased(slots, generations, self._warm.gone())

    def publish(
        self,
        engine: EngineId,
        group: int,
        keys: Sequence[Key],
        parents: Sequence[Key],
        positions: npt.NDArray[np.int32],
        slots: Slots,
    ) -> Published:
        """The engine wrote these chunks of one group, head first: make them readable.

        The slots of rows that are not accepted (see Tallies) become FREE; slots that are not leased
        by the engine are left alone. Never raises for what a peer says.
        """
        self._apply_deferred()
        holder = self._holders[engine]
        owned = self._table.leased_rows(slots, holder.number)
        if 0 <= group < len(self._warm.residents) and len(keys) == len(parents) == len(positions) == len(slots):
            at: list[int] = positions.tolist()
            rows, dropped = self._judge.judge(group, keys, parents, at, owned)
        else:
            self.tallies.published("nonsense", len(slots))
            at, rows, dropped = [], [], [slot for slot in owned if slot >= 0]
        stored = of_rows(owned, rows)
        self._table.publish(stored)
        self._table.end_leases(dropped)
        holder.leased -= len(stored) + len(dropped)
        if rows:
            new_keys, new_parents = of_rows(keys, rows), of_rows(parents, rows)
            if self._tiering is not None:
                self._tiering.entered(new_keys, new_parents)
            self._warm.enter(group, new_keys, new_parents, of_rows(at, rows), stored)
            self.tallies.published("stored", len(rows))
        return Published(np.array(rows, np.int64), self._table.generations(np.array(stored, np.int32)))

    def offered(self, peer: PeerId, ticket: int, chunks: Sequence[Offered]) -> None:
        """Another node offers chunks, heads first within a chain; a step will tell what became of them (Pulled).

        Only with a cold tier. Never raises for what a peer says.
        """
        assert self._tiering is not None
        self._tiering.intake.offered(peer, ticket, chunks)

    def used(self, keys: Sequence[Key]) -> None:
        """Another node read these from here, heads first within a chain."""
        if self._tiering is not None:
            self._tiering.table.access(keys, self._clock.now_s())

    def give_back(self, engine: EngineId, slots: Slots) -> None:
        """The engine does not write these slots (any more): its leases of them become FREE."""
        holder = self._holders[engine]
        returned = [slot for slot in self._table.leased_rows(slots, holder.number) if slot >= 0]
        self._table.end_leases(returned)
        holder.leased -= len(returned)

    def reset(self) -> Forgotten:
        """Forget every chunk (the weights changed), and refuse what is leased now when published.

        Pinned chunks are invisible at once too; their slots become FREE when unpinned.
        """
        self._apply_deferred()
        self._sessions.clear()
        self._judge.reset()
        if self._tiering is not None:
            self._tiering.clear()
        return self._warm.forget_all()

    # --- housekeeping -------------------------------------------------------------------------------

    def step(self, *, idle: bool = True) -> Stepped:
        """Do what was put off so that an answer could leave first, and what the mover's results ask for.

        Only when `idle` also what may take milliseconds: the caller expects no message just now.
        """
        self._apply_deferred()
        if idle:
            self._policy.maintain(self._clock.now_s())
        return NOTHING_STEPPED if self._tiering is None else self._tiering.step(idle=idle)

    @property
    def next_generation(self) -> int:
        """The generation that the next lease begins with."""
        return self._table.next_generation

    def counts(self) -> dict[SlotState, int]:
        """Number of slots in each state."""
        return self._table.counts()

    def counts_pages(self) -> dict[PageState, int]:
        """Number of cold pages in each state; empty without a cold tier."""
        return {} if self._tiering is None else self._tiering.table.counts()

    @property
    def free_pages(self) -> int:
        """Number of FREE cold pages."""
        return 0 if self._tiering is None else self._tiering.table.free

    def held(self, engine: EngineId) -> int:
        """Slots that the engine has leased or pinned."""
        return self._holders[engine].held

    def leased(self, engine: EngineId) -> int:
        """Slots that the engine has leased."""
        return self._holders[engine].leased

    def describe(self) -> str:
        """One line for a log."""
        states = ", ".join(f"{count} {state.name.lower()}" for state, count in self.counts().items() if count)
        engines = ", ".join(f"{name} holds {holder.held}" for name, holder in self._holders.items())
        return f"{self._table.slots} slots ({states}); {len(self._policy)} positions; engines: {engines or 'none'}"

    def check(self) -> None:
        """Assert every invariant. O(slots); for tests and for after an incident."""
        assert len(self._deferred) <= DEFERRED_MAX
        audit(self._warm, tuple(self._holders.values()), self._tiering)
        self._sessions.check()

    # --- parts --------------------------------------------------------------------------------------

    def _apply_deferred(self) -> None:
        for arrival in self._deferred:
            hints = parse_hints(arrival.hints)
            self._policy.access(arrival.chain, arrival.now_s, hints)
            if self._tiering is not None:
                self._tiering.table.access(arrival.chain, arrival.now_s, hints)
            if hints.session and arrival.chain:
                self._sessions.used(arrival.tenant, hints.session, arrival.chain[-1])
            if self._record is not None:
                self._record.arrived(replace(arrival, hints=spell_hints(hints)))
        self._deferred.clear()

    def _requests(self, engine: EngineId) -> Iterable[RequestId]:
        """Requests of the engine that have pins or wait for a load."""
        pinning = self._holders[engine].requests
        if self._tiering is None:
            return pinning
        return dict.fromkeys((*pinning, *self._tiering.promotions.requests(engine)))

    def _release(self, engine: EngineId, requests: Iterable[RequestId]) -> None:
        holder = self._holders[engine]
        for request in requests:
            unpinned = holder.unpin(request)
            if self._tiering is not None:
                unpinned = self._tiering.promotions.released(engine, request, unpinned)
            # Not visible: it was forgotten by a reset while pinned.
            seen = self._table.visible[unpinned]
            if np.count_nonzero(seen) < len(seen):
                self._table.vacate(unpinned[~seen].tolist())

    def _evict(self, count: int) -> None:
        """Free at least `count` slots, or as many as may be freed."""
        target = self._table.free + count
        if self._tiering is not None:
            self._tiering.demotions.release(count)
        while self._table.free < target:
            # A position frees up to one slot per group: ask for fewer rather than free too many.
            victims = self._warm.victims(target - self._table.free)
            if not victims:
                break
            if self._tiering is not None:
                self._tiering.demotions.drop(victims)
            else:
                slots = self._warm.leave(victims)
                self._table.vacate(slots)
                self.tallies.evicted("room", len(slots))


def _possible(chain: Sequence[Key]) -> Sequence[Key]:
    """The head of a chain that makes sense: a hash of a prefix has its size, and is that of no other prefix."""
    seen: set[Key] = set()
    for key in chain:
        if key in seen or len(key) not in KEY_SIZES:
            break
        seen.add(key)
    return chain[: len(seen)]
