"""A rank's tie to a sidecar that hands over what cannot be mapped."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.sidecar.process import wait_until
from tieredkv.clock import SystemClock
from tieredkv.protocol import Hello, Message, Welcome, encode
from tieredkv.vllm_client.attaching import WorkerLink
from tieredkv.vllm_client.attachment import Attachment

EPOCH = 7
ARENA_BYTES = 8192
SLOT_BYTES = 4096
GOOD = Welcome(1, EPOCH, ARENA_BYTES, SLOT_BYTES, np.array([0, 4096], "<i8").tobytes())
DEADLINE_S = 10.0


class HandingOver:
    """A sidecar that welcomes one rank after another with an arena of `ARENA_BYTES`, whatever it says of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sock"
        self._folder = folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.settimeout(DEADLINE_S)
        self._welcomed: list[socket.socket] = []
        self._number = count()

    def welcome(self, message: Message) -> Path:
        """Greet the next rank; its lock."""
        rank, _ = self._listener.accept()
        rank.settimeout(DEADLINE_S)
        self._welcomed.append(rank)
        assert rank.recv(1 << 16), "its greeting"
        arena_fd = os.memfd_create("arena")
        os.ftruncate(arena_fd, ARENA_BYTES)
        lock = self._folder / f"lock.{next(self._number)}"
        lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        socket.send_fds(rank, [encode(message)], [arena_fd, lock_fd])
        os.close(arena_fd)
        os.close(lock_fd)
        return lock

    def hung_up(self) -> bool:
        """Whether the rank that was welcomed last leaves."""
        return not self._welcomed[-1].recv(1)

    def leave(self) -> None:
        """Hang up on the rank that was welcomed last."""
        self._welcomed.pop().close()

    def close(self) -> None:
        for each in (*self._welcomed, self._listener):
            each.close()


def is_held(lock: Path) -> bool:
    """Whether a process passes for a writer."""
    fd = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.fixture
def sidecar() -> Iterator[HandingOver]:
    folder = Path(tempfile.mkdtemp(prefix="tkv-", dir="/tmp"))  # short enough for a socket
    handing_over = HandingOver(folder)
    yield handing_over
    handing_over.close()
    shutil.rmtree(folder)


@pytest.fixture
def link(sidecar: HandingOver) -> Iterator[WorkerLink]:
    link = WorkerLink(Hello(1, 1, "worker", "engine"), lambda: sidecar.path, SystemClock(), None)
    link.report("")
    yield link
    link.close()


def refuse(_: Attachment) -> None:
    raise OSError("cannot be pinned")


@pytest.mark.parametrize(
    ("said", "on_attach"),
    [
        (Welcome(1, EPOCH, 2 * ARENA_BYTES, SLOT_BYTES, GOOD.offsets), None),
        (Welcome(1, EPOCH, 1 << 63, SLOT_BYTES, GOOD.offsets), None),
        (Welcome(1, EPOCH, ARENA_BYTES, SLOT_BYTES, np.array([8192], "<i8").tobytes()), None),
        (Welcome(1, EPOCH, ARENA_BYTES, SLOT_BYTES, b"odd"), None),
        (GOOD, refuse),
    ],
    ids=["longer than it is", "longer than any", "slots outside", "offsets cut", "not to be prepared"],
)
def test_a_rank_that_cannot_map_holds_nothing_and_tries_again(
    sidecar: HandingOver,
    link: WorkerLink,
    said: Welcome,
    on_attach: Callable[[Attachment], None] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if on_attach is not None:
        link.set_on_attach(on_attach)
    link.watch()
    for _ in range(2):
        lock = sidecar.welcome(said)
        assert sidecar.hung_up()
        wait_until(lambda held=lock: not is_held(held), "let go of")
        assert link.current is None
    link.set_on_attach(lambda _: None)
    lock = sidecar.welcome(GOOD)
    wait_until(lambda: link.current is not None, "mapped")
    assert is_held(lock)
    assert len([record for record in caplog.records if "detached" in record.message]) == 1


def test_a_rank_says_why_it_does_not_come_back(
    sidecar: HandingOver, link: WorkerLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.watch()
    sidecar.welcome(GOOD)
    wait_until(lambda: link.current is not None, "mapped")
    sidecar.leave()
    for _ in range(2):
        sidecar.welcome(Welcome(1, EPOCH + 1, 2 * ARENA_BYTES, SLOT_BYTES, GOOD.offsets))
        assert sidecar.hung_up()
    reasons = [record.message for record in caplog.records if "detached" in record.message]
    assert len(reasons) == 2, "of the loss, and of all attempts"
    assert "cannot be mapped" in reasons[1]
