"""Which engines share a pool, who gets one, and what the others are told."""

import os
import signal

import pytest

from tieredkv.protocol import Welcome
from tieredkv.sidecar.warmtier import PAGE_METADATA_BYTES

from .conftest import Start
from .engine import BODY_BYTES, Engine, Link, Refusal, Worker, chain, hello
from .process import SidecarProcess, suspend, wait_until

OTHER = b"another-16-bytes"
THIRD = b"third-name-of-16"


def test_another_namespace_is_refused_and_told_what_differs(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    with pytest.raises(Refusal, match=r"warm\.namespaces_max.*model large instead of small") as refused:
        Engine(shared.socket, namespace=OTHER, description={"model": "large"})
    assert "\n" not in str(refused.value)
    assert engine.store(chain(1, 3)) == 3


def test_the_same_namespace_with_other_chunks_is_refused(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    with pytest.raises(Refusal, match=f"body_bytes 8192 instead of {BODY_BYTES}"):
        Engine(shared.socket, body_bytes=8192)
    engine.close()


def test_two_namespaces_share_nothing(start: Start) -> None:
    sidecar = start(warm_more={"size": "32MiB", "namespaces_max": 2})
    keys = chain(1, 10)
    first = Engine(sidecar.socket)
    second = Engine(sidecar.socket, namespace=OTHER, body_bytes=8192)
    assert first.welcome.epoch != second.welcome.epoch
    assert first.store(keys) == 10
    assert second.load(keys) == 0
    with pytest.raises(Refusal, match="other engines use all 2 namespaces"):
        Engine(sidecar.socket, namespace=THIRD)
    pools = sidecar.status()["pools"]
    assert {pool["slot_bytes"] for pool in pools} == {BODY_BYTES + 320, 8192 + 320}
    for pool in pools:
        assert sum(pool["slots"].values()) * (pool["slot_bytes"] + 64) <= 16 << 20


@pytest.mark.parametrize("namespaces_max", [1, 2])
def test_an_idle_pool_makes_room_and_its_bytes_are_never_seen_again(start: Start, namespaces_max: int) -> None:
    sidecar = start(warm_more={"size": "32MiB", "namespaces_max": namespaces_max})
    keys = chain(1, 50)
    first = Engine(sidecar.socket)
    first.store(keys)
    first.load(keys)
    first.close()
    wait_until(lambda: not sidecar.status()["engines"], "the engine is gone")
    for size in (3 * BODY_BYTES, BODY_BYTES // 2 + 64, BODY_BYTES):
        other = Engine(sidecar.socket, namespace=size.to_bytes(16, "big"), body_bytes=size)
        assert len(sidecar.status()["pools"]) == namespaces_max
        other.close()
        wait_until(lambda: not sidecar.status()["engines"], "the engine is gone")
    again = Engine(sidecar.socket)
    assert again.welcome.epoch != first.welcome.epoch
    assert again.load(keys) == 0
    assert again.store(keys) == 50
    assert again.load(keys) == 50
    sidecar.kill()
    again.close()
    sidecar.start()
    assert sidecar.status()["slots"]["ready"] == 50, "headers of an earlier pool were adopted"
    assert sidecar.status()["vineyardd"]["restarts"] == 0


def test_a_pool_is_kept_while_a_process_could_write_into_it(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    for link in (engine.scheduler, engine.worker):
        link.socket.close()
    wait_until(lambda: sidecar.status()["engines"][0]["connections"] == 0, "connections closed")
    with pytest.raises(Refusal):
        Engine(sidecar.socket, namespace=OTHER)
    engine.worker.close()
    engine.scheduler.close()
    wait_until(lambda: not sidecar.status()["engines"], "the engine is gone")
    assert Engine(sidecar.socket, namespace=OTHER).store(chain(1, 2)) == 2


def test_a_chunk_that_cannot_fit_is_refused_with_the_size(shared: SidecarProcess) -> None:
    with pytest.raises(Refusal, match=r"(warm\.size|warm\.namespaces_max)"):
        Worker(shared.socket, "huge", namespace=THIRD, body_bytes=1 << 40)


def test_memory_that_the_mover_still_writes_is_not_given_to_another_namespace(start: Start) -> None:
    pages = 256
    cold = {"size": 2 * pages * (BODY_BYTES + 384 + PAGE_METADATA_BYTES), "low_free": 0.2, "high_free": 0.4}
    warm = {"size": str(2 * 128 * (BODY_BYTES + 384)), "namespaces_max": 2}
    sidecar = start(warm_more=warm, cold=cold, policy={"name": "lru"})
    first = Engine(sidecar.socket)
    wait_until(lambda: sidecar.status()["mover"]["ready"], "a mover")
    for seed in range(8):
        first.store(chain(seed, 32))
        wait_until(lambda: not sidecar.status()["slots"]["demoting"], "demoted")
    mover = sidecar.status()["mover"]["pid"]
    suspend(mover)
    try:
        assert first.find(chain(0, 32)).coming
        wait_until(lambda: sidecar.status()["slots"]["loading"], "a load that hangs")
        first.close()
        wait_until(lambda: not sidecar.status()["engines"], "the engine is gone")
        second = Engine(sidecar.socket, namespace=OTHER)
        third = Link(sidecar.socket)
        third.send(hello("worker", "third", namespace=THIRD))
        wait_until(lambda: _names(sidecar) == {OTHER.hex()}, "the first pool made room")
        for _ in range(20):
            assert THIRD.hex() not in _names(sidecar), "its memory was given away"
    finally:
        os.kill(mover, signal.SIGCONT)
    third.expect(Welcome)
    assert _names(sidecar) == {OTHER.hex(), THIRD.hex()}
    second.close()


def _names(sidecar: SidecarProcess) -> set[str]:
    return {pool["namespace"] for pool in sidecar.status()["pools"]}
