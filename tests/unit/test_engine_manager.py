"""The scheduler's side against a sidecar that answers late, wrongly, partly or not at all."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any

import numpy as np
import pytest

from tests.unit.scripted_sidecar import EPOCH, ScriptedSidecar, scripted_sidecar
from tieredkv.clock import ManualClock, SystemClock
from tieredkv.metrics import HINTS
from tieredkv.protocol import (
    FRAME_BYTES_MAX,
    Arrive,
    Evicted,
    Hello,
    Lease,
    Live,
    PoolState,
    Publish,
    Refused,
    Release,
    Reset,
    Return,
)
from tieredkv.protocol import Ledger as LedgerReport
from tieredkv.types import Geometry
from tieredkv.vllm_client.client import EngineClient
from tieredkv.vllm_client.compat import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    group_suffix,
    refuse_other_versions,
)
from tieredkv.vllm_client.ledger import EngineLedger
from tieredkv.vllm_client.manager import REFRESH_AFTER_S, ManagerSettings, TieredKVManager
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec

CHUNK = 32
DEADLINE_S = 0.05
GEOMETRY = Geometry(body_bytes=512, chain_tokens=CHUNK, group_strides=(1,))
STEP = ScheduleEndContext((), ())


@dataclass
class FakeRequest:
    """As much of vLLM's Request as is read."""

    request_id: str
    block_hashes: list[bytes]
    num_tokens: int = 0
    num_preemptions: int = 0
    kv_transfer_params: dict[str, object] | None = None
    keys: list[OffloadKey] = field(default_factory=list)
    context: ReqContext = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.num_tokens or len(self.block_hashes) * CHUNK
        self.context = ReqContext(self.request_id)
        for index, key in enumerate(self.block_hashes):
            offload_key = OffloadKey(key + group_suffix(0))
            self.keys.append(offload_key)
            self.context.set_offload_key_position(offload_key, (index + 1) * CHUNK)


def request(name: str, chunks: int) -> FakeRequest:
    """Keys depend on the position only: requests share their prefixes."""
    return FakeRequest(name, [bytes([index]) * 32 for index in range(chunks)])


@dataclass
class Bench:
    """A manager attached to a scripted sidecar, with a clock that moves when told to."""

    sidecar: ScriptedSidecar
    clock: ManualClock
    manager: TieredKVManager
    ledger: EngineLedger

    def heard(self, kind: type) -> list:
        return [message for message in self.sidecar.heard() if isinstance(message, kind)]

    def look_up(self, asked: FakeRequest) -> list[LookupResult]:
        return [self.manager.lookup(key, asked.context) for key in asked.keys]

    def arrive(self, asked: FakeRequest, slots: list[int], evicted: int = 0) -> None:
        self.manager.arrive(asked)
        (message,) = self.heard(Arrive)
        self.sidecar.find(message, slots, evicted)
        self.manager.poll()

    def fill_reserve(self, slots: list[int]) -> None:
        """The manager has asked when tiering was switched on."""
        self.sidecar.lease(slots)
        self.manager.poll()


@contextmanager
def attached(*, slots: int = 0, leases: int = 8, **changed: Any) -> Iterator[Bench]:
    """A manager, some of its settings changed, and its sidecar, which have greeted each other: it asks for `leases`."""
    with scripted_sidecar() as sidecar:
        clock = ManualClock(100.0)
        ledger = EngineLedger()
        settings = replace(ManagerSettings(DEADLINE_S, 8, CHUNK, (0,), wants_events=True), **changed)
        manager = TieredKVManager(
            GEOMETRY,
            settings,
            lambda: Hello(1, 1, "scheduler", "engine"),
            lambda handlers: EngineClient(lambda: sidecar.path, handlers, clock),
            ledger,
            clock,
        )
        manager.poll()
        sidecar.accept()
        sidecar.welcome(slots)
        manager.poll()
        assert manager.client.enabled
        hello, lease = sidecar.heard()
        assert isinstance(hello, Hello)
        assert isinstance(lease, Lease)
        assert lease.count == leases
        yield Bench(sidecar, clock, manager, ledger)
        manager.shutdown()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with attached() as attached_bench:
        yield attached_bench


