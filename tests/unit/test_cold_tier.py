"""The cold tier of the brain by hand, with a mover that does what it is told."""

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pytest

from tieredkv.brain.cold import Copies
from tieredkv.brain.elsewhere import Elsewhere, Nowhere
from tieredkv.brain.intake import Offered
from tieredkv.brain.links import Links
from tieredkv.brain.moves import Demote, Job, JobId, Moved, PeerId, Promote
from tieredkv.brain.values import Found, Progress
from tieredkv.clock import ManualClock
from tieredkv.manager import ColdTier, TierManager
from tieredkv.policy import LRU, AdmitAll
from tieredkv.policy.placement import Placement, Rate
from tieredkv.types import EngineId, Key, RequestId, SlotState

A, B = EngineId("a"), EngineId("b")
R, Q = RequestId("r"), RequestId("q")
SLOTS = 8
DEADLINE_S = 5.0
RECOMPUTE_S = 1.0


def chain(name: str, length: int) -> list[Key]:
    return [Key(sha256(f"{name} {position}".encode()).digest()) for position in range(length)]


@dataclass
class HandMover:
    """Ends jobs when told to."""

    pending: dict[JobId, Job] = field(default_factory=dict)
    cancelled: list[JobId] = field(default_factory=list)
    results: list[Moved] = field(default_factory=list)
    accepts: bool = True

    offers: int = 1024

    def room(self) -> int:
        return 1024

    def offer_room(self) -> int:
        return self.offers

    def submit(self, job: Job) -> bool:
        if self.accepts:
            self.pending[job.number] = job
        return self.accepts

    def cancel(self, number: JobId) -> None:
        self.cancelled.append(number)

    def poll(self, count_max: int) -> list[Moved]:
        results, self.results = self.results[:count_max], self.results[count_max:]
        return results

    def end(self, *, failed: frozenset[int] = frozenset(), seconds: float = 0.1) -> None:
        """End all that is pending."""
        for number in list(self.pending):
            self.results.append(Moved(number, failed, seconds * len(self.pending.pop(number))))

    def jobs(self, kind: type[Job]) -> list[Job]:
        return [job for job in self.pending.values() if isinstance(job, kind)]


class Node:
    """A manager with a cold tier, and one engine."""

    def __init__(
        self, *, low: int = 2, high: int = 4, pages: int = 16, copies: Copies = Copies.CLEAN, share: float = 1.0,
        elsewhere: Elsewhere | None = None, ttl_s: float | None = None, groups: int = 1,
    ) -> None:  # fmt: skip
        self.clock = ManualClock()
        self.mover = HandMover()
        self.strides = (1,) * groups
        self.placement = Placement(Rate(RECOMPUTE_S, measured=True))
        self.manager = TierManager(
            slots=SLOTS,
            groups=groups,
            policy=LRU(SLOTS),
            admission=AdmitAll(),
            clock=self.clock,
            engine_share_max=share,
            cold=ColdTier(
                pages=pages,
                policy=LRU(pages),
                admission=AdmitAll(),
                mover=self.mover,
                placement=self.placement,
                low_free=low,
                high_free=high,
                copies=copies,
                deadline_s=DEADLINE_S,
                elsewhere=elsewhere or Nowhere(),
                ttl_s=ttl_s,
            ),
        )
        self.manager.populate(0, SLOTS)
        self.manager.attach(A)

    def store(self, keys: list[Key], start: int = 0, group: int = 0) -> None:
        slots = self.manager.lease(A, len(keys) - start).slots
        at = np.arange(start, len(keys), dtype=np.int32)
        self.manager.publish(A, group, keys[start:], [Key(b""), *keys][start : len(keys)], at, slots)

    def store_under(self, parent: Key, key: Key, position: int, group: int = 0) -> None:
        slots = self.manager.lease(A, 1).slots
        self.manager.publish(A, group, [key], [parent], np.array([position], np.int32), slots)

    def arrive(self, keys: list[Key], request: RequestId = R, session: str = "") -> Found:
        return self.manager.arrive(
            A, request, keys, strides=self.strides, tokens=len(keys), tenant="", hints={"session": session}
        )

    def step(self, seconds: float = 0.0) -> list[Progress]:
        self.clock.advance(seconds)
        progress = list(self.manager.step().progress)
        self.manager.check()
        return progress

    def count(self, state: SlotState) -> int:
        return self.manager.counts()[state]


