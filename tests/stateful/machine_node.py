"""One node under test: its sidecar and engines come and go. What always holds, and the drain."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.stateful.mover import TaggedMover
from tests.stateful.node import Arena, Engine, int32
from tests.stateful.others import OtherNode
from tests.stateful.space import (
    ALLOWANCE,
    DEADLINE_S,
    DRAIN_STEPS_MAX,
    MARKS,
    PAGES,
    QUEUE_MAX,
    SHARE,
    SLOTS,
    MoodyAdmission,
    dice,
    engines,
)
from tieredkv.brain.cold import Copies, PageState
from tieredkv.brain.intake import Offered
from tieredkv.brain.values import Progress
from tieredkv.clock import ManualClock
from tieredkv.manager import ColdTier, TierManager
from tieredkv.policy import LRU
from tieredkv.policy.placement import Placement, Rate
from tieredkv.types import EngineId, Key, SlotState


class NodeMachine(RuleBasedStateMachine):
    """The oracle knows what is visible; who evicts what, it learns from the answers."""

    COLD = False

    @initialize(
        strides=st.sampled_from([(1,), (1, 1), (1, 2)]),
        populated=st.sampled_from([SLOTS, SLOTS, SLOTS, 3, 0]),
        copies=st.sampled_from(Copies),
        load_s=st.sampled_from([0.0, 0.0, 0.0, 10.0]),
    )
    def start(self, strides: tuple[int, ...], populated: int, copies: Copies, load_s: float) -> None:
        self.strides = strides
        self.copies = copies if self.COLD else None
        self.load_s = load_s
        self.clock = ManualClock()
        self.arena = Arena(SLOTS, MARKS)
        self.other = OtherNode()
        self.engines: dict[EngineId, Engine] = {}
        # Leases of engines that have not come back to a new sidecar yet.
        self.absent: dict[EngineId, Engine] = {}
        # Who wrote the body of each slot last.
        self.writer_of: dict[int, EngineId] = {}
        self.populated = 0
        self.offers: dict[int, list[Offered]] = {}
        self.tickets = 0
        self.manager = self._new_manager()
        self.populate(populated)

    def _new_manager(self) -> TierManager:
        self.admission = MoodyAdmission()
        self.cold_admission = MoodyAdmission()
        # The former sidecar's mover died with it.
        self.mover = TaggedMover(self.arena, self.other, MARKS, queue_max=QUEUE_MAX, seconds=self.load_s)
        manager = TierManager(
            slots=SLOTS,
            groups=len(self.strides),
            policy=LRU(SLOTS),
            admission=self.admission,
            clock=self.clock,
            engine_share_max=SHARE,
            ghosts_max=4,
            next_generation=self.arena.last_generation + 1,
            cold=None if self.copies is None else self._cold(self.copies),
        )
        manager.watch_changes()
        self.followed: dict[int, tuple[int, Key]] = {}
        return manager

    def _cold(self, copies: Copies) -> ColdTier:
        return ColdTier(
            pages=PAGES,
            policy=LRU(PAGES),
            admission=self.cold_admission,
            mover=self.mover,
            placement=Placement(recompute=Rate(1.0)),
            low_free=1,
            high_free=2,
            copies=copies,
            deadline_s=DEADLINE_S,
            ttl_s=20.0 if self.load_s else None,
            elsewhere=self.other,
        )

    @precondition(lambda self: self.populated < SLOTS)
    @rule(count=st.integers(1, SLOTS))
    def populate(self, count: int) -> None:
        if self.populated:
            MARKS["population late"] += 1
        count = min(count, SLOTS - self.populated)
        self.manager.populate(self.populated, count)
        self.populated += count

    @rule(seconds=st.integers(0, 3))
    def step(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self._step()

    def _step(self) -> None:
        stepped = self.manager.step()
        self.arena.apply_evicted(stepped.evicted)
        for loaded in stepped.loaded:
            self.arena.apply_loaded(loaded)
            MARKS["loaded"] += 1
        for progress in stepped.progress:
            self._hear(progress)
        for pulled in stepped.pulled:
            offered = self.offers.pop(pulled.ticket)
            assert set(pulled.stored) <= set(range(len(offered)))
            MARKS["pulled"] += len(pulled.stored)

    def _hear(self, progress: Progress) -> None:
        """A request is told that more of its chain is there."""
        engine = self.engines[progress.engine]
        hope = engine.hopes[progress.request]
        reads = engine.reads.setdefault(progress.request, {})
        rows = zip(
            progress.groups, progress.numbers, progress.slots.tolist(), progress.generations.tolist(), strict=True
        )
        for group, number, slot, generation in rows:
            key = hope.chain[(number + 1) * self.strides[group] - 1]
            reads[slot] = self.arena.read(slot, generation, group, key)
        if not reads:
            del engine.reads[progress.request]
        assert progress.ready_to <= hope.coming
        if hope.weights != self.arena.weights:
            assert not len(progress.slots), "told of old weights"
            assert progress.over
            del engine.hopes[progress.request]
            return
        hole = False
        for name in self._names(hope.chain[: progress.ready_to]):
            if self.arena.visible.get(name) not in reads:
                assert name not in hope.somewhere, "told that it is ready"
                hole = True
            elif hole and len(progress.slots):
                MARKS["came past a hole"] += 1
        if not progress.over:
            MARKS["told in parts"] += 1
            return
        MARKS["came whole" if progress.ready_to == hope.coming else "came in part"] += 1
        del engine.hopes[progress.request]

    def _names(self, chain: Sequence[Key]) -> list[tuple[int, Key]]:
        """The chunks of a chain, in its order."""
        ends = range(1, len(chain) + 1)
        return [(group, chain[end - 1]) for end in ends for group, each in enumerate(self.strides) if not end % each]

    def _somewhere(self) -> set[tuple[int, Key]]:
        """The chunks that are in warm, in cold or on the other node, as far as it can be asked."""
        self._follow()
        return {*self.arena.visible, *self.followed.values(), *(self.other.told if self.other.reachable else ())}

    @rule(count=st.integers(1, 2))
    def refuse_next(self, count: int) -> None:
        self.admission.refusals = count

    def _here(self, name: EngineId) -> bool:
        """Whether the engine can talk to this sidecar; a new one attaches at once."""
        if name not in self.engines and name not in self.absent:
            self.manager.attach(name)
            self.engines[name] = Engine()
        return name in self.engines

    @precondition(lambda self: not self.absent)
    @rule(dice=dice)
    def kill_sidecar(self, dice: int) -> None:
        """A new sidecar adopts the pool; engines have not reconnected yet, their writers still write."""
        if dice:
            return
        MARKS["sidecar killed"] += 1
        for engine in self.engines.values():
            # Loads in flight prove themselves by the words after their copy; nothing is promised.
            engine.reads.clear()
            engine.ended.clear()
            engine.hopes.clear()
        self.absent, self.engines = self.engines, {}
        self.offers.clear()
        whole, unsettled = self.arena.scan()
        self.manager = self._new_manager()
        self.manager.adopt(whole)
        self.manager.quarantine(int32(unsettled), trailers(self.arena, unsettled))
        if unsettled:
            MARKS["quarantined"] += 1
        self.manager.populate(0, self.populated)
        self._end_quarantine_if_settled()

    @rule(name=engines, returns=st.booleans())
    def reconnect(self, name: EngineId, returns: bool) -> None:
        """An engine of the former sidecar comes back with its leases, or turns out to be dead."""
        if name not in self.absent:
            return
        engine = self.absent.pop(name)
        if returns:
            self.manager.attach(name)
            wanted = [*engine.leases, -1, SLOTS, *list(engine.leases)[:1]]
            assert sorted(self.manager.resume(name, int32(wanted)).tolist()) == sorted(engine.leases)
            if engine.leases:
                MARKS["resumed"] += 1
            # A client that survived a reset does not publish what it wrote before.
            self.manager.give_back(name, int32(sorted(engine.stale)))
            for slot in engine.stale:
                del engine.leases[slot]
            engine.stale.clear()
            self.engines[name] = engine
        self._end_quarantine_if_settled()

    def _end_quarantine_if_settled(self) -> None:
        if not self.absent:
            if self.manager.counts()[SlotState.QUARANTINED]:
                MARKS["quarantine ended"] += 1
            self.manager.end_quarantine()

    @rule(name=engines, slots=st.lists(st.integers(-2, SLOTS + 1), max_size=4))
    def resume_what_is_not_mine(self, name: EngineId, slots: list[int]) -> None:
        if self.absent or not self._here(name):
            return
        assert not len(self.manager.resume(name, int32(slots)))

    @precondition(lambda self: not self.absent)
    @rule(dice=dice)
    def reset(self, dice: int) -> None:
        if dice:
            return
        pinned = {slot for engine in self.engines.values() for reads in engine.reads.values() for slot in reads}
        if pinned:
            MARKS["reset under a pin"] += 1
        self.arena.apply_reset(self.manager.reset())
        for engine in self.engines.values():
            if engine.leases:
                MARKS["reset under a lease"] += 1
            engine.stale |= engine.leases.keys()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "manager"):
            self.manager.check()

    @invariant()
    def who_follows_knows_what_is_where(self) -> None:
        if not hasattr(self, "manager"):
            return
        self._follow()
        slots = {place: chunk for place, chunk in self.followed.items() if place < SLOTS}
        assert slots == {slot: name for name, slot in self.arena.visible.items()}
        pages = self.manager.counts_pages()
        assert len(self.followed) - len(slots) <= pages.get(PageState.HELD, 0)
        for place, (group, key) in self.followed.items():
            if place >= SLOTS and self.mover.page_tag(place - SLOTS)[0] != "rubbish":
                assert self.mover.page_tag(place - SLOTS) == self.arena.content(group, key)

    def _follow(self) -> None:
        for place, chunk in self.manager.take_changes().items():
            if chunk is None:
                self.followed.pop(place, None)
            else:
                self.followed[place] = chunk

    @invariant()
    def what_is_needed_is_untouched(self) -> None:
        for engine in getattr(self, "engines", {}).values():
            for reads in engine.reads.values():
                for slot, tag in reads.items():
                    assert self.arena.bodies[slot] == tag, "a pinned body was overwritten"

    @invariant()
    def held_is_counted(self) -> None:
        for name, engine in getattr(self, "engines", {}).items():
            held = self.manager.held(name)
            # What is loading is held as well, and what came behind a chunk that did not.
            assert held == len(engine.held()) or (self.copies is not None and len(engine.held()) < held <= ALLOWANCE)

    def teardown(self) -> None:
        """Drain: when everybody let go, every slot can be had again."""
        if not hasattr(self, "manager"):
            return
        for name in list(self.absent):
            self.manager.attach(name)
            self.manager.detach(name)
        self.absent.clear()
        self.manager.end_quarantine()
        for name in list(self.engines):
            self.manager.keep_only(name, set())
            self.engines[name].hopes.clear()
            assert self.manager.held(name) == len(self.engines[name].leases)
            self.manager.detach(name)
        self.engines.clear()
        self.clock.advance(1)
        self._step()
        for _ in range(DRAIN_STEPS_MAX):
            if self.mover.idle:
                break
            for number in list(self.mover.pending):
                self.mover.end(number, frozenset())
            self.clock.advance(1)
            self._step()
        assert self.mover.idle
        assert not self.offers, "an offer was not answered"
        self.manager.populate(0, SLOTS)
        counts = self.manager.counts()
        assert counts[SlotState.FREE] + counts[SlotState.READY] == SLOTS, "a slot leaked"
        assert counts[SlotState.READY] == len(self.arena.visible)
        names = [EngineId(f"drain {number}") for number in range(-(-SLOTS // ALLOWANCE))]
        for name in names:
            self.manager.attach(name)
            self.arena.apply_lease(name, self.manager.lease(name, SLOTS))
        assert self.manager.counts()[SlotState.LEASED] == SLOTS, "a slot cannot be had again"
        for name in names:
            self.manager.detach(name)
        self.manager.check()
        assert self.manager.counts()[SlotState.FREE] == SLOTS
        MARKS["drained"] += 1


def trailers(arena: Arena, slots: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array([arena.trailers[slot] for slot in slots], np.uint64)