def test_pending_then_hits_then_release(bench: Bench) -> None:
    asked = request("a", 4)
    bench.manager.arrive(asked)
    assert bench.look_up(asked) == [LookupResult.RETRY] * 4
    (message,) = bench.heard(Arrive)
    assert message.chain == asked.block_hashes
    bench.sidecar.find(message, [5, 6, -1])
    bench.manager.poll()
    assert bench.look_up(asked) == [LookupResult.HIT, LookupResult.HIT, LookupResult.MISS, LookupResult.MISS]
    spec = bench.manager.prepare_load(asked.keys[:2], asked.context)
    assert isinstance(spec, SlotLoadStoreSpec)
    assert (spec.epoch, spec.slots.tolist(), spec.generations.tolist()) == (EPOCH, [5, 6], [105, 106])
    assert not bench.heard(Release)
    bench.manager.complete_load(set(asked.keys[:2]), asked.context)
    assert [message.request for message in bench.heard(Release)] == ["a"]
    bench.manager.on_request_finished(asked.context)
    assert not bench.heard(Release), "released once"


def test_a_hung_sidecar_costs_one_deadline_for_all(bench: Bench) -> None:
    first, second = request("a", 2), request("b", 2)
    bench.manager.arrive(first)
    bench.clock.advance(DEADLINE_S / 2)
    bench.manager.poll()
    assert bench.look_up(first) == [LookupResult.RETRY] * 2
    bench.clock.advance(DEADLINE_S)
    bench.manager.poll()
    assert bench.look_up(first) == [LookupResult.MISS] * 2
    bench.manager.arrive(second)
    assert bench.look_up(second) == [LookupResult.MISS] * 2, "no second wait"
    late, later = bench.heard(Arrive)
    bench.sidecar.find(late, [1, 2])
    bench.sidecar.find(later, [1, 2])
    bench.manager.poll()
    assert bench.look_up(first) == [LookupResult.MISS] * 2, "a late answer is not used"
    assert {message.request for message in bench.heard(Release)} == {"a", "b"}
    third = request("c", 2)
    bench.arrive(third, [1, 2])
    assert bench.look_up(third) == [LookupResult.HIT] * 2, "any sign of life ends the suspicion"


def test_a_dead_sidecar_is_a_miss_and_comes_back(bench: Bench) -> None:
    waiting, loading = request("a", 2), request("b", 2)
    bench.arrive(loading, [3, 4])
    bench.manager.prepare_load(loading.keys, loading.context)
    bench.manager.arrive(waiting)
    bench.sidecar.hang_up()
    bench.manager.poll()
    assert bench.look_up(waiting) == [LookupResult.MISS] * 2
    bench.manager.complete_load(set(loading.keys), loading.context)
    absent = request("c", 2)
    bench.manager.arrive(absent)
    assert bench.look_up(absent) == [LookupResult.MISS] * 2
    assert bench.manager.prepare_store(absent.keys, absent.context).keys_to_store == []
    bench.clock.advance(1.0)
    bench.manager.poll()
    bench.sidecar.accept()
    bench.sidecar.welcome()
    bench.manager.poll()
    again = request("d", 2)
    bench.manager.arrive(again)
    message = bench.heard(Arrive)[-1]
    bench.sidecar.find(message, [3, 4])
    bench.manager.poll()
    assert bench.look_up(again) == [LookupResult.HIT] * 2


