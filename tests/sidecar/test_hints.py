"""Hints to a running sidecar: with a request, and from a router between requests."""

import pytest

from tieredkv.cli.admin import Admin
from tieredkv.protocol import Arrive, Found, Hint, Hinted

from .engine import Admin as RawAdmin
from .engine import Engine, Link, chain
from .process import SidecarProcess


def test_a_session_is_known_after_its_first_request_and_by_its_tenant_only(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    with Admin(sidecar.socket) as admin:
        assert admin.hint("s", {"session_closed": True}, "") == 0
        for seq, tenant in enumerate(("", "t")):
            hints: dict[str, str | int | float | bool] = {"session": "s", "return_within_s": 60.0}
            engine.scheduler.send(Arrive(f"r{seq}", seq, chain(1, 4), 64, tenant, hints))
            engine.answer(Found)
            assert admin.hint("s", {"session_closed": True}, tenant) == 1
        assert admin.hint("s", {"keep": True}, "u") == 0
    assert sidecar.status()["counters"]["tieredkv_hints_total"] == {"taken": 2, "unknown_session": 2}
    assert "session" not in sidecar.log()
    engine.close()


@pytest.mark.parametrize("hints", [{}, {"session_closed": "yes", "x": 1, "return_within_s": -1e300}])
def test_nonsense_is_no_error(shared: SidecarProcess, hints: dict[str, str | int | float | bool]) -> None:
    admin = RawAdmin(shared.socket)
    admin.send(Hint("s" * 100_000, hints, "t" * 100_000))
    assert admin.expect(Hinted).pools == 0
    admin.close()


def test_only_an_admin_speaks_for_sessions(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    engine.scheduler.send(Hint("s", {"keep": True}))
    assert engine.scheduler.ended()
    engine.close()
    early = Link(shared.socket)
    early.send(Hint("s", {"keep": True}))
    assert early.ended()
