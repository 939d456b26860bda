"""A real sidecar in a process of its own, with a real vineyardd, in a short-lived folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .engine import Admin

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll a condition of another process until it is true; its value."""
    until_s = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < until_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def suspend(pid: int) -> None:
    """SIGSTOP, and wait until it has: on a busy machine its other threads may do some more before."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(b") T" in stat for stat in _thread_stats(pid)), "stopped")


def _thread_stats(pid: int) -> list[bytes]:
    return [(task / "stat").read_bytes() for task in Path(f"/proc/{pid}/task").iterdir()]


class SidecarProcess:
    """Started by the command that users type; `settings` are keys of the configuration."""

    def __init__(self, warm: str = "32MiB", **settings: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tkv", dir="/tmp"))
        self.directory = self.folder / "run"
        self.socket = self.directory / "tieredkv.sock"
        self.log_file = self.folder / "log"
        self._settings = {"runtime_dir": str(self.directory), "warm": {"size": warm}, **settings}
        if "warm_more" in settings:
            self._settings["warm"] |= self._settings.pop("warm_more")
        self.process: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it; does not wait."""
        config = self.folder / "tieredkv.yaml"
        config.write_text(json.dumps(self._settings))
        command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--config", str(config), *arguments]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def start(self, *arguments: str) -> "SidecarProcess":
        """Start it and wait until it is ready."""
        process = self.spawn(*arguments)
        wait_until(lambda: self.ready() or process.poll() is not None, self.log())
        assert process.poll() is None, self.log()
        return self

    def admin(self) -> Admin:
        return Admin(self.socket)

    def status(self) -> dict[str, Any]:
        """Its own account of itself."""
        admin = self.admin()
        try:
            status = admin.status()
        finally:
            admin.close()
        if status["vineyardd"]["pid"]:
            self._pids.add(status["vineyardd"]["pid"])
        return status

    def kill(self) -> None:
        """kill -9; vineyardd lives on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """kill -9 the sidecar and its vineyardd, as if the machine were gone."""
        pid = self.status()["vineyardd"]["pid"]
        self.kill()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), "dead")

    def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(15)

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def clean_up(self) -> None:
        """End everything that a test may have left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        with suppress(OSError, ValueError):
            self._pids.add(json.loads((self.directory / "pool.json").read_text())["vineyardd"]["pid"])
        for pid in self._pids:
            with suppress(OSError):
                if b"vineyardd" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready(self) -> bool:
        """Whether it answers, and vineyardd runs."""
        try:
            return bool(self.status()["ready"])
        except (OSError, EOFError):
            return False


def listening_ports(sidecar: SidecarProcess) -> dict[int, str]:
    """TCP ports at which its processes listen, and the addresses as /proc/net/tcp has them."""
    status = sidecar.status()
    inodes: set[str] = set()
    for pid in filter(None, (status["pid"], status["vineyardd"]["pid"], status["mover"]["pid"])):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # a connection that ended meanwhile
                inodes.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
    ports: dict[int, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            address, _, port = columns[1].partition(":")
            if columns[3] == "0A" and columns[9] in inodes:
                ports[int(port, 16)] = address
    return ports