def test_stores_that_outlive_the_sidecar_are_declared_again(bench: Bench) -> None:
    asked = request("a", 3)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11, 12])
    output = bench.manager.prepare_store(asked.keys, asked.context)
    assert output is not None
    bench.sidecar.hang_up()
    bench.manager.poll()
    bench.clock.advance(1.0)
    bench.manager.poll()
    bench.sidecar.accept()
    (hello,) = bench.heard(Hello)
    assert hello.held_epoch == EPOCH
    assert np.frombuffer(hello.held_slots, dtype="<i4").tolist() == [10, 11, 12]
    bench.sidecar.welcome()
    bench.manager.poll()
    bench.manager.complete_store(set(asked.keys), asked.context)
    (published,) = bench.heard(Publish)
    assert np.frombuffer(published.slots, dtype="<i4").tolist() == [10, 11, 12]


def test_store_publishes_head_first_with_parents(bench: Bench) -> None:
    asked = request("a", 4)
    bench.arrive(asked, [7])
    bench.fill_reserve([10, 11, 12, 13])
    output = bench.manager.prepare_store(asked.keys, asked.context)
    assert output is not None
    assert output.keys_to_store == asked.keys[1:], "what is resident is not stored again"
    again = bench.manager.prepare_store(asked.keys, asked.context)
    assert again is not None
    assert again.keys_to_store == [], "nor what is being stored"
    bench.manager.complete_store(set(output.keys_to_store), asked.context)
    (published,) = bench.heard(Publish)
    assert published.keys == asked.block_hashes[1:]
    assert published.parents == asked.block_hashes[:3]
    assert np.frombuffer(published.positions, dtype="<i4").tolist() == [1, 2, 3]
    (stored,) = bench.manager.take_events()
    assert (stored.keys, stored.medium, stored.removed) == (asked.keys[1:], Medium.CPU, False)
    bench.sidecar.say(Evicted(0, [asked.block_hashes[2], b"\xff" * 32]))
    bench.manager.poll()
    (gone,) = bench.manager.take_events()
    assert (gone.keys, gone.removed) == ([asked.keys[2]], True), "only what this engine announced"


@pytest.mark.parametrize("how", ["reset", "another pool", "the same pool"])
def test_events_tell_that_all_is_gone(bench: Bench, how: str) -> None:
    asked = request("a", 3)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11, 12])
    bench.manager.prepare_store(asked.keys, asked.context)
    bench.manager.complete_store(set(asked.keys), asked.context)
    bench.manager.take_events()
    if how == "reset":
        bench.manager.reset_cache()
    else:
        reconnect(bench)
        bench.sidecar.welcome(epoch=EPOCH + (how == "another pool"))
        bench.manager.poll()
    gone = [(set(event.keys), event.removed) for event in bench.manager.take_events()]
    assert gone == ([] if how == "the same pool" else [(set(asked.keys), True)])
    bench.sidecar.say(Evicted(0, asked.block_hashes))
    bench.manager.poll()
    assert len(list(bench.manager.take_events())) == (how == "the same pool"), "and once only"


@pytest.mark.parametrize("answers", [True, False])
def test_attaching_waits_a_while_for_slots_to_store_in(answers: bool) -> None:
    with scripted_sidecar() as sidecar:
        clock = SystemClock()
        manager = TieredKVManager(
            GEOMETRY,
            ManagerSettings(DEADLINE_S, 8, CHUNK, (0,)),
            lambda: Hello(1, 1, "scheduler", "engine"),
            lambda handlers: EngineClient(lambda: sidecar.path, handlers, clock),
            EngineLedger(),
            clock,
        )

        def serve() -> None:
            sidecar.accept()
            sidecar.welcome()
            while not any(isinstance(message, Lease) for message in sidecar.heard()):
                time.sleep(0.001)
            if answers:
                sidecar.lease([10, 11])

        thread = Thread(target=serve)
        thread.start()
        assert manager.attach(5.0 if answers else 0.3), "no answer to a lease is no reason to go without"
        assert manager.slots_ready == (2 if answers else 0)
        thread.join()
        manager.shutdown()


@pytest.mark.parametrize(("slots", "leases"), [(4000, 64), (400, 50), (40, 16), (0, 16)])
def test_a_small_pool_is_not_held_empty(slots: int, leases: int) -> None:
    with attached(slots=slots, leases=leases, lease_chunks=64, lease_share_max=1 / 8):
        pass


