"""The floor of reading from another node: a process that sends pieces of an arena over TCP, and nothing else.

`python -m tieredkv.bench.raw_sender LISTENER_FD ARENA_FD ARENA_BYTES` serves one connection. A request is
int64: how many pieces, how long each is, then where they start.
"""

import mmap
import socket
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Final, Self

import numpy as np

_TIMEOUT_S: Final = 60.0
_WORD_BYTES: Final = 8


class RawSender:
    """The process, and a connection to it."""

    def __init__(self, arena_fd: int, arena_bytes: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            fds = (listener.fileno(), arena_fd)
            command = [sys.executable, "-m", __name__, *map(str, fds), str(arena_bytes)]
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
            self._socket = socket.create_connection(listener.getsockname(), _TIMEOUT_S)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self, offsets: Sequence[int], size_bytes: int, targets: Sequence[memoryview]) -> float:
        """Seconds to have the pieces at `offsets` in `targets`, each of `size_bytes`."""
        start_s = perf_counter()
        self._socket.sendall(np.array([len(offsets), size_bytes, *offsets], np.int64).tobytes())
        for target in targets:
            left = target
            while left:
                received = self._socket.recv_into(left, 0, socket.MSG_WAITALL)
                assert received, "the sender is gone"
                left = left[received:]
        return perf_counter() - start_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _serve(listener_fd: int, arena_fd: int, arena_bytes: int) -> None:
    arena = memoryview(mmap.mmap(arena_fd, arena_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
    with socket.socket(fileno=listener_fd) as listener:
        listener.settimeout(_TIMEOUT_S)
        peer, _ = listener.accept()
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while len(head := peer.recv(2 * _WORD_BYTES, socket.MSG_WAITALL)) == 2 * _WORD_BYTES:
        count, size_bytes = np.frombuffer(head, np.int64).tolist()
        offsets = np.frombuffer(peer.recv(count * _WORD_BYTES, socket.MSG_WAITALL), np.int64)
        for offset in offsets.tolist():
            peer.sendall(arena[offset : offset + size_bytes])


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:4]))
