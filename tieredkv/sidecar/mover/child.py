"""One life of the mover's process, as its sidecar holds it: start, frames both ways, death.

Ownership: the sidecar's loop. No call waits, `close` excepted.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import Final

from tieredkv.protocol import FrameReader, encode
from tieredkv.sidecar.mover.messages import ArenaIs, FromMover, ToMover, decode_from_mover

_RECEIVE_BYTES: Final = 256 * 1024
_RECEIVES_PER_TURN_MAX: Final = 16
_REAP_DEADLINE_S: Final = 5.0


class MoverLost(Exception):
    """The process hung up."""


class MoverChild:
    """A mover's process. `poller` is told what to watch for it; raises OSError when it cannot be started."""

    def __init__(self, poller: select.epoll, arena_fd: int, arena_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tieredkv.sidecar.mover"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    # It calls no BLAS; the threads of one would cost its start.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                    # Signals of a terminal are for the sidecar, which ends it.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        try:
            # The buffer is empty: the first frame goes whole.
            ours.setblocking(False)
            socket.send_fds(ours, [encode(ArenaIs(arena_bytes))], [arena_fd])
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            ours.close()
            self._process.kill()
            self._process.wait()
            raise
        self._socket = ours
        self._poller = poller
        self._reader = FrameReader()
        self._outbox: deque[memoryview] = deque()
        self._watches_output = False
        self._connected = True
        self.sent_bytes = 0
        poller.register(self.pidfd, select.EPOLLIN)
        poller.register(ours, select.EPOLLIN)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def backlog_bytes(self) -> int:
        """What waits for room in the socket."""
        return sum(map(len, self._outbox))

    def send(self, message: ToMover) -> None:
        """Queue a message, and send what the socket takes."""
        self._outbox.append(memoryview(encode(message)))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes. That a process is gone shows when it is received from."""
        with suppress(BlockingIOError, ConnectionError):
            while self._connected and self._outbox:
                head = self._outbox[0]
                sent = self._socket.send(head)
                self.sent_bytes += sent
                if sent == len(head):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = head[sent:]
        if self._connected and bool(self._outbox) != self._watches_output:
            self._watches_output = bool(self._outbox)
            self._poller.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._outbox else 0))

    def receive(self) -> list[FromMover]:
        """Messages that are whole now. Raises MoverLost at the end, and ProtocolError."""
        answers: list[FromMover] = []
        for _ in range(_RECEIVES_PER_TURN_MAX):
            try:
                received = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                received = b""
                if not answers:
                    raise MoverLost(str(error)) from None
            if not received:
                if answers:
                    break  # first what it said last; the end is still there at the next turn
                raise MoverLost("it hung up")
            answers += map(decode_from_mover, self._reader.feed(received))
        return answers

    def kill(self) -> None:
        """Have it end at once; `ended` tells when it did. What it said is not read any more."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._disconnect()

    def ended(self) -> bool:
        """Whether it has ended: it writes nothing any more."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def close(self) -> None:
        """Kill it unless it has ended, wait for its end, and forget it."""
        self.kill()
        select.select([self.pidfd], [], [], _REAP_DEADLINE_S)
        self._poller.unregister(self.pidfd)
        os.close(self.pidfd)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0)

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._poller.unregister(self._socket)
            self._socket.close()
            self._outbox.clear()
