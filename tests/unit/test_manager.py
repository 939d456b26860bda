"""TierManager by hand: one test per promise that a reader of its docstrings would expect."""

from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest

from tieredkv.brain.sessions import Sessions
from tieredkv.clock import ManualClock
from tieredkv.manager import DEFERRED_MAX, AdoptedChunk, Found, TierManager
from tieredkv.policy import LRU, AdmitAll, EvictionPolicy
from tieredkv.policy.gix import GIX
from tieredkv.policy.hints import UseHints
from tieredkv.trace import Arrival
from tieredkv.types import KEY_BYTES_MAX, KEY_BYTES_MIN, EngineId, Generation, Key, RequestId, SlotId, SlotState

A, B = EngineId("a"), EngineId("b")
R, Q = RequestId("r"), RequestId("q")


def chain(name: str, length: int) -> list[Key]:
    return [Key(sha256(f"{name} {position}".encode()).digest()) for position in range(length)]


class Recorder:
    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []

    def arrived(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)


def make(
    slots: int = 8,
    *,
    groups: int = 1,
    share: float = 1.0,
    populated: bool = True,
    next_generation: int = 1,
    clock: ManualClock | None = None,
    record: Recorder | None = None,
    policy: EvictionPolicy | None = None,
) -> TierManager:
    manager = TierManager(
        slots=slots,
        groups=groups,
        policy=policy or LRU(slots),
        admission=AdmitAll(),
        clock=clock or ManualClock(),
        engine_share_max=share,
        next_generation=next_generation,
        record=record,
    )
    if populated:
        manager.populate(0, slots)
        manager.attach(A)
        manager.attach(B)
    return manager


def int32(values: object) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def store(manager: TierManager, keys: list[Key], *, start: int = 0, engine: EngineId = A, group: int = 0) -> list[int]:
    """Lease and publish keys[start:]; the slots."""
    leased = manager.lease(engine, len(keys) - start)
    parents = [Key(b""), *keys][start : len(keys)]
    positions = int32(range(start, len(keys)))
    published = manager.publish(engine, group, keys[start:], parents, positions, leased.slots)
    assert published.rows.tolist() == list(range(len(keys) - start))
    assert published.generations.tolist() == leased.generations.tolist()
    slots: list[int] = leased.slots.tolist()
    return slots


def arrive(
    manager: TierManager,
    keys: list[Key],
    *,
    engine: EngineId = A,
    request: RequestId = R,
    strides: tuple[int, ...] = (1,),
) -> Found:
    return manager.arrive(engine, request, keys, strides=strides, tokens=len(keys), tenant="t", hints={})


class TestFinding:
    def test_another_engine_finds_what_one_stored(self) -> None:
        manager, keys = make(), chain("x", 3)
        slots = store(manager, keys)
        found = arrive(manager, keys, engine=B)
        assert found.slots[0].tolist() == slots
        assert found.generations[0].tolist() == [1, 2, 3]

    def test_holes_are_told_and_absent_tails_are_left_out(self) -> None:
        manager, keys = make(), chain("x", 6)
        store(manager, keys[:4], start=2)
        found = arrive(manager, keys)
        assert found.slots[0].tolist()[:2] == [-1, -1]
        assert len(found.slots[0]) == 4
        assert found.generations[0].tolist()[:2] == [0, 0]

    def test_each_group_has_its_own_stride(self) -> None:
        manager, keys = make(groups=2), chain("x", 5)
        fine = store(manager, keys)
        leased = manager.lease(A, 2)
        manager.publish(A, 1, [keys[1], keys[3]], [keys[0], keys[2]], int32([1, 3]), leased.slots)
        found = arrive(manager, keys, strides=(1, 2))
        assert [slots.tolist() for slots in found.slots] == [fine, leased.slots.tolist()]

    def test_evicted_positions_are_told_from_unknown_ones(self) -> None:
        manager, keys = make(4), chain("x", 4)
        store(manager, keys)
        manager.lease(A, 2)
        assert arrive(manager, [*keys, *chain("y", 2)]).evicted == 2

    def test_an_empty_key_ends_what_a_peer_asks_for(self) -> None:
        for eviction in (LRU(8), GIX(8)):
            manager = make(policy=eviction)
            keys = chain("x", 4)
            store(manager, keys[:2])
            found = arrive(manager, [*keys[:2], Key(b""), *keys[2:]])
            assert len(found.slots[0]) == 2
            assert not len(arrive(manager, [Key(b"")], request=Q).slots[0])
            manager.step()
            manager.check()

    @pytest.mark.parametrize("nonsense", ["twice", "long", "short"])
    def test_what_cannot_be_in_a_chain_ends_it(self, nonsense: str) -> None:
        manager, keys = make(), chain("x", 4)
        store(manager, keys)
        key = {"twice": keys[0], "long": Key(b"k" * (KEY_BYTES_MAX + 1)), "short": Key(b"k" * (KEY_BYTES_MIN - 1))}
        found = arrive(manager, [*keys[:2], key[nonsense], *keys[2:]])
        assert len(found.slots[0]) == 2
        manager.step()
        manager.check()

    def test_nothing_is_found_after_a_reset(self) -> None:
        manager, keys = make(), chain("x", 3)
        store(manager, keys)
        assert manager.reset().evicted == {0: keys}
        found = arrive(manager, keys)
        assert not len(found.slots[0])
        assert found.evicted == 0


