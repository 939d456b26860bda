"""A real sidecar whose warm tier overflows into cold pages of its own."""

import os
import signal

from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.record import read_record
from tieredkv.sidecar.warmtier import PAGE_METADATA_BYTES
from tieredkv.tiers.slots import HEADER_BYTES

from .conftest import Start
from .engine import Engine, chain
from .process import SidecarProcess, wait_until

CHUNK_BYTES = 4096 + 256 + 64 + 64
SLOTS = 256
PAGES = 1024


def tiered(start: Start, **more: object) -> SidecarProcess:
    """256 slots, 1024 pages."""
    cold = {"size": PAGES * (CHUNK_BYTES + PAGE_METADATA_BYTES), "low_free": 0.2, "high_free": 0.4}
    return start(**({"warm": str(SLOTS * CHUNK_BYTES)} | more), cold=cold, policy={"name": "lru"})


def attached(sidecar: SidecarProcess) -> Engine:
    """An engine; what leaves before the mover runs would be lost."""
    engine = Engine(sidecar.socket)
    wait_until(lambda: sidecar.status()["mover"]["ready"], "a mover")
    return engine


def fill(sidecar: SidecarProcess, engine: Engine, chains: int, length: int = 32) -> list[list[bytes]]:
    """Store chains one after the other, far more than fits into warm."""
    stored = [chain(seed, length) for seed in range(chains)]
    for keys in stored:
        assert engine.store(keys) == length
        # A busy mover refuses, and what it refuses is dropped.
        wait_until(lambda: not sidecar.status()["slots"]["demoting"], "demoted")
    return stored


def test_what_left_the_warm_tier_comes_back_from_cold_pages(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 24)
    assert sidecar.status()["pages"]["held"] > SLOTS
    loaded = [engine.load(keys, f"r{number}") for number, keys in enumerate(stored)]
    assert loaded == [32] * 24
    moved = sidecar.status()["counters"]["tieredkv_moved_bytes_total"]
    assert moved["demote"] >= (24 * 32 - SLOTS) * 4096
    assert moved["promote"] >= (24 * 32 - SLOTS) * 4096


def test_cold_pages_outlive_a_killed_sidecar(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    held = sidecar.status()["pages"]["held"]
    engine.close()
    sidecar.kill()
    sidecar.start()
    status = sidecar.status()
    assert status["adopted"]
    # Some may have left warm after they were counted.
    assert status["pages"]["held"] >= held > 0
    again = attached(sidecar)
    assert [again.load(keys, f"r{number}") for number, keys in enumerate(stored)] == [32] * 16


def test_a_reset_forgets_cold_pages_too_also_after_a_crash(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    engine.reset()
    assert sidecar.status()["pages"]["held"] == 0
    assert [engine.load(keys, f"r{number}") for number, keys in enumerate(stored)] == [0] * 16
    engine.close()
    sidecar.kill()
    sidecar.start()
    assert sidecar.status()["pages"]["held"] == 0
    again = attached(sidecar)
    assert [again.load(keys, f"r{number}") for number, keys in enumerate(stored)] == [0] * 16
    fresh = fill(sidecar, again, 16)
    assert [again.load(keys, f"s{number}") for number, keys in enumerate(fresh)] == [32] * 16


def test_a_reset_that_cannot_be_written_down_is_not_undone_by_a_crash(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    # As a full disk: pool.json cannot be replaced.
    blocked = sidecar.directory / "pool.new"
    blocked.mkdir()
    engine.reset()
    engine.close()
    sidecar.kill()
    blocked.rmdir()
    sidecar.start()
    again = attached(sidecar)
    assert [again.load(keys, f"r{number}") for number, keys in enumerate(stored)] == [0] * 16


def test_cold_pages_behind_a_hole_are_adopted(start: Start) -> None:
    sidecar = tiered(start, warm_more={"size": str(SLOTS * CHUNK_BYTES), "prefault": False})
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    held = sidecar.status()["pages"]["held"]
    engine.close()
    sidecar.kill()
    sidecar.start()
    # Some may have left warm after they were counted.
    assert sidecar.status()["pages"]["held"] >= held > SLOTS
    again = attached(sidecar)
    loaded = [again.load(keys, f"r{number}") for number, keys in enumerate(stored)]
    assert sum(loaded) >= held


def test_a_dead_mover_costs_its_loads_and_comes_back(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    for _ in range(3):
        pid = sidecar.status()["mover"]["pid"]
        os.kill(pid, signal.SIGKILL)
        for number, keys in enumerate(stored):
            assert engine.load(keys, f"r{number}") <= 32
        wait_until(lambda: sidecar.status()["mover"]["ready"], "another mover")
    assert [engine.load(keys, f"s{number}") for number, keys in enumerate(fill(sidecar, engine, 16))] == [32] * 16


def test_a_corrupted_page_is_a_miss(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    record = read_record(RuntimeDirectory(sidecar.directory).pool_record)
    assert record is not None
    (pool,) = record.pools
    for offset in pool.record.offsets[SLOTS:].tolist():
        engine.worker.arena[offset + HEADER_BYTES + 100] ^= 1
    loaded = [engine.load(keys, f"r{number}") for number, keys in enumerate(stored)]
    assert sum(loaded) < 16 * 32
    assert sidecar.status()["counters"]["tieredkv_failures_total"]["promote_corrupt"] > 0
