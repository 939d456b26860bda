"""vineyardd as a process: find the binary, start it, recognise it again, end it.

It runs in a session of its own, so that neither a signal to the sidecar's group nor the sidecar's death
takes the warm tier along.
"""

import importlib.util
import os
import select
import shutil
import signal
import socket as sockets
import subprocess
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Final, Literal

from tieredkv.errors import ConfigError, VineyardError
from tieredkv.sidecar.record import ProcessName
from tieredkv.tiers.vineyard import ARENA_SLACK_BYTES, VineyardClient

_POLL_S: Final = 0.002
_KILL_DEADLINE_S: Final = 5.0
_LOG_TAIL_BYTES: Final = 400


def find_binary(configured: Path | Literal["auto"]) -> Path:
    """The vineyardd to run. Raises ConfigError."""
    if configured != "auto":
        if not os.access(configured, os.X_OK):
            raise ConfigError(f"vineyardd.binary: {configured} is not an executable file")
        return configured
    # The package is only located, never imported: importing the shipped client takes seconds.
    package = importlib.util.find_spec("vineyard")
    for location in (package.submodule_search_locations if package else None) or ():
        binary = Path(location) / "bdist" / "vineyardd"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("vineyardd")
    if found is None:
        raise ConfigError(
            "vineyardd.binary: no vineyardd found; pip install 'tieredkv[sidecar]', or name the executable"
        )
    return Path(found)


class Vineyardd:
    """A running vineyardd. `pidfd` becomes readable when it ends; it is the only way it is signalled."""

    def __init__(self, name: ProcessName, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.name = name
        self.pidfd = pidfd
        self._child = child

    @classmethod
    def start(
        cls,
        binary: Path,
        socket: Path,
        log: Path,
        *,
        arena_bytes: int,
        deadline_s: float,
        rpc_port: int | None = None,
    ) -> "Vineyardd":
        """Start one with room for `arena_bytes` and wait until it answers. Raises VineyardError.

        With `rpc_port` everybody who reaches that port can read, write and delete all of it.
        """
        socket.unlink(missing_ok=True)
        command = [os.fspath(binary), "--meta", "local", "--compression=false"]
        command += ["--norpc"] if rpc_port is None else ["--rpc", f"--rpc_socket_port={rpc_port}"]
        command += ["--socket", os.fspath(socket), "--size", str(arena_bytes + ARENA_SLACK_BYTES)]
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_fd,
                env={**os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "1"},
                start_new_session=True,
            )
        except OSError as error:
            raise VineyardError(f"{binary} cannot be started: {error.strerror}") from None
        finally:
            os.close(log_fd)
        pidfd = os.pidfd_open(child.pid)
        ticks = _start_ticks(child.pid)
        started = cls(ProcessName(child.pid, ticks if ticks is not None else 0), pidfd, child)
        try:
            started._wait_ready(socket, rpc_port, log, deadline_s)
        except VineyardError:
            started.kill()
            started.close()
            raise
        return started

    @classmethod
    def recognise(cls, name: ProcessName) -> "Vineyardd | None":
        """The running process of that name, or None when it is gone."""
        try:
            pidfd = os.pidfd_open(name.pid)
        except OSError:
            return None
        # The start time is read after the pidfd is held: from here on the pid cannot be another's.
        if _start_ticks(name.pid) != name.start_ticks:
            os.close(pidfd)
            return None
        return cls(name, pidfd, None)

    def ended(self) -> bool:
        """Whether the process has ended."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def stop(self, grace_s: float) -> None:
        """End it, by force after `grace_s` seconds."""
        self.terminate()
        if not select.select([self.pidfd], [], [], grace_s)[0]:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        select.select([self.pidfd], [], [], _KILL_DEADLINE_S)

    def close(self) -> None:
        """Forget the process; it may run on."""
        os.close(self.pidfd)
        if self._child is not None:
            self._child.poll()
            # Reaped or not ours to wait for any more: silences the warning about a running child.
            self._child.returncode = self._child.returncode if self._child.returncode is not None else 0

    def _wait_ready(self, socket: Path, rpc_port: int | None, log: Path, deadline_s: float) -> None:
        until_s = monotonic() + deadline_s
        while not self.ended():
            left_s = until_s - monotonic()
            if left_s <= 0:
                raise VineyardError(f"vineyardd is not ready after {deadline_s:g} s; see {log}")
            if socket.exists():
                with suppress(VineyardError, ConnectionError):
                    VineyardClient(socket, deadline_s=left_s).close()
                    if rpc_port is not None:
                        # It is bound after the socket; a port in use ends vineyardd instead.
                        sockets.create_connection(("127.0.0.1", rpc_port), left_s).close()
                    socket.chmod(0o600)
                    return
            select.select([self.pidfd], [], [], _POLL_S)
        raise VineyardError(f"vineyardd ended at start: {_tail(log)}")


def end_strays(socket: Path) -> int:
    """Kill every vineyardd of this socket, which must be ours alone; how many there were.

    A sidecar that was killed just after it had started one did not live to note it: that one would hold
    its memory, and the port where other nodes read, for ever.
    """
    ended = 0
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _serves(process, socket):
            with suppress(OSError):
                pidfd = os.pidfd_open(int(process.name))
                # Read again: from here on the pid cannot be another's.
                if _serves(process, socket):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], _KILL_DEADLINE_S)
                    ended += 1
                os.close(pidfd)
    return ended


def _serves(process: Path, socket: Path) -> bool:
    """Whether a process of /proc was started as a vineyardd of this socket."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(pair == (b"--socket", os.fsencode(socket)) for pair in pairwise(words))


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: when the process started, in clock ticks since boot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat[stat.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _tail(log: Path) -> str:
    """The last line of the log, for an error of one line."""
    with suppress(OSError):
        lines = log.read_text(errors="replace")[-_LOG_TAIL_BYTES:].strip().splitlines()
        if lines:
            return lines[-1]
    return f"see {log}"