def cold_node(keys: list[Key], *, copies: Copies = Copies.CLEAN, share: float = 1.0) -> Node:
    """A node that has `keys` in cold only, and nothing on its way."""
    node = Node(low=1, high=4, copies=copies, share=share)
    node.manager.attach(B)
    node.store(keys)
    demote_all(node)
    return node


def hybrid_node(keys: list[Key], window: int, elsewhere: Elsewhere | None = None) -> Node:
    """A node that has in cold only what an engine stores whose second group slides: the last `window` chunks of it."""
    node = Node(low=1, high=SLOTS, groups=2, elsewhere=elsewhere)
    node.manager.attach(B)
    node.store(keys)
    node.store(keys, start=len(keys) - window, group=1)
    demote_all(node)
    return node


def demote_all(node: Node) -> None:
    """What is in warm leaves for cold."""
    chunks = node.count(SlotState.READY)
    rest = node.manager.lease(B, SLOTS - chunks).slots
    node.step()
    node.mover.end()
    node.step()
    node.manager.give_back(A, node.manager.lease(A, chunks).slots)
    node.manager.give_back(B, rest)
    assert node.count(SlotState.FREE) == SLOTS


class TestDemotion:
    def test_nothing_moves_while_there_is_room(self) -> None:
        node = Node()
        node.store(chain("x", SLOTS - 2))
        node.step()
        assert not node.mover.pending

    def test_nobody_is_given_up_ahead_of_need_who_could_not_be_offered(self) -> None:
        node, keys = Node(), chain("x", SLOTS - 1)
        node.mover.offers = 0
        node.store(keys)
        node.step()
        assert node.count(SlotState.READY) == SLOTS - 1
        node.mover.offers = 1
        node.step()
        assert node.count(SlotState.DEMOTING) == 3

    def test_a_child_keeps_all_that_is_leaving_above_it(self) -> None:
        node, keys = Node(), chain("x", SLOTS)
        node.store(keys[:-1])
        node.step()
        assert node.count(SlotState.DEMOTING) == 3
        node.store_under(keys[-2], keys[-1], SLOTS - 1)
        assert node.count(SlotState.DEMOTING) == 0
        node.mover.end()
        node.step()
        assert len(node.arrive(keys).slots[0]) == SLOTS

    def test_the_tail_is_copied_below_the_low_mark_and_found_meanwhile(self) -> None:
        node, keys = Node(), chain("x", SLOTS - 1)
        node.store(keys)
        node.step()
        (job,) = node.mover.jobs(Demote)
        assert list(job.keys) == keys[-3:]
        assert job.positions == (4, 5, 6)
        assert node.count(SlotState.DEMOTING) == 3
        assert len(node.arrive(keys).slots[0]) == SLOTS - 1

    def test_what_is_safe_is_found_until_somebody_needs_its_slot(self) -> None:
        node, keys = Node(), chain("x", SLOTS - 1)
        node.store(keys)
        node.step()
        node.mover.end()
        node.step()
        assert node.count(SlotState.DEMOTING) == 0
        leased = node.manager.lease(A, 2)
        assert leased.evicted == {0: [keys[-1]]}
        assert node.manager.tallies.evictions == {"safe": 1}
        node.manager.check()
        assert len(node.arrive(keys).slots[0]) == SLOTS - 2

    def test_what_is_asked_for_stays(self) -> None:
        node, keys = Node(), chain("x", SLOTS - 1)
        node.store(keys)
        node.step()
        node.arrive(keys)
        assert node.count(SlotState.DEMOTING) == 0
        node.mover.end()
        node.manager.release(A, R)
        node.step()
        assert len(node.arrive(keys).slots[0]) == SLOTS - 1

    def test_a_lease_never_waits(self) -> None:
        node, keys = Node(), chain("x", SLOTS)
        node.store(keys)
        leased = node.manager.lease(A, 3)
        assert len(leased.slots) == 3
        assert leased.evicted == {0: keys[:-4:-1]}
        assert node.manager.tallies.evictions == {"room": 3}

    def test_a_full_queue_is_no_reason_to_wait(self) -> None:
        node, keys = Node(), chain("x", SLOTS)
        node.mover.accepts = False
        node.store(keys)
        node.step()
        assert node.count(SlotState.FREE) == 4
        assert node.manager.tallies.evictions == {"room": 4}

    def test_what_could_not_be_copied_leaves_as_lost(self) -> None:
        node, keys = Node(), chain("x", SLOTS)
        node.store(keys)
        node.step()
        node.mover.end(failed=frozenset({0, 1, 2, 3}))
        node.step()
        assert node.manager.tallies.evictions == {"room": 4}
        assert node.count(SlotState.FREE) == 4
        assert not node.arrive(keys).coming

    def test_what_is_in_cold_needs_no_second_copy(self) -> None:
        keys = chain("x", 4)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        node.mover.end()
        node.step()
        node.manager.release(A, R)
        node.manager.lease(B, SLOTS - 4)
        node.step()
        assert not node.mover.pending
        assert len(node.manager.lease(A, SLOTS).evicted[0]) == 4
        assert node.manager.tallies.evictions == {"safe": 8}

    def test_a_chunk_that_is_copied_twice_takes_one_page(self) -> None:
        node, keys = Node(low=6, high=7), chain("x", 3)
        node.store(keys)
        node.step()
        # Their parent leaves, so they are hidden; then all of it is stored again.
        node.manager.give_back(A, node.manager.lease(A, 6).slots)
        node.store(keys)
        node.step()
        first, second = node.mover.jobs(Demote)
        assert first.keys == second.keys == (keys[1], keys[2])
        node.mover.end()
        node.step()
        assert len(node.arrive(keys).slots[0]) == 3

    def test_copies_of_all_that_is_stored(self) -> None:
        node, keys = Node(copies=Copies.ALL), chain("x", 3)
        node.store(keys)
        node.step()
        (job,) = node.mover.jobs(Demote)
        assert list(job.keys) == keys
        assert node.count(SlotState.DEMOTING) == 0


