"""A sidecar that says exactly what a test tells it to, over a real Unix socket and the real protocol."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tieredkv.protocol import (
    Arrive,
    Enabled,
    Found,
    FrameReader,
    FromEngine,
    Leased,
    Message,
    Welcome,
    decode_from_engine,
    encode,
)

EPOCH = 77


class ScriptedSidecar:
    """Accepts one engine at a time; every answer is explicit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._peer: socket.socket | None = None
        self._reader = FrameReader()

    def accept(self) -> None:
        """Take the next connection."""
        self._listener.settimeout(2.0)
        self._peer, _ = self._listener.accept()
        self._peer.setblocking(False)
        self._reader = FrameReader()

    def heard(self) -> list[FromEngine]:
        """All whole messages that have arrived."""
        assert self._peer is not None
        said: list[FromEngine] = []
        while True:
            try:
                data = self._peer.recv(1 << 20)
            except BlockingIOError:
                return said
            if not data:
                return said
            said += [decode_from_engine(body) for body in self._reader.feed(data)]

    def say(self, message: Message) -> None:
        """Send one message."""
        self.say_bytes(encode(message))

    def say_bytes(self, data: bytes) -> None:
        """Send anything."""
        assert self._peer is not None
        self._peer.sendall(data)

    def welcome(self, slots: int = 0, epoch: int = EPOCH) -> None:
        """Greet and enable; the pool has so many slots."""
        self.say(Welcome(1, epoch, 4096, 1024, bytes(8 * slots)))
        self.say(Enabled(""))

    def lease(self, slots: list[int]) -> None:
        """Hand out these slots, generation = slot + 100."""
        array = np.array(slots, dtype="<i4")
        self.say(Leased(array.tobytes(), (array.astype("<u8") + 100).tobytes()))

    def find(self, arrive: Arrive, slots: list[int], evicted: int = 0) -> None:
        """Answer an arrival; -1 is absent."""
        array = np.array(slots, dtype="<i4")
        generations = np.where(array >= 0, array + 100, 0).astype("<u8")
        self.say(Found(arrive.request, arrive.seq, [array.tobytes()], [generations.tobytes()], evicted))

    def hang_up(self) -> None:
        """Die."""
        assert self._peer is not None
        self._peer.close()
        self._peer = None

    def close(self) -> None:
        """End for good."""
        if self._peer is not None:
            self._peer.close()
        self._listener.close()


@contextmanager
def scripted_sidecar() -> Iterator[ScriptedSidecar]:
    """One in a folder of its own, whose path is short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="tkv-", dir="/tmp")
    sidecar = ScriptedSidecar(Path(folder) / f"{os.getpid()}.sock")
    try:
        yield sidecar
    finally:
        sidecar.close()
        shutil.rmtree(folder)
