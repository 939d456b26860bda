"""The demo's own sidecar, in a runtime directory of its own."""

import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tieredkv.demo.processes import POLL_S, Child, Guard
from tieredkv.demo.server import server_environ

READY_WAIT_S: Final = 20.0


class DemoSidecar:
    """`tieredkv sidecar` as a child. `environ` points vLLM to it and is what it runs with itself."""

    def __init__(self, runtime_dir: Path, *, warm_bytes: int, log: Path, guard: Guard) -> None:
        self.environ = {
            "TIEREDKV_RUNTIME_DIR": str(runtime_dir),
            "TIEREDKV_WARM_SIZE": str(warm_bytes),
            "TIEREDKV_ENGINE_SIDECAR": "external",
        }
        self._socket = runtime_dir / "tieredkv.sock"
        self._log = log
        self._guard = guard
        self._child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises DemoFailed."""
        child = Child(
            "the sidecar",
            [sys.executable, "-m", "tieredkv.cli", "sidecar"],
            environ=server_environ(self.environ),
            log=self._log,
            guard=self._guard,
            ends_by="term",
        )
        self._child = child
        deadline_s = time.monotonic() + READY_WAIT_S
        while not self._accepts():
            child.check_runs()
            if time.monotonic() > deadline_s:
                raise child.failed(f"accepted no connection within {READY_WAIT_S:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it cleanly: it ends vineyardd too."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
        return True
