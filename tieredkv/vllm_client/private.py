"""The embedded default: a sidecar of the engine's own, when none is configured and none answers."""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from tieredkv.clock import Clock

logger = logging.getLogger("tieredkv.client")

START_EVERY_S: Final = 5.0
_PREFIX: Final = "tieredkv-private-"


class PrivateSidecar:
    """Starts the private sidecar of one engine, once per node; safe to call from all its processes.

    It ends by itself when the engine's last connection is closed, so nobody has to stop it.
    """

    def __init__(self, engine_id: str, warm_bytes: int, clock: Clock) -> None:
        name = hashlib.sha256(engine_id.encode()).hexdigest()[:12]
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        self.runtime_dir = base / f"{_PREFIX}{os.getuid()}-{name}"
        self.socket_path = self.runtime_dir / "tieredkv.sock"
        self._warm_bytes = warm_bytes
        self._clock = clock
        self._next_s = 0.0
        self._failed = False

    def start(self) -> None:
        """Start it unless a process of this engine just did; returns at once, and never raises OSError."""
        now_s = self._clock.now_s()
        if now_s < self._next_s:
            return
        self._next_s = now_s + START_EVERY_S
        try:
            self._start()
        except OSError as error:
            if not self._failed:
                logger.warning("no private sidecar can be started in %s: %s", self.runtime_dir, error)
            self._failed = True

    def _start(self) -> None:
        self.runtime_dir.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self.runtime_dir / "starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return
        self._remove_ended()
        command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--private"]
        command += ["--runtime-dir", str(self.runtime_dir), "--socket", str(self.socket_path)]
        # Also settings of vLLM's extra config reach it, which it could not read by itself.
        command += ["--warm", str(self._warm_bytes)]
        with (self.runtime_dir / "sidecar.log").open("ab") as log:
            # The lock is inherited: it is held as long as that sidecar lives, so that there is only one.
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )
        os.close(lock)
        logger.info("no sidecar configured: started a private one in %s", self.runtime_dir)

    def _remove_ended(self) -> None:
        """Remove what private sidecars of former engines left behind: their logs."""
        for folder in self.runtime_dir.parent.glob(f"{_PREFIX}{os.getuid()}-*"):
            # A record means that its vineyardd may live, and that a later sidecar may want it.
            if folder == self.runtime_dir or (folder / "pool.json").exists():
                continue
            with suppress(OSError):
                lock = os.open(folder / "starting", os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)
