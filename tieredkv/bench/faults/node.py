"""A node: a real sidecar as users start it, with its vineyardd and its mover, all of which can be hurt."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import msgspec

from tieredkv.errors import ProtocolError, TieredKVError, Unreachable
from tieredkv.metrics import FAILURES
from tieredkv.protocol import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FrameReader,
    Hello,
    Status,
    StatusAsk,
    decode_from_sidecar,
    encode,
)
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.supervisor import end_strays

READY_DEADLINE_S: Final = 30.0
STATUS_DEADLINE_S: Final = 5.0
STOP_DEADLINE_S: Final = 15.0
PARTS: Final = ("sidecar", "vineyardd", "mover")
_POLL_S: Final = 0.01
_LOG_TAIL_BYTES: Final = 2000


class Crashed(TieredKVError):
    """A sidecar ended by itself, or found that its own account does not add up."""


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = READY_DEADLINE_S) -> None:
    """Poll until it is true. Raises Unreachable when that takes too long."""
    until_s = monotonic() + deadline_s
    while not condition():
        if monotonic() > until_s:
            raise Unreachable(f"not within {deadline_s:g} s: {what}")
        sleep(_POLL_S)


class Node:
    """`name` and the configuration that differs between nodes; one thread uses it."""

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        self.name = name
        # The path of a socket must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="tkv-faults-", dir="/tmp"))
        self.directory = self._folder / "run"
        self.socket = self.directory / "tieredkv.sock"
        self._log = self._folder / "log"
        config = {"runtime_dir": str(self.directory), **settings}
        (self._folder / "tieredkv.yaml").write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: dict[str, int] = {}

    def start(self) -> None:
        """Start the sidecar, for the first time or again; `ready` tells when it serves."""
        assert self._process is None
        command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--config", str(self._folder / "tieredkv.yaml")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def ready(self) -> bool:
        """Whether it serves, or would if there was an engine: its mover comes with the first pool.

        Raises Crashed.
        """
        if self._process is not None and self._process.poll() is not None:
            raise Crashed(f"the sidecar of node {self.name} ended: {self.log_tail()}")
        try:
            status = self.status()
        except Unreachable:
            return False
        if status["counters"].get(FAILURES, {}).get("internal"):
            raise Crashed(f"the sidecar of node {self.name} had an internal error: {self.log_tail()}")
        return bool(status["ready"] and (status["mover"]["ready"] or not status["pools"]))

    def status(self) -> dict[str, Any]:
        """Its own account of itself. Raises Unreachable."""
        try:
            status = _ask_status(self.socket)
        except (OSError, ProtocolError) as error:
            raise Unreachable(f"node {self.name}: {error}") from None
        assert self._process is not None
        self._pids = {
            "sidecar": self._process.pid,
            "vineyardd": status["vineyardd"]["pid"] or 0,
            "mover": status["mover"]["pid"] or 0,
        }
        return status

    def pid(self, part: str) -> int:
        """The process id of one of PARTS, as of the last status; 0 when there is none."""
        return self._pids.get(part, 0)

    def signal(self, part: str, number: signal.Signals) -> bool:
        """Send a signal to one of PARTS, if it runs."""
        pid = self.pid(part)
        if not pid:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self, part: str) -> None:
        """kill -9. A sidecar has to be started again by whoever started it; the rest it does itself."""
        self.signal(part, signal.SIGKILL)
        if part == "sidecar" and self._process is not None:
            self._process.wait()
            self._process = None

    def kill_all(self) -> None:
        """kill -9 of everything, as if the machine were gone."""
        for part in PARTS:
            self.kill(part)
        wait_for(lambda: not alive(self.pid("vineyardd")), "vineyardd is dead", STOP_DEADLINE_S)

    @property
    def runs(self) -> bool:
        """Whether a sidecar was started and not killed."""
        return self._process is not None

    def log_tail(self) -> str:
        """The end of what it said."""
        return self._log.read_text(errors="replace")[-_LOG_TAIL_BYTES:] if self._log.exists() else ""

    def close(self) -> None:
        """End everything and remove the folder."""
        for part in PARTS:
            self.signal(part, signal.SIGCONT)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        end_strays(RuntimeDirectory(self.directory).vineyard_socket)
        shutil.rmtree(self._folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def _ask_status(path: Path) -> dict[str, Any]:
    reader = FrameReader()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(STATUS_DEADLINE_S)
        connection.connect(str(path))
        connection.sendall(encode(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "admin")) + encode(StatusAsk()))
        while data := connection.recv(1 << 16):
            for body in reader.feed(data):
                message = decode_from_sidecar(body)
                if isinstance(message, Status):
                    status: dict[str, Any] = msgspec.json.decode(message.json)
                    return status
    raise ConnectionResetError("the sidecar hung up")
