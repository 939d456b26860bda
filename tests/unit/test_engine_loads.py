"""The scheduler's side while chunks come from cold or from other nodes."""

import numpy as np
import pytest

from tests.unit.scripted_sidecar import EPOCH
from tests.unit.test_engine_manager import DEADLINE_S, STEP, Bench, FakeRequest, attached, reconnect, request
from tests.unit.test_engine_manager import bench as bench  # noqa: PLC0414 (a fixture)
from tieredkv.metrics import FAILURES
from tieredkv.protocol import Arrive, Found, Loaded, Release
from tieredkv.vllm_client.compat import LookupResult, ScheduleEndContext
from tieredkv.vllm_client.manager import REFRESH_AFTER_S
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec

WAIT_S = 1.0
HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


def answer(bench: Bench, slots: list[int], coming: int) -> Arrive:
    (message,) = bench.heard(Arrive)
    array = np.array(slots, "<i4")
    generations = np.where(array >= 0, array + 100, 0).astype("<u8")
    found = Found(message.request, message.seq, [array.tobytes()], [generations.tobytes()], 0, coming, WAIT_S)
    bench.sidecar.say(found)
    bench.manager.poll()
    return message


def load(bench: Bench, asked: Arrive, slots: dict[int, int], *, over: bool, seq: int | None = None) -> None:
    numbers = np.array(list(slots), "<i4")
    array = np.array(list(slots.values()), "<i4")
    groups = np.zeros(len(slots), "<i4")
    bench.sidecar.say(
        Loaded(
            asked.request,
            asked.seq if seq is None else seq,
            groups.tobytes(),
            numbers.tobytes(),
            array.tobytes(),
            (array.astype("<u8") + 100).tobytes(),
            over,
        )
    )
    bench.manager.poll()


def waiting(bench: Bench) -> tuple[FakeRequest, Arrive]:
    """One chunk is there, three are coming, a fifth is not."""
    asked = request("a", 5)
    bench.manager.arrive(asked)
    return asked, answer(bench, [5], coming=4)


def test_what_is_coming_is_waited_for_and_loaded(bench: Bench) -> None:
    asked, message = waiting(bench)
    assert bench.look_up(asked) == [RETRY] * 5
    load(bench, message, {1: 6}, over=False)
    assert bench.look_up(asked) == [RETRY] * 5
    load(bench, message, {2: 7, 3: 8}, over=True)
    assert bench.look_up(asked) == [HIT] * 4 + [MISS]
    spec = bench.manager.prepare_load(asked.keys[:4], asked.context)
    assert isinstance(spec, SlotLoadStoreSpec)
    assert (spec.epoch, spec.slots.tolist(), spec.generations.tolist()) == (EPOCH, [5, 6, 7, 8], [105, 106, 107, 108])
    bench.manager.complete_load(set(asked.keys[:4]), asked.context)
    assert [each.request for each in bench.heard(Release)] == ["a"]


def test_what_does_not_come_in_time_is_a_miss_and_the_next_request_waits_again(bench: Bench) -> None:
    asked, message = waiting(bench)
    load(bench, message, {1: 6}, over=False)
    bench.clock.advance(10 * WAIT_S)
    bench.manager.poll()
    assert bench.look_up(asked) == [RETRY] * 5, "being queued costs nothing"
    bench.manager.refresh(asked)
    bench.clock.advance(WAIT_S + DEADLINE_S / 2)
    bench.manager.poll()
    assert bench.look_up(asked) == [RETRY] * 5
    bench.clock.advance(DEADLINE_S)
    bench.manager.poll()
    assert bench.look_up(asked) == [HIT, HIT, MISS, MISS, MISS]
    load(bench, message, {2: 7, 3: 8}, over=True)
    assert bench.look_up(asked) == [HIT, HIT, MISS, MISS, MISS], "too late"
    other = request("b", 2)
    bench.manager.arrive(other)
    answer(bench, [5], coming=2)
    assert bench.look_up(other) == [RETRY] * 2, "a slow load is no sign of a hung sidecar"


def test_nothing_came(bench: Bench) -> None:
    asked = request("a", 2)
    bench.manager.arrive(asked)
    message = answer(bench, [], coming=2)
    load(bench, message, {}, over=True)
    assert bench.look_up(asked) == [MISS] * 2
    bench.manager.on_schedule_end(ScheduleEndContext(("a",), ()))
    assert [each.request for each in bench.heard(Release)] == ["a"], "what was pinned meanwhile is let go"


def test_a_request_that_ends_while_it_waits_is_released(bench: Bench) -> None:
    asked, message = waiting(bench)
    bench.manager.on_request_finished(asked.context)
    assert [each.request for each in bench.heard(Release)] == ["a"]
    load(bench, message, {1: 6}, over=True)
    bench.clock.advance(WAIT_S * 2)
    bench.manager.on_schedule_end(STEP)
    assert bench.look_up(asked) == [MISS] * 5


def test_words_of_a_former_life_of_the_request_are_not_believed(bench: Bench) -> None:
    asked, message = waiting(bench)
    bench.manager.on_request_finished(asked.context)
    again = request("a", 5)
    bench.manager.arrive(again)
    load(bench, message, {1: 9, 2: 9, 3: 9}, over=True)
    answer(bench, [5], coming=0)
    assert bench.look_up(again) == [HIT] + [MISS] * 4


