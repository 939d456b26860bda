"""Engines on one sidecar: what one stores another finds, and what one holds nobody else gets."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from tieredkv.protocol import (
    Arrive,
    Enabled,
    Found,
    Lease,
    Leased,
    Ledger,
    Live,
    Publish,
    Release,
    Reset,
    Return,
    SelfTest,
    Welcome,
)
from tieredkv.sidecar.engines import PINS_OUTLAST_S

from .conftest import Start
from .engine import BODY_BYTES, Engine, Link, Refusal, Worker, attach_worker, chain, hello
from .process import SidecarProcess, wait_until


def test_the_second_engine_finds_what_only_the_first_stored(shared: SidecarProcess) -> None:
    first, second = Engine(shared.socket), Engine(shared.socket)
    keys = chain(1, 50)
    assert first.store(keys) == 50
    assert second.load(keys) == 50
    assert second.load(chain(2, 50)) == 0
    first.close()
    second.close()


def test_a_chunk_is_stored_once(shared: SidecarProcess) -> None:
    first, second = Engine(shared.socket), Engine(shared.socket)
    keys = chain(3, 20)
    first.store(keys)
    second.load(keys)  # its answer comes after the first engine's publication
    ready = shared.status()["slots"]["ready"]
    second.store(keys)
    assert second.load(keys) == 20
    status = shared.status()
    assert status["slots"]["ready"] == ready
    assert status["counters"]["tieredkv_publications_total"]["present"] == 20
    first.close()
    second.close()


def test_a_restarted_engine_finds_everything_again(shared: SidecarProcess) -> None:
    keys = chain(4, 30)
    engine = Engine(shared.socket)
    engine.store(keys)
    engine.find(keys)
    engine.close()
    again = Engine(shared.socket)
    assert again.load(keys) == 30
    again.close()


def test_a_full_tier_evicts_and_tells_before_it_hands_out_the_slots(start: Start) -> None:
    sidecar = start(warm="1MiB")
    engine = Engine(sidecar.socket, wants_events=True)
    slots = wait_until(lambda: _populated(sidecar), "populated")
    stored: list[bytes] = []
    for seed in range(100, 100 + 2 * slots // 8 + 1):
        keys = chain(seed, 8)
        assert engine.store(keys) == 8
        stored += keys
    ready = sidecar.status()["slots"]["ready"]
    assert ready <= slots
    gone = {key for _, key in engine.evicted}
    assert len(gone) == len(stored) - ready
    whole = len(gone) // 8 * 8  # of the oldest chain that is left, the tail may be gone
    assert set(stored[:whole]) <= gone <= set(stored[: whole + 8])
    assert sidecar.status()["counters"]["tieredkv_evictions_total"]["room"] == len(engine.evicted)
    assert engine.load(stored[-8:]) == 8
    engine.close()


def test_one_engine_gets_no_more_than_its_share(start: Start) -> None:
    sidecar = start(warm="1MiB", limits={"engine_share_max": 0.25})
    engine = Engine(sidecar.socket)
    slots = wait_until(lambda: _populated(sidecar), "populated")
    leased, generations = engine.lease(slots)
    assert len(leased) == len(generations) == slots // 4
    assert not len(engine.lease(1)[0])
    engine.scheduler.send(Return(leased[:3].tobytes()))
    assert len(engine.lease(slots)[0]) == 3
    engine.close()


def test_pins_last_until_released_and_lost_releases_are_repaired(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    keys = chain(5, 10)
    engine.store(keys)
    engine.find(keys, "one")
    engine.find(keys, "two")
    assert sidecar.status()["engines"][0]["pinned_slots"] == 10
    engine.scheduler.send(Release("one"))
    engine.find([], "ordering")
    assert sidecar.status()["engines"][0]["pinned_slots"] == 10
    engine.scheduler.send(Live([]))
    engine.find([], "ordering")
    assert sidecar.status()["engines"][0]["pinned_slots"] == 0
    engine.close()


def test_nothing_is_served_before_all_ranks_passed_their_test(shared: SidecarProcess) -> None:
    other = Engine(shared.socket)
    keys = chain(6, 5)
    other.store(keys)
    ranks = [Worker(shared.socket, "both", rank, verdict=None, world_size=2) for rank in range(2)]
    scheduler = Link(shared.socket)
    scheduler.send(hello("scheduler", "both", world_size=2))
    scheduler.expect(Welcome)
    ranks[0].send(SelfTest(""))
    other.find([], "ordering")
    scheduler.send(Lease(4))
    assert scheduler.expect(Leased).slots == b""
    ranks[1].send(Lease(2))  # a worker may borrow slots for its test
    leased = ranks[1].expect(Leased)
    assert len(leased.slots) == 8
    ranks[1].send(Return(leased.slots))
    ranks[1].send(SelfTest(""))
    assert scheduler.expect(Enabled).reason == ""
    scheduler.send(Lease(4))
    assert len(scheduler.expect(Leased).slots) == 16
    for link in (*ranks, scheduler):
        link.close()
    other.close()


def test_an_engine_whose_test_failed_gets_no_slots_and_no_hits(shared: SidecarProcess) -> None:
    other = Engine(shared.socket)
    keys = chain(7, 5)
    other.store(keys)
    other.load(keys)
    worker = Worker(shared.socket, "bad", verdict="group 0 came back changed")
    scheduler = Link(shared.socket)
    scheduler.send(hello("scheduler", "bad"))
    scheduler.expect(Welcome)
    assert "group 0 came back changed" in scheduler.expect(Enabled).reason
    other.scheduler.send(Lease(1))
    other.answer(Leased)
    scheduler.send(Arrive("r", 1, keys, 80))
    assert scheduler.expect(Found).slots == [b""]
    worker.close()
    scheduler.close()
    other.close()


def test_a_reset_forgets_everything_and_refuses_what_was_being_written(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    keys, later = chain(8, 5), chain(9, 5)
    engine.store(keys)
    slots, _ = engine.lease(5)
    engine.scheduler.send(Reset())
    engine.publish(later, slots)
    assert engine.load(keys) == 0
    assert engine.load(later) == 0
    assert engine.store(keys) == 5
    assert engine.load(keys) == 5
    engine.close()


def test_increments_of_engines_are_summed_and_nonsense_is_left_out(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    before = shared.status()["counters"]["tieredkv_moved_bytes_total"].get("store", 0)
    for _ in range(3):
        engine.scheduler.send(Ledger({"tieredkv_moved_bytes_total": {"store": 10.0, "Secret Prompt": 1.0}}))
        engine.worker.send(Ledger({"made_up": {"x": 1.0}, "tieredkv_moved_bytes_total": {"load": float("nan")}}))
    engine.find([], "ordering")
    counters = shared.status()["counters"]
    assert counters["tieredkv_moved_bytes_total"]["store"] - before == 30
    assert "Secret Prompt" not in str(counters)
    assert "made_up" not in counters
    engine.close()


def test_a_second_scheduler_of_the_same_engine_takes_the_place_of_the_first(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    again = Link(shared.socket)
    again.send(hello("scheduler", engine.id))
    again.expect(Welcome)
    again.expect(Enabled)
    assert engine.scheduler.ended()
    again.send(Lease(1))
    assert len(again.expect(Leased).slots) == 4
    again.close()
    engine.close()


def test_an_engine_cannot_be_in_two_namespaces(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    with pytest.raises(Refusal, match="world size of 1, not 2"):
        Worker(shared.socket, engine.id, 1, world_size=2)
    engine.close()


def test_leases_are_freed_only_when_the_last_process_of_a_killed_engine_is_gone(sidecar: SidecarProcess) -> None:
    worker, worker_pipe = _spawn(_hold_worker, sidecar.socket)
    assert worker_pipe.recv() == "ready"
    scheduler, scheduler_pipe = _spawn(_hold_scheduler, sidecar.socket)
    slots = scheduler_pipe.recv()
    assert len(slots) == 7
    os.kill(scheduler.pid, signal.SIGKILL)
    scheduler.join()
    wait_until(lambda: sidecar.status()["engines"][0]["connections"] == 1, "scheduler gone")
    assert sidecar.status()["slots"]["leased"] == 7
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    wait_until(lambda: sidecar.status()["slots"]["leased"] == 0, "leases freed")
    assert sidecar.status()["engines"] == []


def test_leases_outlive_the_connections_of_a_process_that_still_lives(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    engine.lease(5)
    # The connections end, but the worker keeps its lock: it may be in the middle of a copy.
    for link in (engine.scheduler, engine.worker):
        link.socket.close()
    wait_until(lambda: sidecar.status()["engines"][0]["connections"] == 0, "connections closed")
    until_s = time.monotonic() + 0.3
    while time.monotonic() < until_s:
        assert sidecar.status()["slots"]["leased"] == 5
    engine.worker.close()
    engine.scheduler.close()
    wait_until(lambda: sidecar.status()["slots"]["leased"] == 0, "leases freed")


def test_a_scheduler_that_comes_back_keeps_what_it_names_and_loses_the_rest(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    slots, _ = engine.lease(10)
    engine.scheduler.socket.close()
    back = Link(sidecar.socket)
    epoch = engine.welcome.epoch
    back.send(hello("scheduler", engine.id, held_epoch=epoch, held_slots=slots[:4].tobytes()))
    assert back.expect(Welcome).epoch == epoch
    assert back.expect(Enabled).reason == ""
    assert sidecar.status()["slots"]["leased"] == 4
    engine.scheduler = back
    keys = chain(10, 4)
    for key, slot in zip(keys, slots[:4].tolist(), strict=True):
        engine.worker.body(slot)[:] = np.resize(np.frombuffer(key, np.uint8), BODY_BYTES)
    engine.publish(keys, slots[:4])
    assert engine.load(keys) == 4
    engine.close()


def _populated(sidecar: SidecarProcess) -> int:
    pools = sidecar.status()["pools"]
    total = sum(pools[0]["slots"].values()) if pools else 0
    return total if total and pools[0]["populated"] == total else 0


def _spawn(target: object, socket: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(socket, theirs), daemon=True)  # type: ignore[arg-type]
    process.start()
    theirs.close()
    return process, ours


def _hold_worker(socket: Path, pipe: Connection) -> None:
    worker = attach_worker(socket, "held")
    pipe.send("ready")
    worker.ended()


def _hold_scheduler(socket: Path, pipe: Connection) -> None:
    scheduler = Link(socket)
    scheduler.send(hello("scheduler", "held"))
    scheduler.expect(Welcome)
    scheduler.expect(Enabled)
    scheduler.send(Lease(7))
    pipe.send(scheduler.expect(Leased).slots[::4])
    scheduler.ended()


def test_groups_of_a_hybrid_model_share_positions_and_survive_a_restart(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket, group_strides=(1, 2))
    keys = chain(20, 6)
    slots, _ = engine.lease(9)
    engine.publish(keys, slots[:6])
    positions = np.arange(1, 6, 2, dtype="<i4").tobytes()
    engine.scheduler.send(Publish(1, keys[1::2], keys[0::2], positions, slots[6:].tobytes()))
    found = engine.find(keys)
    assert found.slots == [slots[:6].tobytes(), slots[6:].tobytes()]
    sidecar.kill()
    engine.close()
    sidecar.start()
    again = Engine(sidecar.socket, group_strides=(1, 2)).find(keys)
    assert again.slots == found.slots
    assert again.generations == found.generations


@pytest.mark.slow
def test_pins_of_a_scheduler_that_does_not_come_back_are_let_go_and_its_leases_stay(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    keys = chain(21, 10)
    engine.store(keys)
    engine.find(keys)
    engine.lease(7)
    assert sidecar.status()["engines"][0]["pinned_slots"] == 10
    left_s = time.monotonic()
    engine.scheduler.close()
    wait_until(lambda: sidecar.status()["engines"][0]["pinned_slots"] == 0, "pins let go")
    assert time.monotonic() - left_s >= PINS_OUTLAST_S, "copies that it had begun may end"
    status = sidecar.status()
    assert status["engines"][0]["connections"] == 1
    assert status["slots"]["leased"] == 7, "the worker may still write them"
    engine.worker.close()
