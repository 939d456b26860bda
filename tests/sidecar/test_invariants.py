"""A broken invariant in the brain: the pools are thrown away, the sidecar lives, engines come back."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredkv.clock import SystemClock
from tieredkv.config import load_config
from tieredkv.manager import TierManager
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.keeper import Keeper
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.server import End, Server
from tieredkv.sidecar.supervisor import find_binary

from .engine import Admin, Engine, chain
from .process import SidecarProcess, wait_until


@pytest.fixture
def in_thread() -> Iterator[Path]:
    """A sidecar's loop in a thread of this process: its socket."""
    folder = SidecarProcess()
    directory = RuntimeDirectory(folder.folder)
    config = load_config(flags={"runtime_dir": str(directory.path), "warm.size": "4MiB"}, environ={}).config
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(config.socket))
    listener.listen()
    listener.setblocking(False)
    inbox = Inbox()
    server = Server(
        config,
        private=False,
        listener=listener,
        directory=directory,
        keeper=Keeper(find_binary("auto"), directory, config.warm.size_bytes, inbox),
        inbox=inbox,
        clock=SystemClock(),
        recordings=Recordings(None, None),
        publish=None,
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield config.socket
    inbox.post(End())
    thread.join(20)
    assert not thread.is_alive()
    folder.clean_up()


def test_a_broken_invariant_costs_the_pools_but_not_the_sidecar(
    in_thread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(in_thread)
    keys = chain(1, 5)
    engine.store(keys)
    assert engine.load(keys) == 5

    def broken(*_: object, **__: object) -> None:
        raise AssertionError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(TierManager, "arrive", broken)
        with pytest.raises((EOFError, OSError)):
            engine.find(keys)
    admin = Admin(in_thread)
    status = wait_until(lambda: (status := admin.status())["ready"] and status, "another vineyardd")
    assert status["counters"]["tieredkv_failures_total"]["internal"] == 1
    again = Engine(in_thread)
    assert again.load(keys) == 0
    assert again.store(keys) == 5
    assert again.load(keys) == 5