class TestEviction:
    def test_the_least_recently_used_chain_goes_first_and_from_its_tail(self) -> None:
        manager, x, y = make(6), chain("x", 3), chain("y", 3)
        store(manager, x)
        store(manager, y)
        arrive(manager, x)
        manager.release(A, R)
        assert manager.lease(A, 4).evicted == {0: [*reversed(y), x[2]]}

    def test_a_use_that_the_gpu_served_refreshes_the_chain(self) -> None:
        """The whole chain of a request is used, also where only its head is resident."""
        manager, x, y = make(4), chain("x", 4), chain("y", 2)
        store(manager, x[:2])
        store(manager, y)
        arrive(manager, x)
        manager.release(A, R)
        assert manager.lease(A, 2).evicted == {0: [y[1], y[0]]}

    def test_a_store_refreshes_the_prefix_that_it_continues(self) -> None:
        manager, x, y = make(5), chain("x", 3), chain("y", 2)
        store(manager, x[:2])
        store(manager, y)
        store(manager, x, start=2)
        assert manager.lease(A, 2).evicted == {0: [y[1], y[0]]}

    def test_pinned_chunks_stay_until_they_are_released(self) -> None:
        manager, keys = make(4), chain("x", 4)
        store(manager, keys)
        arrive(manager, keys[:3], engine=B)
        assert len(manager.lease(A, 4).slots) == 1
        manager.release(B, R)
        assert len(manager.lease(A, 4).slots) == 3

    def test_all_groups_of_a_position_leave_together(self) -> None:
        manager, keys = make(6, groups=2), chain("x", 3)
        store(manager, keys)
        store(manager, keys, group=1)
        assert manager.lease(A, 1).evicted == {0: [keys[2]], 1: [keys[2]]}
        assert manager.counts()[SlotState.FREE] == 1


class TestShare:
    def test_an_engine_holds_no_more_than_its_share(self) -> None:
        manager, keys = make(8, share=0.5), chain("x", 3)
        store(manager, keys)
        arrive(manager, keys)
        assert len(manager.lease(A, 5).slots) == 1
        assert manager.held(A) == 4
        assert len(manager.lease(B, 9).slots) == 4

    def test_an_answer_is_cut_from_its_tail_in_all_groups(self) -> None:
        manager, keys = make(8, groups=2, share=0.5), chain("x", 3)
        for group in range(2):
            store(manager, keys, group=group, engine=B)
        manager.lease(A, 1)
        found = arrive(manager, keys, strides=(1, 1))
        assert [len(slots) for slots in found.slots] == [1, 1]
        assert manager.held(A) == 3

    def test_a_slot_counts_once_however_many_requests_pin_it(self) -> None:
        manager, keys = make(8, share=0.5), chain("x", 4)
        store(manager, keys, engine=B)
        for request in (R, Q):
            assert len(arrive(manager, keys, request=request).slots[0]) == 4
        manager.release(A, R)
        assert manager.held(A) == 4
        manager.release(A, Q)
        assert manager.held(A) == 0


