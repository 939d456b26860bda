"""What a session used comes back from cold before its next request does."""

import pytest

from tieredkv.cli.admin import Admin
from tieredkv.protocol import Arrive, Found, Release

from .conftest import Start
from .engine import Engine
from .process import wait_until
from .test_cold import attached, fill, tiered


def use(engine: Engine, keys: list[bytes], session: str) -> None:
    engine.scheduler.send(Arrive("use", 0, keys, 16 * len(keys), "acme", {"session": session}))
    engine.answer(Found)
    engine.scheduler.send(Release("use"))


def test_a_session_is_loaded_and_stays_until_it_is_asked_for(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    use(engine, stored[-1], "s")
    use(engine, stored[0], "s")
    with Admin(sidecar.socket) as admin:
        wait_until(lambda: engine.find(stored[1], "other").coming > 0, "a prefix that is in cold alone")
        engine.scheduler.send(Release("other"))
        for stranger in (("s", ""), ("t", "acme")):
            assert admin.prefetch(*stranger).pools == 0
        before = sidecar.status()["counters"]["tieredkv_moved_bytes_total"].get("promote", 0.0)
        use(engine, stored[2], "cold")
        engine.scheduler.send(Release("use"))
        answer = admin.prefetch("cold", "acme")
        assert answer.pools == 1

        def there() -> bool:
            found = engine.find(stored[2], "now")
            engine.scheduler.send(Release("now"))
            return len(found.slots[0]) == 4 * 32 and not found.coming

        wait_until(there, "loaded")
        assert sidecar.status()["counters"]["tieredkv_moved_bytes_total"]["promote"] > before
        assert admin.prefetch("cold", "acme").chunks == 0, "all is there"
    slots = sidecar.status()["slots"]
    assert slots["loading"] == slots["quarantined"] == 0


@pytest.mark.parametrize("resets", [False, True])
def test_what_is_forgotten_is_not_loaded(start: Start, resets: bool) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    (keys,) = fill(sidecar, engine, 1)
    use(engine, keys, "s")
    if resets:
        engine.reset()
    with Admin(sidecar.socket) as admin:
        answer = admin.prefetch("s", "acme")
    assert (answer.pools, answer.chunks) == (0 if resets else 1, 0)
