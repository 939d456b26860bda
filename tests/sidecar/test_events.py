"""A real sidecar's calls, recorded as it lives, and replayed."""

from pathlib import Path

import pytest

from tieredkv.protocol import Arrive, Found, Release, Reset
from tieredkv.sim.parity import verify

from .conftest import Start
from .engine import Admin, Engine, chain
from .process import SidecarProcess, wait_until


def recorded(start: Start, folder: Path, policy: str) -> tuple[SidecarProcess, Path]:
    path = folder / "trace.jsonl"
    sidecar = start(warm="1MiB", policy={"name": policy}, trace={"path": str(path), "events": True})
    return sidecar, folder / "trace.jsonl.events.jsonl"


def use(engine: Engine, first: int, last: int) -> None:
    """Store and load chains that share heads."""
    for number in range(first, last):
        keys = chain(number % 7, 20) + chain(number, 12)
        hints: dict[str, str | int | float | bool] = {"session": f"s{number % 5}", "session_closed": number % 2 == 0}
        engine.scheduler.send(Arrive(f"r{number}", number, keys, 16 * len(keys), "", hints))
        there = len(engine.answer(Found).slots[0]) // 4
        slots, _ = engine.lease(len(keys) - there)
        if len(slots):
            engine.publish(keys[there : there + len(slots)], slots, keys[there - 1] if there else b"", there)
        if number % 3:
            engine.scheduler.send(Release(f"r{number}"))


@pytest.mark.parametrize("policy", ["gix", "lru"])
def test_a_sidecars_life_replays_to_the_same_decisions(start: Start, tmp_path: Path, policy: str) -> None:
    sidecar, path = recorded(start, tmp_path, policy)
    first, second = Engine(sidecar.socket), Engine(sidecar.socket)
    use(first, 0, 40)
    use(second, 30, 60)
    first.close()
    second.scheduler.send(Reset())
    use(second, 20, 60)
    second.close()
    admin = Admin(sidecar.socket)
    wait_until(lambda: not admin.status()["engines"], "the engines' end")
    evictions = admin.status()["counters"]["tieredkv_evictions_total"]["room"]
    admin.close()
    assert sidecar.terminate() == 0
    verdict = verify(path)
    assert verdict.differences == []
    assert not verdict.cut
    assert verdict.evictions == evictions > 0
    assert verdict.hits
    assert verdict.compared["detach"] == verdict.compared["attach"] == 2


def test_an_adopted_pool_replays_from_its_adoption(start: Start, tmp_path: Path) -> None:
    sidecar, path = recorded(start, tmp_path, "gix")
    engine = Engine(sidecar.socket)
    use(engine, 0, 10)
    sidecar.kill()
    engine.close()
    sidecar.start()
    engine = Engine(sidecar.socket)
    use(engine, 5, 20)
    engine.close()
    sidecar.terminate()
    verdict = verify(path)
    assert verdict.differences == []
    assert verdict.compared["adopt"] == 1
    assert verdict.compared["open"] == 2
    assert verdict.hits
    before = verify(path.with_name(path.name + ".old"))
    assert before.differences == []
    assert path.stat().st_mode & 0o777 == 0o600
