"""A real sidecar for the end-to-end tests: started as a user starts it, killed as nobody should be."""

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

READY_DEADLINE_S = 15.0


class Sidecar:
    """`tieredkv sidecar` in a folder of its own."""

    def __init__(self, warm: str = "256MiB", **settings: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tkv-", dir="/tmp"))
        self.runtime_dir = self.folder / "run"
        self.socket = self.runtime_dir / "tieredkv.sock"
        self.config = self.folder / "tieredkv.yaml"
        self.config.write_text(json.dumps({"runtime_dir": str(self.runtime_dir), "warm": {"size": warm}} | settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Sidecar":
        """Start and wait until it answers."""
        with (self.folder / "sidecar.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tieredkv.cli", "sidecar", "--config", str(self.config)], stdout=log, stderr=log
            )
        wait_until(lambda: self.status() is not None, READY_DEADLINE_S, self.log)
        return self

    def status(self) -> dict[str, Any] | None:
        """`tieredkv status --json -`, or None when nobody answers."""
        command = [sys.executable, "-m", "tieredkv.cli", "status", "--socket", str(self.socket), "--json", "-"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            return None
        answer: dict[str, Any] = json.loads(asked.stdout)
        return answer

    def kill(self) -> None:
        """kill -9 of the sidecar alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill_vineyardd(self) -> None:
        """kill -9 of the daemon that holds the memory."""
        wait_until(lambda: self._vineyardd_pid() is not None, READY_DEADLINE_S, self.log)
        pid = self._vineyardd_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def _vineyardd_pid(self) -> int | None:
        status = self.status()
        return None if status is None else status["vineyardd"]["pid"]

    def stop(self) -> None:
        """End it cleanly and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._end_orphan()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """What it said."""
        return (self.folder / "sidecar.log").read_text()[-2000:]

    def _end_orphan(self) -> None:
        """A vineyardd whose sidecar was killed lives on by design; end it with the test."""
        record = self.runtime_dir / "pool.json"
        if record.exists():
            with_pid = json.loads(record.read_text())
            pid = with_pid.get("vineyardd", {}).get("pid") or with_pid.get("vineyardd_pid")
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], deadline_s: float, describe: Callable[[], str] = str) -> None:
    """Poll a condition of another process; AssertionError with `describe()` when it does not come."""
    until_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until_s, f"not within {deadline_s} s: {describe()}"
        time.sleep(0.02)
