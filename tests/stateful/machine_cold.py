"""The mover ends jobs, late, badly or not at all; and scenes between warm and cold."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.stateful.machine_stores import StoreMachine
from tests.stateful.others import PEER
from tests.stateful.space import ENGINES, MARKS, REQUESTS, SLOTS, chains, dice, engines, key_of, requests
from tieredkv.brain.intake import Offered
from tieredkv.brain.moves import Fetch, JobId, Offer
from tieredkv.types import EngineId, RequestId, SlotState

ENDINGS = st.sampled_from(["well", "well", "well", "badly", "in part", "untouched"])


class ColdMachine(StoreMachine):
    """What comes back from cold is what went there, and nobody waits for what does not come."""

    @precondition(lambda self: self.mover.pending)
    @rule(which=st.integers(0, 3), ending=ENDINGS, stepped=st.booleans())
    def end_a_move(self, which: int, ending: str, stepped: bool) -> None:
        """Jobs may end in any order; a cancelled one often moves nothing."""
        pending = list(self.mover.pending)
        self._end(pending[which % len(pending)], ending)
        if stepped:
            self._step()

    def _end(self, number: JobId, ending: str) -> None:
        job = self.mover.pending[number]
        if number in self.mover.cancelled:
            MARKS["a cancelled move ended"] += 1
        elif ending != "well":
            MARKS["a demotion failed" if job in self.mover.demotions() else "a promotion failed"] += 1
        failed = {"badly": range(len(job)), "in part": range(1)}.get(ending, range(0))
        self.mover.end(number, frozenset(failed), untouched=ending == "untouched")

    @rule(count=st.integers(1, 2), name=engines, request=requests, path=chains, cold=st.booleans())
    def refuse_moves(self, count: int, name: EngineId, request: RequestId, path: str, cold: bool) -> None:
        """The mover's queue is full, for a demotion or for a load."""
        if cold:
            self.demote_all(name, path)
            self.mover.refusals = count
            self.arrive(name, request, path)
            self._step()
        else:
            self.store(name, path)
            self.mover.refusals = count
            self._crowd(name)

    @rule(count=st.integers(1, 2))
    def cold_refuses(self, count: int) -> None:
        self.cold_admission.refusals = count

    @precondition(lambda self: self.mover.pending)
    @rule(dice=dice)
    def kill_mover(self, dice: int) -> None:
        """Its owner answers for it."""
        if dice:
            return
        MARKS["mover killed"] += 1
        for number in list(self.mover.pending):
            self._end(number, "badly")

    @rule(name=engines, path=chains)
    def demote_all(self, name: EngineId, path: str, window: int = SLOTS) -> None:
        """A chain is stored and leaves for cold, as far as it can."""
        self.mover.refusals = self.cold_admission.refusals = self.admission.refusals = 0
        self.store(name, path, window)
        self._settle()
        before = {engine: set(self.engines[engine].leases) for engine in ENGINES if self._here(engine)}
        for _ in range(3):
            for engine in before:
                self.lease(engine, self.manager.counts()[SlotState.FREE])
            self._settle()
        # What is safe goes only when somebody needs its slot.
        for engine in before:
            self.lease(engine, SLOTS)
        for engine, leases in before.items():
            self._give_back(engine, set(self.engines[engine].leases) - leases)

    def _settle(self) -> None:
        for _ in range(3):
            self._step()
            for number in list(self.mover.pending):
                self._end(number, "well")
        self._step()

    def _crowd(self, name: EngineId) -> None:
        """Somebody leases what is FREE, so that the low mark is reached; then lets go."""
        if not self._here(name):
            return
        before = set(self.engines[name].leases)
        self.lease(name, self.manager.counts()[SlotState.FREE])
        self._step()
        MARKS["demoting"] += self.manager.counts()[SlotState.DEMOTING]
        self._give_back(name, set(self.engines[name].leases) - before)

    @rule(name=engines, request=requests, path=chains)
    def ask_for_what_is_leaving(self, name: EngineId, request: RequestId, path: str) -> None:
        self.store(name, path)
        self._crowd(name)
        leaving = {slot for job in self.mover.demotions() for slot in job.slots}
        before = {slot for reads in self.engines[name].reads.values() for slot in reads} if self._here(name) else set()
        self.arrive(name, request, path)
        if self._here(name):
            now = {slot for reads in self.engines[name].reads.values() for slot in reads}
            if leaving & (now - before):
                MARKS["kept"] += 1

    @rule(first=requests, second=requests, path=chains, ending=ENDINGS)
    def two_ask_for_what_is_cold(self, first: RequestId, second: RequestId, path: str, ending: str) -> None:
        one, other, _ = ENGINES
        self.demote_all(one, path)
        self.arrive(one, first, path)
        self._step()
        loading = bool(self.mover.promotions())
        self.arrive(other, second, path)
        self._step()
        if loading and self._here(other) and second in self.engines[other].hopes:
            MARKS["two wait for one load"] += 1
        for job in self.mover.promotions():
            self._end(job.number, ending)
        self._step()

    @precondition(lambda self: len(self.strides) > 1)
    @rule(name=engines, request=requests, path=st.sampled_from(("01", "100")), ending=ENDINGS)
    def ask_for_a_window_that_slid(self, name: EngineId, request: RequestId, path: str, ending: str) -> None:
        """The second group has the chain's end only, as it was stored."""
        if self.absent:
            return
        self.reset(0)
        self.demote_all(name, path, window=1)
        self.release(name, request)
        self.arrive(name, request, path)
        self._step()
        for job in self.mover.promotions():
            self._end(job.number, ending)
        self._step()

    def _begin_to_load(self, name: EngineId, request: RequestId, path: str) -> bool:
        """A request waits for what is cold, if all goes well."""
        self.demote_all(name, path)
        self.arrive(name, request, path)
        self._step()
        return bool(self.mover.promotions()) and self._here(name)

    def _nobody_waits(self, name: EngineId) -> None:
        """The mover may still write: nobody gets the slots, whoever asks."""
        if self.manager.counts()[SlotState.QUARANTINED] and not self.absent:
            MARKS["quarantined for the mover"] += 1
            self.manager.end_quarantine()
        self._crowd(name)

    @rule(name=engines, request=requests, path=chains)
    def release_while_loading(self, name: EngineId, request: RequestId, path: str) -> None:
        if self._begin_to_load(name, request, path):
            self.release(name, request)
            self._nobody_waits(name)

    @rule(name=engines, request=requests, path=chains)
    def load_too_late(self, name: EngineId, request: RequestId, path: str) -> None:
        if self._begin_to_load(name, request, path):
            MARKS["late"] += 1
            self.step(3)
            self._nobody_waits(name)

    @precondition(lambda self: not self.absent)
    @rule(name=engines, request=requests, path=chains)
    def reset_while_loading(self, name: EngineId, request: RequestId, path: str) -> None:
        if self._begin_to_load(name, request, path):
            MARKS["reset while loading"] += 1
            self.reset(0)
            self._nobody_waits(name)

    @rule(name=engines, request=requests, path=chains)
    def die_while_loading(self, name: EngineId, request: RequestId, path: str) -> None:
        if self._begin_to_load(name, request, path):
            MARKS["engine killed while loading"] += 1
            del self.engines[name]
            self.manager.detach(name)
            self._nobody_waits(name)

    @rule(name=engines, request=requests, path=chains)
    def mover_dies_while_loading(self, name: EngineId, request: RequestId, path: str) -> None:
        if self._begin_to_load(name, request, path):
            self.kill_mover(0)
            self._step()

    @rule(name=engines, path=chains, ending=ENDINGS)
    def end_demotions(self, name: EngineId, path: str, ending: str) -> None:
        self.store(name, path)
        self._crowd(name)
        for job in self.mover.demotions():
            self._end(job.number, ending)
        self._step()

    @rule(request=requests, path=chains)
    def publish_what_is_loading(self, request: RequestId, path: str) -> None:
        one, other, _ = ENGINES
        if self._begin_to_load(one, request, path):
            self.store(other, path)

    @precondition(lambda self: not self.absent)
    @rule(name=engines, path=chains)
    def reset_while_demoting(self, name: EngineId, path: str) -> None:
        self.store(name, path)
        self._crowd(name)
        if self.mover.demotions():
            MARKS["reset while demoting"] += 1
        self.reset(0)
        self.store(name, path)

    @rule(name=engines, path=chains)
    def a_parent_leaves_before_its_child(self, name: EngineId, path: str) -> None:
        """Its child is still on its way to cold, and must not be found without it."""
        self.store(name, path)
        self._crowd(name)
        self.lease(name, SLOTS)
        moving = [slot for job in self.mover.demotions() for slot in job.slots]
        if any(slot not in self.arena.visible.values() for slot in moving):
            MARKS["hidden"] += 1

    @rule(name=engines, path=chains)
    def publish_under_what_is_leaving(self, name: EngineId, path: str) -> None:
        self.store(name, path[:1])
        self._crowd(name)
        head, below = (0, key_of(path[:1])), (0, key_of(path[: 2 * self.strides[0]]))
        leaving = head in self.arena.visible and below not in self.arena.visible and self.mover.demotions()
        self.store(name, path)
        if leaving and self._here(name) and below in self.arena.visible:
            MARKS["published under what was leaving"] += 1

    @rule(request=requests, path=chains)
    def load_slot_by_slot(self, request: RequestId, path: str) -> None:
        """One slot is FREE at a time, and the chain comes in parts."""
        one, other, _ = ENGINES
        self.demote_all(one, path)
        if not (self._here(one) and self._here(other)):
            return
        self.arrive(one, request, path)
        before = set(self.engines[other].leases)
        self.lease(other, self.manager.counts()[SlotState.FREE] - 2)
        self._settle()
        self._give_back(other, set(self.engines[other].leases) - before)
        self._settle()

    @rule(name=engines)
    def ask_again_after_a_failure(self, name: EngineId) -> None:
        """A request that was disappointed once does not wait a second time."""
        if not self._here(name):
            return
        request, path = REQUESTS[0], "0000"
        self.release(name, request)
        self.demote_all(name, path)
        self.arrive(name, request, path)
        self._step()
        if not self.mover.promotions():
            return
        for job in self.mover.promotions():
            self._end(job.number, "badly")
        self._step()
        engine = self.engines[name]
        if request in engine.hopes or request in engine.ended:
            return
        chain = [key_of(path[: depth + 1]) for depth in range(len(path))]
        again = self.manager.arrive(
            name, request, chain, strides=self.strides, tokens=4, tenant="", hints={}, again=True
        )
        assert not again.coming, "waits again for what failed"
        MARKS["no second hope"] += 1
        self.release(name, request)

    # --- another node ---------------------------------------------------------------------------------

    @rule(path=chains, start=st.integers(0, 2), page=st.booleans(), old=st.booleans())
    def other_node_stores(self, path: str, start: int, page: bool, old: bool) -> None:
        """It has a part of a chain; perhaps of former weights."""
        for group, stride in enumerate(self.strides):
            for end in range(stride, len(path) + 1, stride):
                if end > start:
                    key = key_of(path[:end])
                    tag = ("kv", self.arena.weights - 1, group, key) if old else self.arena.content(group, key)
                    self.other.hold(group, key, tag, page=page)

    @rule(place=st.integers(0, 4))
    def other_node_evicts(self, place: int) -> None:
        self.other.lose(place)

    @rule(reachable=st.booleans(), is_home=st.booleans())
    def other_node_changes(self, reachable: bool, is_home: bool) -> None:
        self.other.reachable, self.other.is_home = reachable, is_home

    @rule(name=engines, request=requests, path=chains, ending=ENDINGS, stale=st.booleans())
    def ask_for_what_another_node_has(
        self, name: EngineId, request: RequestId, path: str, ending: str, stale: bool
    ) -> None:
        self.other.reachable = True
        self.other_node_stores(path, 0, False, False)
        before = len(self.mover.promotions())
        self.arrive(name, request, path)
        self._step()
        for job in self.mover.promotions()[before:]:
            if isinstance(job, Fetch):
                MARKS["fetching"] += 1
                if stale:
                    self.other.lose(job.places[0])
            self._end(job.number, ending)
        distrusted = self.other.distrusted
        self._step()
        if self.other.distrusted > distrusted:
            MARKS["distrusted"] += 1

    @rule(name=engines, path=chains, ending=ENDINGS)
    def offer_to_another_node(self, name: EngineId, path: str, ending: str) -> None:
        self.other.reachable = self.other.is_home = True
        self.store(name, path)
        self._crowd(name)
        for job in self.mover.demotions():
            if isinstance(job, Offer):
                MARKS["offered away"] += 1
            self._end(job.number, ending)
        self._step()
        self.other.is_home = False

    @precondition(lambda self: self.copies is not None)
    @rule(path=chains, kind=st.sampled_from(["well", "well", "well", "twice", "group", "self", "position"]))
    def other_node_offers(self, path: str, kind: str) -> None:
        """This node's cold pool is somebody's home. What it is offered may be nonsense."""
        self.other_node_stores(path, 0, False, False)
        rows: list[Offered] = []
        for (group, key), copy in self.other.told.items():
            depth = len(key.rstrip(b"-"))
            parent = key_of(key[: depth - 1].decode())
            rows.append(Offered(group, key, parent, depth - 1, copy.place, copy.generation))
        rows.sort(key=lambda row: (row.position, row.group))
        last = rows[-1]
        match kind:
            case "twice":
                rows.append(last)
            case "group":
                rows.append(replace(last, group=9))
            case "self":
                rows.append(replace(last, parent=last.key))
            case "position":
                rows.append(replace(last, position=-1))
            case _:
                pass
        self.tickets += 1
        self.offers[self.tickets] = rows
        self.manager.offered(PEER, self.tickets, rows)