class TestStores:
    def test_a_chunk_that_is_there_already_is_dropped(self) -> None:
        manager, keys = make(), chain("x", 2)
        store(manager, keys)
        leased = manager.lease(B, 2)
        published = manager.publish(B, 0, keys, [Key(b""), keys[0]], int32([0, 1]), leased.slots)
        assert not len(published.rows)
        assert manager.tallies.publications == {"stored": 2, "present": 2}
        assert manager.counts()[SlotState.FREE] == 6

    def test_slots_of_others_are_left_alone(self) -> None:
        manager, keys = make(), chain("x", 3)
        leased = manager.lease(B, 1)
        slots = int32([leased.slots[0], -1, 99])
        assert not len(manager.publish(A, 0, keys, [Key(b""), *keys[:2]], int32([0, 1, 2]), slots).rows)
        manager.give_back(A, slots)
        assert manager.tallies.publications == {"foreign": 3}
        assert manager.held(B) == 1

    def test_what_was_leased_before_a_reset_is_not_published_after_it(self) -> None:
        manager, keys = make(), chain("x", 1)
        leased = manager.lease(A, 1)
        manager.reset()
        assert not len(manager.publish(A, 0, keys, [Key(b"")], int32([0]), leased.slots).rows)
        assert manager.tallies.publications == {"stale": 1}
        assert manager.counts()[SlotState.FREE] == 8

    def test_a_cycle_of_parents_is_refused(self) -> None:
        """It would shield its members from eviction for ever."""
        manager, (x, y, z) = make(), chain("x", 3)
        leased = manager.lease(A, 3)
        published = manager.publish(A, 0, [x, y, z], [z, x, y], int32([1, 2, 3]), leased.slots)
        assert published.rows.tolist() == [0, 1]
        assert manager.tallies.publications == {"stored": 2, "nonsense": 1}
        assert len(manager.lease(A, 8).slots) == 8

    @pytest.mark.parametrize(
        ("key", "parent", "position", "group"),
        [
            (b"short", b"", 0, 0),
            (b"k" * 65, b"", 0, 0),
            (b"k" * 32, b"short", 1, 0),
            (b"k" * 32, b"p" * 65, 1, 0),
            (b"k" * 32, b"p" * 32, 0, 0),
            (b"k" * 32, b"", -1, 0),
            (b"k" * 32, b"k" * 32, 1, 0),
            (b"k" * 32, b"", 0, 1),
            (b"k" * 32, b"", 0, -1),
        ],
    )
    def test_nonsense_is_counted_and_its_slot_is_free(
        self, key: bytes, parent: bytes, position: int, group: int
    ) -> None:
        manager = make()
        leased = manager.lease(A, 1)
        assert not len(manager.publish(A, group, [Key(key)], [Key(parent)], int32([position]), leased.slots).rows)
        assert manager.tallies.publications == {"nonsense": 1}
        assert manager.counts()[SlotState.FREE] == 8
        manager.check()


class TestRestart:
    def _adopted(self, keys: list[Key]) -> TierManager:
        manager = make(8, populated=False, next_generation=50)
        manager.adopt(
            [
                AdoptedChunk(SlotId(slot), Generation(slot + 1), 0, key, keys[slot - 1] if slot else Key(b""), slot)
                for slot, key in enumerate(keys)
            ]
        )
        manager.quarantine(int32([6]), np.array([9], np.uint64))
        manager.populate(0, 8)
        return manager

    def test_adopted_chunks_are_found_and_leave_from_their_tail(self) -> None:
        keys = chain("x", 4)
        manager = self._adopted(keys)
        manager.attach(A)
        found = arrive(manager, keys)
        assert found.slots[0].tolist() == [0, 1, 2, 3]
        assert found.generations[0].tolist() == [1, 2, 3, 4]
        manager.release(A, R)
        assert manager.lease(A, 5).evicted == {0: [keys[3], keys[2]]}

    def test_of_two_tenancies_of_a_chunk_the_newer_counts(self) -> None:
        manager, (key,) = make(4, populated=False, next_generation=9), chain("x", 1)
        manager.adopt([AdoptedChunk(SlotId(slot), Generation(slot + 5), 0, key, Key(b""), 0) for slot in range(2)])
        manager.populate(0, 4)
        manager.attach(A)
        assert arrive(manager, [key]).slots[0].tolist() == [1]
        assert manager.counts()[SlotState.FREE] == 3

    def test_quarantined_slots_are_nobodys_until_their_writer_is_back_or_gone(self) -> None:
        manager = self._adopted([])
        manager.attach(B)
        assert len(manager.lease(B, 8).slots) == 7
        manager.end_quarantine()
        assert manager.lease(B, 8).slots.tolist() == [6]

    def test_a_resumed_lease_is_published_with_its_old_generation(self) -> None:
        manager, (key,) = self._adopted([]), chain("x", 1)
        manager.attach(A)
        assert manager.resume(A, int32([6, 5, -1, 6])).tolist() == [6]
        manager.end_quarantine()
        assert manager.publish(A, 0, [key], [Key(b"")], int32([0]), int32([6])).generations.tolist() == [9]

    def test_interleaved_chains_are_found_whole(self) -> None:
        manager, x, y = make(8, populated=False, next_generation=9), chain("x", 4), chain("y", 4)
        chunks = [
            AdoptedChunk(SlotId(2 * at + side), Generation(2 * at + side + 1), 0, keys[at], [Key(b""), *keys][at], at)
            for at in range(4)
            for side, keys in enumerate((x, y))
        ]
        manager.adopt(chunks)
        manager.attach(A)
        assert arrive(manager, x).slots[0].tolist() == [0, 2, 4, 6]
        assert arrive(manager, y, request=Q).slots[0].tolist() == [1, 3, 5, 7]
        manager.check()