def test_a_short_reserve_stores_the_head(bench: Bench) -> None:
    asked = request("a", 5)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11])
    output = bench.manager.prepare_store(asked.keys, asked.context)
    assert output is not None
    assert output.keys_to_store == asked.keys[:2]


def test_a_failed_store_gives_its_slots_back(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11])
    bench.manager.prepare_store(asked.keys, asked.context)
    bench.manager.fail_store(asked.keys[:1])
    bench.manager.complete_store(set(asked.keys), asked.context)
    said = bench.sidecar.heard()
    assert not [message for message in said if isinstance(message, Publish)]
    (returned,) = [message for message in said if isinstance(message, Return)]
    assert np.frombuffer(returned.slots, dtype="<i4").tolist() == [10, 11]


def test_a_failed_load_is_not_offered_again(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [1, 2])
    bench.manager.note_prefix(asked, 0, 2 * CHUNK)
    bench.manager.prepare_load(asked.keys, asked.context)
    bench.manager.deny("a")
    bench.manager.complete_load(set(asked.keys), asked.context)
    assert bench.look_up(asked) == [LookupResult.MISS] * 2
    bench.clock.advance(60)
    bench.manager.refresh(asked)
    assert not bench.heard(Arrive)
    bench.manager.note_prefix(asked, 0, 0)
    bench.manager.commit_prefix("a")
    report = bench.ledger.take_report()
    assert report["tieredkv_prefix_tokens_total"] == {"asked": 64, "miss": 64}
    assert report["tieredkv_miss_tokens_total"] == {"short": 32, "failed": 32}


def test_ledger_adds_up_and_is_reported(bench: Bench) -> None:
    asked = FakeRequest("a", [bytes([index]) * 32 for index in range(6)], num_tokens=6 * CHUNK + 5)
    bench.arrive(asked, [1, 2, 3], evicted=2)
    bench.manager.note_prefix(asked, CHUNK, 2 * CHUNK)
    bench.manager.commit_prefix("a")
    bench.manager.commit_prefix("a")
    bench.clock.advance(2.0)
    bench.manager.on_schedule_end(STEP)
    (report,) = bench.heard(LedgerReport)
    assert report.counters["tieredkv_prefix_tokens_total"] == {"asked": 197, "hot": 32, "warm": 64, "miss": 101}
    assert report.counters["tieredkv_miss_tokens_total"] == {"short": 5, "evicted": 64, "absent": 32}


def test_slots_by_state_are_passed_on_to_vllm(bench: Bench) -> None:
    bench.sidecar.say(PoolState({"free": 3, "ready": 5}))
    bench.manager.poll()
    stats = bench.manager.get_stats()
    assert stats is not None
    assert stats.data["data"]["tieredkv_slots"] == {("free",): 3, ("ready",): 5}
    assert bench.manager.get_stats() is None


def test_an_old_answer_is_refreshed_but_stays_valid(bench: Bench) -> None:
    asked = request("a", 3)
    bench.arrive(asked, [1])
    bench.clock.advance(5.0)
    bench.manager.refresh(asked)
    (message,) = bench.heard(Arrive)
    assert message.seq == 2
    assert bench.look_up(asked)[0] is LookupResult.HIT
    bench.sidecar.find(message, [1, 2, 3])
    bench.manager.poll()
    assert bench.look_up(asked) == [LookupResult.HIT] * 3


def test_preempted_requests_ask_again_with_what_they_decoded(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [])
    asked.block_hashes.append(b"\x09" * 32)
    bench.manager.on_schedule_end(ScheduleEndContext((), ("a",)))
    (message,) = bench.heard(Arrive)
    assert len(message.chain) == 3
    assert bench.look_up(asked) == [LookupResult.RETRY] * 2


def test_scheduled_without_a_load_lets_go(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [1, 2])
    bench.manager.on_schedule_end(ScheduleEndContext(("a",), ()))
    assert [message.request for message in bench.heard(Release)] == ["a"]


