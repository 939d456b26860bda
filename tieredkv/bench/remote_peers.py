"""Other stores that hold chunks for other processes, to be measured beside ours."""

import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any, Final, Protocol

import numpy as np

from tieredkv.errors import ConfigError, TieredKVError

_START_S: Final = 20.0
_POLL_S: Final = 0.01
_MOONCAKE_BUFFER_BYTES: Final = 64 * 1024 * 1024


class Peer(Protocol):
    """A store that holds a batch of chunks."""

    def read(self, targets: Sequence[memoryview]) -> None:
        """Get the whole batch, chunk N into `targets[N]`."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    package: str
    program: str
    open: Callable[[Sequence[memoryview], memoryview], AbstractContextManager[Peer]]


def check_peers(names: Sequence[str]) -> None:
    """Raises ConfigError for one that is not known or not installed."""
    for name in names:
        known = _KNOWN.get(name)
        if known is None:
            raise ConfigError(f"--peers {name}: not one of {', '.join(sorted(_KNOWN))}")
        if importlib.util.find_spec(known.package) is None or shutil.which(known.program) is None:
            raise ConfigError(f"--peers {name}: needs the package {known.package} and the program {known.program}")


def open_peer(name: str, chunks: Sequence[memoryview], arena: memoryview) -> AbstractContextManager[Peer]:
    """A running store of that name (see check_peers) that holds the chunks; targets will lie in `arena`.

    Raises TieredKVError when it does not run.
    """
    return _KNOWN[name].open(chunks, arena)


class _Redis:
    """Redis over TCP, a pipeline of GETs; its client makes bytes of each value, which are then copied."""

    def __init__(self, client: Any, chunks: Sequence[memoryview]) -> None:
        self._client = client
        for number, chunk in enumerate(chunks):
            client.set(number, chunk)

    def read(self, targets: Sequence[memoryview]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for number in range(len(targets)):
            pipeline.get(number)
        for target, value in zip(targets, pipeline.execute(), strict=True):
            target[:] = value


class _Mooncake:
    """Mooncake's Store over TCP, one batch_get_into straight into registered memory."""

    def __init__(self, store: Any, chunks: Sequence[memoryview], arena: memoryview) -> None:
        self._store = store
        self._keys = [str(number) for number in range(len(chunks))]
        _succeeded("register_buffer", store.register_buffer(_address(arena), len(arena)))
        for key, chunk in zip(self._keys, chunks, strict=True):
            _succeeded("put", store.put(key, bytes(chunk)))

    def read(self, targets: Sequence[memoryview]) -> None:
        sizes = [len(target) for target in targets]
        got = self._store.batch_get_into(self._keys, [_address(target) for target in targets], sizes)
        if got != sizes:
            raise TieredKVError(f"Mooncake's batch_get_into: {got}")


@contextmanager
def _mooncake(chunks: Sequence[memoryview], arena: memoryview) -> Generator[Peer]:
    held_bytes = sum(map(len, chunks))
    port = _free_port()
    command = ["mooncake_master", f"--rpc_port={port}", f"--metrics_port={_free_port()}"]
    with _process(command, port), ExitStack() as opened:
        ours, theirs = get_context("spawn").Pipe()
        holder = get_context("spawn").Process(target=_hold, args=(theirs, port, 2 * held_bytes), daemon=True)
        holder.start()
        theirs.close()
        opened.callback(holder.join, _START_S)
        opened.callback(ours.close)
        if not ours.poll(_START_S):
            raise TieredKVError("Mooncake's holder did not start")
        _succeeded("setup", ours.recv())
        store = _mooncake_store(port, 0)
        opened.callback(store.close)
        yield _Mooncake(store, chunks, arena)


def _hold(connection: Connection, master_port: int, segment_bytes: int) -> None:
    """Lend memory to the store until the other end of the connection is closed."""
    store = _mooncake_store(master_port, segment_bytes)
    connection.send(0)
    with suppress(EOFError):
        connection.recv()
    store.close()


def _mooncake_store(master_port: int, segment_bytes: int) -> Any:
    store = importlib.import_module("mooncake.store").MooncakeDistributedStore()
    host, master = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{master_port}"
    _succeeded("setup", store.setup(host, "P2PHANDSHAKE", segment_bytes, _MOONCAKE_BUFFER_BYTES, "tcp", "", master))
    return store


def _succeeded(call: str, code: int) -> None:
    if code:
        raise TieredKVError(f"Mooncake's {call}: code {code}")


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@contextmanager
def _redis(chunks: Sequence[memoryview], arena: memoryview) -> Generator[Peer]:
    del arena  # its client receives into memory of its own
    redis: Any = importlib.import_module("redis")
    port = _free_port()
    with _process(["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"], port):
        client = redis.Redis(port=port)
        try:
            yield _Redis(client, chunks)
        finally:
            client.close()


@contextmanager
def _process(command: Sequence[str], port: int) -> Generator[None]:
    """A process, from when it listens on the port until the end."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until_s = monotonic() + _START_S
        while not _listens(port):
            if process.poll() is not None or monotonic() > until_s:
                raise TieredKVError(f"{command[0]} did not start")
            sleep(_POLL_S)
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


_KNOWN: Final = {
    "mooncake": _Known("mooncake", "mooncake_master", _mooncake),
    "redis": _Known("redis", "redis-server", _redis),
}