def test_who_asks_anew_goes_on_with_what_is_there(bench: Bench) -> None:
    asked = request("a", 3)
    bench.arrive(asked, [5])
    assert bench.look_up(asked) == [HIT, MISS, MISS]
    bench.clock.advance(REFRESH_AFTER_S * 2)
    bench.manager.refresh(asked)
    message = answer(bench, [5], coming=3)
    assert bench.look_up(asked) == [HIT, MISS, MISS]
    load(bench, message, {1: 6}, over=False)
    assert bench.look_up(asked) == [HIT, HIT, MISS]
    load(bench, message, {2: 7}, over=True)
    assert bench.look_up(asked) == [HIT, HIT, HIT]


def test_a_sidecar_that_dies_while_something_is_coming_is_a_miss(bench: Bench) -> None:
    asked, _ = waiting(bench)
    bench.sidecar.hang_up()
    bench.manager.poll()
    assert bench.look_up(asked) == [MISS] * 5


@pytest.mark.parametrize("numbers", [{9: 6}, {-1: 6}])
def test_numbers_that_cannot_be_end_tiering_and_no_request(bench: Bench, numbers: dict[int, int]) -> None:
    asked, message = waiting(bench)
    load(bench, message, numbers, over=True)
    assert bench.manager.broken
    assert bench.look_up(asked) == [MISS] * 5


def test_the_sidecar_may_be_asked_only_when_a_request_is_looked_at() -> None:
    with attached(asks_at_arrival=False) as bench:
        asked = request("a", 2)
        bench.manager.enqueue(asked)
        assert not bench.heard(Arrive)
        assert bench.look_up(asked) == [MISS] * 2, "only who does not ask first"
        bench.manager.refresh(asked)
        assert bench.look_up(asked) == [RETRY] * 2
        answer(bench, [5, 6], coming=0)
        assert bench.look_up(asked) == [HIT] * 2
        bench.manager.refresh(asked)
        assert not bench.heard(Arrive), "once"


def test_the_sidecar_is_asked_at_arrival(bench: Bench) -> None:
    asked = request("a", 2)
    bench.manager.enqueue(asked)
    bench.manager.refresh(asked)
    answer(bench, [5, 6], coming=0)
    assert bench.look_up(asked) == [HIT] * 2


def asked_anew(bench: Bench) -> tuple[FakeRequest, Arrive]:
    """One chunk is offered; the answer to a second question says that more is coming."""
    asked = request("a", 3)
    bench.arrive(asked, [5])
    bench.clock.advance(REFRESH_AFTER_S * 2)
    bench.manager.refresh(asked)
    return asked, answer(bench, [5], coming=2)


def test_a_request_may_be_aborted_while_its_load_runs_and_more_is_coming(bench: Bench) -> None:
    asked, message = asked_anew(bench)
    bench.manager.prepare_load(asked.keys[:1], asked.context)
    bench.manager.on_request_finished(asked.context)
    load(bench, message, {1: 6, 2: 7}, over=True)
    assert not bench.manager.broken
    bench.manager.complete_load(set(asked.keys[:1]), asked.context)
    assert [each.request for each in bench.heard(Release)] == ["a"]


def test_an_answer_during_a_load_is_not_waited_on(bench: Bench) -> None:
    asked, _ = asked_anew(bench)
    bench.clock.advance(REFRESH_AFTER_S * 2)
    bench.manager.refresh(asked)
    bench.manager.prepare_load(asked.keys[:1], asked.context)
    third = answer(bench, [5], coming=2)
    load(bench, third, {1: 6, 2: 7}, over=True)
    assert not bench.manager.broken
    bench.manager.complete_load(set(asked.keys[:1]), asked.context)
    assert [each.request for each in bench.heard(Release)] == ["a"]


def test_what_was_coming_before_a_preemption_is_not_taken_for_the_longer_chain(bench: Bench) -> None:
    asked, message = asked_anew(bench)
    load(bench, message, {1: 6, 2: 7}, over=False)
    longer = request("a", 4)
    asked.block_hashes.append(longer.block_hashes[3])
    bench.manager.on_schedule_end(ScheduleEndContext((), ("a",)))
    bench.clock.advance(DEADLINE_S * 2)
    bench.manager.poll()
    assert bench.look_up(longer) == [MISS] * 4, "rows of the new question hold no slots of the old one"
    assert bench.ledger.take_report()[FAILURES] == {"lookup_late": 1}


def test_what_was_coming_before_the_sidecar_died_is_not_taken_from_the_next(bench: Bench) -> None:
    asked, _ = asked_anew(bench)
    bench.manager.prepare_load(asked.keys[:1], asked.context)
    reconnect(bench)
    bench.sidecar.welcome()
    bench.manager.complete_load(set(asked.keys[:1]), asked.context)
    bench.manager.on_schedule_end(ScheduleEndContext((), ("a",)))
    bench.clock.advance(DEADLINE_S * 2)
    bench.manager.poll()
    assert bench.look_up(asked) == [MISS] * 3


def test_what_is_offered_after_a_slow_load_stays_pinned(bench: Bench) -> None:
    asked, message = waiting(bench)
    load(bench, message, {1: 6}, over=False)
    bench.manager.refresh(asked)
    bench.clock.advance(WAIT_S + 2 * DEADLINE_S)
    bench.manager.poll()
    assert bench.look_up(asked) == [HIT, HIT, MISS, MISS, MISS]
    bench.clock.advance(REFRESH_AFTER_S * 2)
    bench.manager.refresh(asked)
    answer(bench, [5, 6, 7], coming=0)
    assert not bench.heard(Release)
    assert bench.look_up(asked) == [HIT, HIT, HIT, MISS, MISS], "what the others stored meanwhile too"