def test_finished_while_loading_keeps_the_pin_until_the_copy_ended(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [1, 2])
    bench.manager.prepare_load(asked.keys, asked.context)
    bench.manager.on_request_finished(asked.context)
    assert not bench.heard(Release)
    bench.manager.complete_load(set(asked.keys), asked.context)
    assert bench.heard(Release)


def test_live_requests_are_listed(bench: Bench) -> None:
    kept, gone = request("kept", 2), request("gone", 2)
    bench.arrive(kept, [1, 2])
    bench.arrive(gone, [1, 2])
    bench.manager.on_request_finished(gone.context)
    bench.clock.advance(11.0)
    bench.manager.on_schedule_end(STEP)
    assert bench.heard(Live)[-1].requests == ["kept"]


def test_reset_forgets_here_and_there(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [1, 2])
    bench.fill_reserve([10, 11])
    bench.manager.reset_cache()
    returned, reset = [message for message in bench.sidecar.heard() if isinstance(message, Return | Reset)]
    assert isinstance(returned, Return)
    assert np.frombuffer(returned.slots, dtype="<i4").tolist() == [10, 11]
    assert isinstance(reset, Reset)
    assert bench.manager.slots_ready == 0
    assert bench.look_up(asked) == [LookupResult.MISS] * 2


def reconnect(bench: Bench) -> Hello:
    """The sidecar dies and comes back; the greeting."""
    bench.sidecar.hang_up()
    bench.manager.poll()
    bench.clock.advance(10.0)
    bench.manager.poll()
    bench.sidecar.accept()
    (hello,) = bench.heard(Hello)
    return hello


def test_a_reset_is_repeated_until_it_is_proven(bench: Bench) -> None:
    bench.manager.reset_cache()
    assert bench.heard(Reset)
    reconnect(bench)
    bench.sidecar.welcome()
    bench.manager.poll()
    said = bench.sidecar.heard()
    assert [type(message) for message in said[:2]] == [Reset, LedgerReport], "before anything can be found"
    asked = request("a", 2)
    bench.manager.arrive(asked)
    assert bench.look_up(asked) == [LookupResult.MISS] * 2, "nothing is served while a reset is owed"
    assert not bench.heard(Arrive)
    bench.sidecar.say(PoolState({}))
    bench.manager.poll()
    later = request("b", 2)
    bench.arrive(later, [1, 2])
    assert bench.look_up(later) == [LookupResult.HIT] * 2


def test_an_answer_from_before_a_reset_is_not_used(bench: Bench) -> None:
    asked = request("a", 2)
    bench.manager.arrive(asked)
    (message,) = bench.heard(Arrive)
    bench.manager.reset_cache()
    bench.sidecar.find(message, [1, 2])
    bench.manager.poll()
    assert bench.look_up(asked) == [LookupResult.MISS] * 2
    assert bench.heard(Release), "its pins are let go"


def test_a_name_used_again_does_not_get_the_former_answer(bench: Bench) -> None:
    former = request("a", 2)
    bench.manager.arrive(former)
    (message,) = bench.heard(Arrive)
    bench.manager.on_request_finished(former.context)
    assert [released.request for released in bench.heard(Release)] == ["a"]
    again = request("a", 2)
    bench.manager.arrive(again)
    bench.sidecar.find(message, [1, 2])
    bench.manager.poll()
    assert bench.look_up(again) == [LookupResult.RETRY] * 2


def test_what_was_written_between_greeting_and_welcome_is_published_then(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11])
    bench.manager.prepare_store(asked.keys, asked.context)
    hello = reconnect(bench)
    assert np.frombuffer(hello.held_slots, dtype="<i4").tolist() == [10, 11]
    bench.manager.complete_store(set(asked.keys), asked.context)
    again = reconnect(bench)
    assert np.frombuffer(again.held_slots, dtype="<i4").tolist() == [10, 11], "still owed"
    bench.sidecar.welcome()
    bench.manager.poll()
    (published,) = bench.heard(Publish)
    assert np.frombuffer(published.slots, dtype="<i4").tolist() == [10, 11]


