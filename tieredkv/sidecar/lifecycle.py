"""A sidecar from its start to its end: directory, lock, socket, threads, signals, loop, cleaning up."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from tieredkv import __version__
from tieredkv.clock import Clock, SystemClock
from tieredkv.config import Config, HttpAddress
from tieredkv.errors import ConfigError
from tieredkv.garbage import collected_in_pauses
from tieredkv.sidecar.callfile import CallFile
from tieredkv.sidecar.directory import RuntimeDirectory, prepare_directory, take_lock
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.keeper import Keeper
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.server import End, Server
from tieredkv.sidecar.supervisor import find_binary
from tieredkv.trace import LineFile

if TYPE_CHECKING:
    from tieredkv.sidecar.http import HttpServer

logger = logging.getLogger("tieredkv.sidecar")

BACKLOG: Final = 128
_SUN_PATH_BYTES_MAX: Final = 107


def run_sidecar(config: Config, *, private: bool, sources: Mapping[str, str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT, Stop or (private) until the engine left; 0 after a clean end.

    Only in a process's main thread. `sources` says where the configuration's values came from. Raises
    ConfigError for what the user can mend; nothing runs and no socket is left then.
    """
    _configure_logging(config.log_level)
    shared = bool(config.security.allowed_uids)
    directory = RuntimeDirectory(config.runtime_dir)
    binary = find_binary(config.vineyardd.binary)
    if len(os.fsencode(directory.vineyard_socket)) > _SUN_PATH_BYTES_MAX:
        raise ConfigError(
            f"runtime_dir: {config.runtime_dir} is too long for a Unix socket in it; choose a shorter one"
        )
    prepare_directory(config.runtime_dir, shared=shared, key="runtime_dir")
    prepare_directory(config.socket.parent, shared=shared, key="socket")
    lock_fd = take_lock(directory.lock)
    try:
        _run_locked(config, directory, binary, private=private, sources=sources or {})
    finally:
        directory.lock.unlink(missing_ok=True)
        os.close(lock_fd)
    logger.info("ended")
    return 0


def _run_locked(
    config: Config, directory: RuntimeDirectory, binary: Path, *, private: bool, sources: Mapping[str, str]
) -> None:
    clock = SystemClock()
    trace, calls = _open_traces(config, clock)
    http: HttpServer | None = None
    try:
        http = _open_http(config.metrics.http, clock) if config.metrics.http is not None else None
        listener = _listen(config.socket, shared=bool(config.security.allowed_uids))
        logger.info(
            "tieredkv %s at %s: warm tier of %d MiB (%s), cold tier of %d MiB",
            __version__,
            config.socket,
            config.warm.size_bytes >> 20,
            sources.get("warm.size", "as configured"),
            config.cold.size_bytes >> 20,
        )
        try:
            inbox = Inbox()
            server = Server(
                config,
                private=private,
                listener=listener,
                directory=directory,
                keeper=Keeper(
                    binary, directory, config.warm.size_bytes + config.cold.size_bytes, inbox, config.cluster.rpc_port
                ),
                inbox=inbox,
                clock=clock,
                recordings=Recordings(trace, calls),
                publish=http.publish if http is not None else None,
            )
            _end_on_signals(inbox)
            with collected_in_pauses():
                server.run()
        finally:
            listener.close()
            config.socket.unlink(missing_ok=True)
    finally:
        if http is not None:
            http.close()
        for file in (trace, calls):
            if file is not None:
                file.close()


def _open_traces(config: Config, clock: Clock) -> tuple[LineFile | None, CallFile | None]:
    path = config.trace.path
    if path is None:
        if config.trace.events:
            raise ConfigError("trace.events: true, but there is no trace.path; name a file there")
        return None, None
    if config.trace.events and (config.cold.size_bytes or config.cluster.enabled):
        raise ConfigError("trace.events: calls are recorded of one tier only; set cold.size to 0, and no cluster")
    try:
        calls = CallFile(LineFile(path.with_name(path.name + ".events.jsonl")), clock) if config.trace.events else None
        return LineFile(path), calls
    except OSError as error:
        raise ConfigError(f"trace.path: {path}: {error.strerror}; choose a file that can be written") from None


def _open_http(address: HttpAddress, clock: Clock) -> "HttpServer":
    # Imported where it is wanted: by default there is no TCP port, and the start is 20 ms shorter.
    from tieredkv.sidecar.http import HttpServer

    return HttpServer(address, clock)


def _end_on_signals(inbox: Inbox) -> None:
    def end(signal_number: int, frame: FrameType | None) -> None:
        del signal_number, frame
        inbox.post(End())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _listen(path: Path, *, shared: bool) -> socket.socket:
    """Bind our socket, in place of the one of a sidecar that is gone. Raises ConfigError."""
    if path.is_socket():
        if _answers(path):
            raise ConfigError(f"socket: another process listens at {path}; stop it, or choose another path")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Its directory keeps others out until the mode is right.
        listener.bind(os.fspath(path))
        path.chmod(0o666 if shared else 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"socket: {path}: {error.strerror}; choose another path") from None
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    with suppress(ValueError, OSError):
        sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
