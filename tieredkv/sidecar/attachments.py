"""Attachment locks: proof that a process which may write into the arena is gone.

Each connected process holds one open file whose flock was taken here, and passed to it. A flock belongs
to the open file, so it ends when the last holder of that descriptor is gone, whatever pid or namespace it
had, and taking it anew succeeds exactly then.
"""

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tieredkv.types import EngineId


@dataclass(frozen=True, slots=True)
class AttachmentLock:
    """The lock file of one connection: `engine` is a hash of the engine's id."""

    path: Path
    engine: str
    role: str
    rank: int


def engine_hash(engine_id: EngineId) -> str:
    """The engine's name in file names: ids are the engines' free choice."""
    return hashlib.blake2b(engine_id.encode(), digest_size=8).hexdigest()


class AttachmentLocks:
    """The lock files of one runtime directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._next = 0

    def create(self, engine_id: EngineId, role: str, rank: int) -> tuple[AttachmentLock, int]:
        """A new lock and its locked descriptor: pass it on, then close it here."""
        engine = engine_hash(engine_id)
        while True:
            path = self._directory / f"{engine}.{role}.{rank}.{self._next}"
            self._next += 1
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return AttachmentLock(path, engine, role, rank), fd

    def former(self) -> list[AttachmentLock]:
        """Locks that an earlier sidecar created, held or not. Files of other names are ignored."""
        found: list[AttachmentLock] = []
        for path in sorted(self._directory.iterdir()):
            engine, _, rest = path.name.partition(".")
            role, _, numbers = rest.partition(".")
            rank, _, number = numbers.partition(".")
            if rank.isdecimal() and number.isdecimal():
                found.append(AttachmentLock(path, engine, role, int(rank)))
        return found

    def released(self, lock: AttachmentLock) -> bool:
        """Whether every holder is gone; then the file is removed."""
        try:
            fd = os.open(lock.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        lock.path.unlink(missing_ok=True)
        return True

    def remove(self) -> None:
        """Remove all lock files and the directory: nobody will ask again."""
        for lock in self.former():
            lock.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._directory.rmdir()