def test_slots_of_another_epoch_are_never_named_again(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11])
    bench.manager.prepare_store(asked.keys, asked.context)
    reconnect(bench)
    bench.sidecar.welcome(epoch=EPOCH + 1)
    bench.manager.poll()
    bench.manager.complete_store(set(asked.keys), asked.context)
    assert not [m for m in bench.sidecar.heard() if isinstance(m, Publish | Return)]


def test_dropped_stores_stay_ours_until_the_ranks_are_done(bench: Bench) -> None:
    asked = request("a", 2)
    bench.arrive(asked, [])
    bench.fill_reserve([10, 11])
    bench.manager.prepare_store(asked.keys, asked.context)
    dropped = bench.manager.drop_stores(asked.keys)
    bench.manager.reset_cache()
    hello = reconnect(bench)
    assert np.frombuffer(hello.held_slots, dtype="<i4").tolist() == [10, 11]
    bench.sidecar.welcome()
    bench.manager.poll()
    bench.sidecar.heard()
    bench.manager.settle_stores(dropped)
    (returned,) = bench.heard(Return)
    assert np.frombuffer(returned.slots, dtype="<i4").tolist() == [10, 11]


@pytest.mark.parametrize(
    "nonsense", [b"\x05\x00\x00\x00hello", (FRAME_BYTES_MAX + 1).to_bytes(4, "little"), b"\xff" * 64]
)
def test_nonsense_from_the_sidecar_is_a_lost_connection(bench: Bench, nonsense: bytes) -> None:
    asked = request("a", 2)
    bench.manager.arrive(asked)
    bench.sidecar.say_bytes(nonsense)
    bench.manager.poll()
    assert not bench.manager.client.enabled
    assert bench.look_up(asked) == [LookupResult.MISS] * 2
    assert not bench.manager.broken


def test_an_impossible_answer_disables_tiering_not_the_engine(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    asked = request("a", 2)
    bench.manager.arrive(asked)
    (message,) = bench.heard(Arrive)
    bench.sidecar.find(message, [1, 2, 3, 4, 5])
    bench.manager.on_schedule_end(STEP)
    assert bench.manager.broken
    assert "disabled" in caplog.text
    assert bench.look_up(asked) == [LookupResult.MISS] * 2
    assert bench.manager.prepare_store(asked.keys, asked.context).keys_to_store == []


def test_refused_is_said_once_and_tried_again_later(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.sidecar.say(Refused("other weights"))
    bench.manager.poll()
    assert caplog.text.count("other weights") == 1
    assert not bench.manager.client.enabled


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0", "dev"])
def test_other_vllm_versions_are_refused(version: str) -> None:
    with pytest.raises(Exception, match=r"tested with >=0.31,<0.34"):
        refuse_other_versions(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.1rc1"])
def test_tested_vllm_versions_are_accepted(version: str) -> None:
    refuse_other_versions(version)


def test_hints_travel_with_the_first_ask_only(bench: Bench) -> None:
    asked = request("a", 2)
    asked.kv_transfer_params = {"tieredkv": {"session": 7, "session_closed": True, "one_shot": "yes", "x": 1}}
    bench.arrive(asked, [])
    bench.clock.advance(REFRESH_AFTER_S + 1)
    bench.manager.refresh(asked)
    (again,) = bench.heard(Arrive)
    assert again.again
    assert again.hints == {}
    asked = request("b", 2)
    asked.kv_transfer_params = {"tieredkv": {"session": "s", "keep": True, "tenant": "t"}}
    bench.manager.arrive(asked)
    (first,) = bench.heard(Arrive)
    assert (first.tenant, first.hints, first.again) == ("t", {"session": "s", "keep": True}, False)
    assert bench.ledger.take_report()[HINTS] == {"taken": 4, "ignored": 2}
