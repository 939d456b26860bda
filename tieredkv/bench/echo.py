"""The floor of a round trip between two processes: the same bytes over a Unix socket, and nothing done with them."""

import socket
from multiprocessing import get_context
from time import perf_counter
from typing import Self

_ANSWER_SHARE = 3
"""Of a request's bytes; an answer of slots and generations has about a third of the keys' bytes."""


def _answer(connection: socket.socket) -> None:
    """Take a length and that many bytes, send a third of them back, until the other side is gone."""
    while head := connection.recv(4, socket.MSG_WAITALL):
        left = size = int.from_bytes(head, "little")
        while left:
            left -= len(connection.recv(min(left, 1 << 18)))
        connection.sendall(bytes(max(1, size // _ANSWER_SHARE)))


class Echo:
    """A process that answers at once."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._process = get_context("spawn").Process(target=_answer, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.round_trip(b"x")  # until it runs

    def round_trip(self, frame: bytes) -> float:
        """Seconds from sending `frame` to having the whole answer."""
        start = perf_counter()
        self._ours.sendall(len(frame).to_bytes(4, "little") + frame)
        left = max(1, len(frame) // _ANSWER_SHARE)
        while left:
            left -= len(self._ours.recv(left))
        return perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join(5.0)