class TestEngines:
    def test_detaching_frees_leases_and_pins(self) -> None:
        manager, keys = make(), chain("x", 2)
        store(manager, keys)
        arrive(manager, keys)
        manager.lease(A, 3)
        manager.detach(A)
        assert manager.counts()[SlotState.LEASED] == 0
        assert len(manager.lease(B, 8).slots) == 8

    def test_keep_only_repairs_lost_releases(self) -> None:
        manager, keys = make(), chain("x", 2)
        store(manager, keys)
        arrive(manager, keys[:1], request=R)
        arrive(manager, keys, request=Q)
        manager.keep_only(A, {R})
        assert manager.held(A) == 1

    def test_a_pinned_chunk_outlives_a_reset_unseen(self) -> None:
        manager, keys = make(), chain("x", 2)
        store(manager, keys)
        arrive(manager, keys)
        manager.reset()
        assert manager.counts()[SlotState.READY] == 2
        assert len(manager.lease(B, 8).slots) == 6
        manager.release(A, R)
        assert manager.counts()[SlotState.FREE] == 2


class TestSteps:
    def test_the_access_is_told_after_the_answer_with_the_time_of_arrival(self) -> None:
        clock, recorder = ManualClock(), Recorder()
        manager, keys = make(clock=clock, record=recorder), chain("x", 2)
        clock.advance(3)
        arrive(manager, keys)
        assert not recorder.arrivals
        clock.advance(4)
        manager.step()
        assert [(arrival.now_s, arrival.chain) for arrival in recorder.arrivals] == [(3.0, keys)]

    def test_what_is_put_off_is_bounded(self) -> None:
        recorder = Recorder()
        manager, keys = make(record=recorder), chain("x", 2)
        for _ in range(DEFERRED_MAX + 1):
            arrive(manager, keys)
        assert len(recorder.arrivals) == DEFERRED_MAX

    def test_describe_is_one_line(self) -> None:
        manager = make()
        store(manager, chain("x", 2))
        assert manager.describe() == "8 slots (6 free, 2 ready); 2 positions; engines: a holds 0, b holds 0"


class Advised(LRU):
    """Notes what it is told of the future."""

    def __init__(self) -> None:
        super().__init__(8)
        self.advice: list[tuple[Key, UseHints]] = []

    def advise(self, key: Key, hints: UseHints, now_s: float) -> None:
        self.advice.append((key, hints))


def test_a_hint_reaches_the_last_chain_of_its_session() -> None:
    policy = Advised()
    manager = TierManager(slots=8, groups=1, policy=policy, admission=AdmitAll(), clock=ManualClock())
    manager.attach(A)
    long, other = chain("long", 3), chain("other", 2)
    for keys, tenant, session in ((long[:2], "", "s"), (other, "t", "s"), (long, "", "s"), (other, "", "")):
        manager.arrive(A, R, keys, strides=(1,), tokens=48, tenant=tenant, hints={"session": session})
    assert manager.hint("s", {"session_closed": True, "session": "ignored"})
    assert manager.hint("s", {"return_within_s": 60}, tenant="t")
    assert not manager.hint("s", {"keep": True}, tenant="unknown")
    assert not manager.hint("", {"keep": True})
    assert policy.advice == [
        (long[2], UseHints(session="s", closed=True)),
        (other[1], UseHints(session="s", return_within_s=60.0)),
    ]
    manager.reset()
    assert not manager.hint("s", {"session_closed": True})
    manager.check()


def test_remembered_sessions_are_bounded() -> None:
    sessions = Sessions(2)
    keys = chain("any", 4)
    sessions.used("", "a", keys[0])
    sessions.used("", "b", keys[1])
    sessions.used("", "a", keys[2])
    sessions.used("c", "", keys[3])
    sessions.check()
    assert sessions.last("", "a") == keys[2]
    assert sessions.last("", "b") is None
    assert sessions.last("c", "") == keys[3]
    assert sessions.last("", "c") is None
