"""Processes of the demo: each leads a group of its own, writes to a log file and is watched by a guard."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from tieredkv.demo import guard as guard_script
from tieredkv.demo.failure import DemoFailed

POLL_S: Final = 0.05
LOG_TAIL_LINES: Final = 12


class Guard:
    """Our end of the guard process: whatever is named here ends even when we are killed with -9."""

    def __init__(self) -> None:
        script = guard_script.__file__
        assert script is not None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # an interrupt from the terminal must not reach it
        )

    def watch(self, group: int, how: Literal["kill", "term"]) -> None:
        self._tell(f"{how} {group}")

    def forget(self, what: int | Path) -> None:
        """Take back a `watch` or `remove`."""
        self._tell(f"forget {what}")

    def remove(self, directory: Path) -> None:
        """Have the directory removed at the end, however it comes."""
        self._tell(f"remove {directory}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise DemoFailed("demo: its guard process is gone, so nothing more is started") from error


class Child:
    """One process and its descendants (a process group).

    `ends_by` "term" is for a leader that has to end others itself: it is asked before it is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        log: Path,
        guard: Guard,
        ends_by: Literal["kill", "term"],
    ) -> None:
        self.name = name
        self.log = log
        self._guard = guard
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard.watch(self.pid, ends_by)

    @property
    def pid(self) -> int:
        """Process id of the leader, which is also the id of its group."""
        return self._process.pid

    def check_runs(self) -> None:
        """Raise DemoFailed, with the end of the log, when the leader has ended."""
        status = self._process.poll()
        if status is not None:
            raise self.failed(f"ended with status {status}")

    def failed(self, what: str) -> DemoFailed:
        """An error that says what happened to this child and quotes the end of its log."""
        with self.log.open(errors="replace") as lines:
            tail = "".join(deque(lines, maxlen=LOG_TAIL_LINES))
        return DemoFailed(f"demo: {self.name} {what}; the end of {self.log.name}:\n{tail.rstrip()}")

    def kill(self, *, wait_s: float = 10.0) -> None:
        """`kill -9` of the whole group; returns when none of it runs any more."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_gone(wait_s)
        self._guard.forget(self.pid)

    def stop(self, *, wait_s: float = 10.0) -> None:
        """Ask the leader to end, then kill what is left of the group after `wait_s`."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
        self.kill()

    def _wait_gone(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        self._process.wait(wait_s)
        while running_members(self.pid):
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"demo: {self.name} (group {self.pid}) does not die")
            time.sleep(POLL_S)


def running_members(group: int) -> list[int]:
    """Process ids of the group's members, zombies left out (their reaper may be slow or absent)."""
    members: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may itself hold spaces and parentheses.
            state, _, member_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it ended between the listing and the reading
        if int(member_group) == group and state not in "ZX":
            members.append(int(stat.parent.name))
    return members
