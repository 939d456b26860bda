"""Attachment locks: held exactly as long as a process has the descriptor, whoever that is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tieredkv.sidecar.attachments import AttachmentLocks, engine_hash
from tieredkv.types import EngineId

ENGINE = EngineId("engine/../../with any name")


def test_a_lock_is_released_when_its_last_holder_is_gone(tmp_path: Path) -> None:
    locks = AttachmentLocks(tmp_path / "attached")
    lock, fd = locks.create(ENGINE, "worker", 3)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(fd,))
    os.close(fd)
    assert not locks.released(lock)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert locks.released(lock)
    assert not lock.path.exists()
    assert locks.released(lock), "what is gone stays released"


def test_a_later_sidecar_finds_the_locks_of_the_former(tmp_path: Path) -> None:
    directory = tmp_path / "attached"
    former = AttachmentLocks(directory)
    made = [former.create(ENGINE, "worker", rank) for rank in range(2)]
    (directory / "something else").touch()
    later = AttachmentLocks(directory)
    found = later.former()
    assert {(lock.engine, lock.role, lock.rank) for lock in found} == {
        (engine_hash(ENGINE), "worker", 0),
        (engine_hash(ENGINE), "worker", 1),
    }
    new, new_fd = later.create(ENGINE, "worker", 0)
    assert new.path not in {lock.path for lock in found}
    assert not any(later.released(lock) for lock in found)
    for _, fd in made:
        os.close(fd)
    assert all(later.released(lock) for lock in found)
    os.close(new_fd)
    later.remove()
    assert not new.path.exists()


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    _, fd = AttachmentLocks(tmp_path / "attached").create(ENGINE, "scheduler", 0)
    assert not os.get_inheritable(fd)
    os.close(fd)
