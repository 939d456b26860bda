"""The runtime directory: what lies where, who may look inside, and that only one sidecar uses it."""

import fcntl
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tieredkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RuntimeDirectory:
    """Paths below `runtime_dir`."""

    path: Path

    @property
    def lock(self) -> Path:
        """Locked as long as a sidecar lives."""
        return self.path / "sidecar.lock"

    @property
    def pool_record(self) -> Path:
        """What a later sidecar needs to adopt the pools."""
        return self.path / "pool.json"

    @property
    def attached(self) -> Path:
        """Directory of the attachment locks."""
        return self.path / "attached"

    @property
    def vineyard_socket(self) -> Path:
        """vineyardd's socket."""
        return self.path / "vineyard.sock"

    @property
    def vineyard_log(self) -> Path:
        """vineyardd's log; kept after the end."""
        return self.path / "vineyardd.log"


def prepare_directory(path: Path, *, shared: bool, key: str) -> None:
    """Create `path` for us alone, or check that it is. `shared` lets other users pass through (0711).

    Raises ConfigError naming `key` when the directory is not ours, or open to others.
    """
    mode = 0o711 if shared else 0o700
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}; choose a directory that can be created") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{key}: {path} is not a directory")
    if status.st_uid != os.getuid():
        raise ConfigError(f"{key}: {path} belongs to uid {status.st_uid}, not to uid {os.getuid()}; choose another")
    forbidden = stat.S_IMODE(status.st_mode) & ~mode
    if forbidden & 0o077:
        found = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"{key}: {path} is open to other users (mode {found:04o}); chmod {mode:o} it, or choose another"
        )
    for parent in path.resolve().parents:
        permissions = parent.stat().st_mode
        if permissions & stat.S_IWOTH and not permissions & stat.S_ISVTX:
            raise ConfigError(f"{key}: {parent} is writable by everybody, so {path} can be replaced; choose another")


def take_lock(path: Path) -> int:
    """Become the only sidecar of this directory; returns the locked descriptor. Raises ConfigError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise ConfigError(
                f"runtime_dir: a sidecar (pid {holder or 'unknown'}) already runs in {path.parent}; "
                "stop it, or choose another runtime_dir"
            ) from None
        # The former holder may have removed the file between our open and our lock.
        with suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == path.stat().st_ino:
                os.ftruncate(fd, 0)
                os.write(fd, f"{os.getpid()}\n".encode())
                return fd
        os.close(fd)


def is_allowed(uid: int, allowed: Collection[int]) -> bool:
    """Whether a process of user `uid` may map the arena. Our own user always may."""
    return uid == os.getuid() or uid in allowed