class TestPromotion:
    def test_what_is_cold_comes_head_first_and_is_pinned(self) -> None:
        keys = chain("x", 4)
        node = cold_node(keys)
        found = node.arrive([*keys, *chain("y", 2)])
        assert found.coming == 4
        assert not len(found.slots[0])
        assert not node.step()
        (job,) = node.mover.jobs(Promote)
        assert list(job.keys) == keys
        assert node.count(SlotState.LOADING) == node.manager.held(A) == 4
        node.mover.end()
        (progress,) = node.step()
        assert (progress.ready_to, progress.over) == (4, True)
        assert progress.slots.tolist() == list(job.slots)
        assert node.manager.held(A) == 4

    def test_a_load_makes_room_for_itself(self) -> None:
        keys, others = chain("x", 4), chain("y", SLOTS - 1)
        node = cold_node(keys)
        node.store(others)
        node.arrive(keys)
        progress: list[Progress] = []
        for _ in range(4):
            progress += node.step()
            node.mover.end()
        assert (progress[-1].ready_to, progress[-1].over) == (4, True)

    @pytest.mark.parametrize(("held", "stored"), [(2, [1, 2]), (2, [3, 1]), (1, [3]), (1, [2, 3])])
    def test_a_load_is_not_made_of_the_slots_that_it_needs(self, held: int, stored: list[int]) -> None:
        keys = chain("x", 4)
        node = cold_node(keys)
        node.manager.lease(B, held)
        assert node.arrive(keys).coming == 4
        # Meanwhile an engine stores some of them, and no slot is left: what leaves for the load are these.
        for at in stored:
            node.store_under(keys[at - 1], keys[at], at)
        node.manager.lease(B, 3)
        progress: list[Progress] = []
        for _ in range(5):
            progress += node.step()
            node.mover.end()
        progress += node.step(DEADLINE_S)
        assert progress[-1].over

    def test_headers_are_asked_for_what_came(self) -> None:
        keys = chain("x", 2)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        node.mover.end(failed=frozenset({1}))
        (loaded,) = node.manager.step().loaded
        assert loaded.rows == (0,)
        assert loaded.job.keys[0] == keys[0]

    def test_a_failure_is_a_miss_for_this_request_only(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        node.mover.end(failed=frozenset({1}))
        (progress,) = node.step()
        assert (progress.ready_to, progress.over) == (1, True)
        assert not node.arrive(keys).coming
        assert node.arrive(keys, Q).coming == 3

    def test_late_is_a_miss_and_its_slots_stay_quarantined(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        (progress,) = node.step(DEADLINE_S)
        assert (progress.ready_to, progress.over) == (0, True)
        assert node.count(SlotState.QUARANTINED) == 3
        assert node.mover.cancelled == list(node.mover.pending)
        assert len(node.manager.lease(A, SLOTS).slots) == SLOTS - 3
        node.mover.end()
        node.step()
        assert node.count(SlotState.QUARANTINED) == 0

    def test_two_requests_share_one_load(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        node.arrive(keys, Q)
        node.step()
        assert len(node.mover.jobs(Promote)) == 1
        node.manager.release(A, R)
        assert node.count(SlotState.LOADING) == 3
        node.mover.end()
        assert [progress.request for progress in node.step()] == [Q]

    def test_what_costs_more_than_it_saves_is_not_loaded(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        node.placement.loaded(None, 1, 2 * RECOMPUTE_S)
        assert not node.arrive(keys).coming

    def test_a_load_past_the_share_is_cut(self) -> None:
        keys = chain("x", 4)
        node = cold_node(keys, share=0.5)
        node.manager.lease(A, 1)
        assert node.arrive(keys).coming == 4
        node.step()
        node.mover.end()
        (progress,) = node.step()
        assert (progress.ready_to, progress.over) == (3, True)
        assert node.manager.held(A) == 4

    @pytest.mark.parametrize(("copies", "again"), [(Copies.CLEAN, 0), (Copies.SPARE, 0), (Copies.NONE, 1)])
    def test_only_without_copies_a_promoted_chunk_is_written_again(self, copies: Copies, again: int) -> None:
        keys = chain("x", 3)
        node = cold_node(keys, copies=copies)
        node.arrive(keys)
        node.step()
        node.mover.end()
        node.step()
        node.manager.release(A, R)
        node.manager.lease(B, SLOTS - 3)
        node.step()
        assert len(node.mover.jobs(Demote)) == again


class TestReset:
    def test_cold_forgets_what_it_has_and_what_is_on_its_way(self) -> None:
        node, keys = Node(), chain("x", SLOTS)
        node.store(keys)
        node.step()
        node.manager.reset()
        node.mover.end()
        node.step()
        assert node.count(SlotState.FREE) == SLOTS
        assert not node.arrive(keys).coming

    def test_who_waits_is_told_that_nothing_comes(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        node.arrive(keys)
        node.step()
        node.manager.reset()
        (progress,) = node.step()
        assert (progress.ready_to, progress.over, progress.slots.tolist()) == (0, True, [])


class TestPlacement:
    def test_costs_are_measured(self) -> None:
        placement = Placement(Rate(1.0))
        placement.loaded(None, 10, 1.0)
        assert placement.promote.value_s == pytest.approx(0.1)
        placement.loaded(None, 10, 2.0)
        assert placement.promote.value_s == pytest.approx(0.11)
        placement.computed(4, 2.0)
        assert placement.recompute.value_s == 0.5
        assert placement.saving_s == pytest.approx(0.39)

    def test_what_never_comes_back_is_written_no_more_but_for_a_probe(self) -> None:
        placement = Placement(Rate(1.0, measured=True))
        placement.demoted(1_000_000, 500_000.0)
        worth = [placement.worth_demoting() for _ in range(64)]
        assert sum(worth) == 4

    def test_a_load_must_be_sooner_than_computing(self) -> None:
        placement = Placement(Rate(1.0, measured=True))
        placement.loaded(None, 1, 0.5)
        assert placement.worth_loading({None: 10}, 9)
        assert not any(placement.worth_loading({None: 10}, 10) for _ in range(64)), "that much is on its way"

    def test_a_load_that_is_not_worth_it_is_tried_now_and_then(self) -> None:
        placement = Placement(Rate(1.0, measured=True))
        placement.loaded(None, 10, 30.0)
        worth = [placement.worth_loading({None: 10}, 0) for _ in range(64)]
        assert sum(worth) == 4
        assert not any(placement.worth_loading({None: 10}, 1) for _ in range(64))
        for _ in range(2):
            placement.loaded(None, 10, 3.0)
        assert placement.worth_loading({None: 10}, 0), "a pause of the machine is forgiven soon"


class TestLinks:
    def test_circles_are_refused(self) -> None:
        links, (a, b, c) = Links(), chain("x", 3)
        assert links.add(b, a, 1)
        assert not links.add(a, b, 2), "its child is above it"
        assert links.add(a, Key(b""), 0)
        assert not links.add(c, b, 1)
        links.remove(a)
        assert links.add(c, b, 2)
        links.check()


def test_a_damaged_page_is_forgotten() -> None:
    keys = chain("x", 2)
    node = cold_node(keys)
    assert node.arrive(keys).coming == 2
    node.step()
    (number,) = node.mover.pending
    node.mover.pending.clear()
    node.mover.results.append(Moved(number, frozenset({0, 1}), 0.1, unproven=frozenset({1})))
    node.step()
    assert node.arrive(keys, Q).coming == 1


class TestSeveralGroups:
    """A group whose window slides has holes on purpose: what is out of the window is never stored."""

    def test_what_a_sliding_window_left_out_does_not_end_the_wish(self) -> None:
        keys = chain("x", 4)
        node = hybrid_node(keys, window=2)
        assert node.arrive(keys).coming == 4
        node.step()
        (job,) = node.mover.jobs(Promote)
        assert list(zip(job.groups, job.positions, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
        node.mover.end()
        (progress,) = node.step()
        assert (progress.ready_to, progress.over) == (4, True)
        full, sliding = node.arrive(keys).slots
        assert [slot >= 0 for slot in full.tolist()] == [True] * 4
        assert [slot >= 0 for slot in sliding.tolist()] == [False, False, True, True]

    def test_what_no_group_has_ends_it(self) -> None:
        keys = chain("x", 6)
        node = hybrid_node(keys[:2], window=1)
        node.store_under(keys[3], keys[4], 4)
        demote_all(node)
        assert node.arrive(keys).coming == 2
        node.step()
        (job,) = node.mover.jobs(Promote)
        assert max(job.positions) == 1

    def test_a_hole_in_warm_does_not_hide_what_is_cold(self) -> None:
        keys = chain("x", 4)
        node = hybrid_node(keys, window=2)
        node.arrive(keys[:2])
        node.step()
        node.mover.end()
        node.step()
        assert node.arrive(keys, Q).coming == 4
        node.step()
        (job,) = node.mover.jobs(Promote)
        assert list(zip(job.groups, job.positions, strict=True)) == [(0, 2), (1, 2), (0, 3), (1, 3)]

    def test_what_failed_is_the_end_for_all_groups(self) -> None:
        keys = chain("x", 3)
        node = hybrid_node(keys, window=2)
        assert node.arrive(keys).coming == 3
        node.step()
        node.mover.end(failed=frozenset({2}))
        (progress,) = node.step()
        assert (progress.groups, progress.numbers) == ((0, 0), (0, 1))
        assert (progress.ready_to, progress.over) == (1, True)

    def test_a_chunk_of_several_positions_covers_all_of_them(self) -> None:
        keys = chain("x", 4)
        node = Node(low=1, high=SLOTS, groups=2)
        node.strides = (1, 2)
        node.manager.attach(B)
        node.store_under(keys[0], keys[1], 1, group=1)
        node.store_under(keys[2], keys[3], 3, group=1)
        node.store_under(keys[2], keys[3], 3)
        demote_all(node)
        assert node.arrive(keys).coming == 4

    def test_the_parent_that_a_position_came_with_counts(self) -> None:
        """Another group's engine names another one, as no honest engine does."""
        keys, (other,) = chain("x", 2), chain("y", 1)
        node = Node(low=5, high=6, groups=2)
        node.store([other])
        node.store(keys)
        node.store_under(other, keys[1], 1, group=1)
        node.step()
        (job,) = node.mover.jobs(Demote)
        assert job.keys == (other,)

    def test_nor_does_another_parent_count_while_it_is_leaving(self) -> None:
        keys, (other,) = chain("x", 2), chain("y", 1)
        node = Node(low=6, high=6, groups=2)
        node.store(keys)
        node.store([other])
        node.step()
        (job,) = node.mover.jobs(Demote)
        assert job.keys == (keys[1],)
        node.store_under(other, keys[1], 1, group=1)
        node.step()
        assert node.count(SlotState.DEMOTING) > 0


class TestNonsense:
    def test_a_chain_that_names_a_key_twice_ends_before_the_second(self) -> None:
        keys = chain("x", 3)
        node = cold_node(keys)
        assert node.arrive([keys[0], keys[1], keys[1], keys[2]]).coming == 2
        for _ in range(3):
            node.step()
            node.mover.end()
        assert not node.step()
        assert node.manager.held(A) == 2

    def test_parents_that_go_round_through_both_tiers_are_no_chain(self) -> None:
        node, (key, parent) = Node(), chain("x", 2)
        node.store_under(parent, key, 5)
        node.manager.offered(PeerId(0), 1, [Offered(0, parent, key, 9, 0, 1)])
        node.mover.end()
        node.step()
        node.arrive([key], session="s")
        assert node.manager.chain("s") == []
