"""The scheduler's connection to its node's sidecar.

Ownership: everything here belongs to the scheduler's thread; there is no other thread. No call waits:
the socket is non-blocking, `poll` reads what is there, `send` writes what fits and keeps the rest,
bounded. Only `attach`, used once at start, waits, and that with a deadline. A sidecar that is dead,
hung or absent costs each request at most one deadline, and all requests together one.
"""

import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from os import close
from pathlib import Path
from typing import Final

from tieredkv.clock import Clock
from tieredkv.errors import ProtocolError
from tieredkv.protocol import (
    Enabled,
    Evicted,
    Found,
    FrameReader,
    FromSidecar,
    Hello,
    Leased,
    Loaded,
    Message,
    PoolState,
    Refused,
    Welcome,
    decode_from_sidecar,
    encode,
)

logger = logging.getLogger("tieredkv.client")

OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
RECEIVE_BYTES: Final = 256 * 1024
RECEIVES_PER_POLL_MAX: Final = 16
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 5.0
WELCOME_DEADLINE_S: Final = 5.0
SEND_BUFFER_BYTES: Final = 4 * 1024 * 1024
OFFSET_BYTES: Final = 8
"""Of one slot, in a welcome."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the owner does with the sidecar's messages; called from inside `poll`."""

    hello: Callable[[], Hello]
    enabled: Callable[[int, int], None]
    """Tiering is on, for this epoch, over a pool of so many slots."""
    lost: Callable[[], None]
    """The connection is gone: answers, leases and pins with it."""
    found: Callable[[Found], None]
    loaded: Callable[[Loaded], None]
    leased: Callable[[Leased], None]
    evicted: Callable[[Evicted], None]
    pool_state: Callable[[PoolState], None]


class EngineClient:
    """Connects, re-connects with backoff, frames and unframes; knows nothing of requests."""

    def __init__(
        self,
        socket_path: Callable[[], Path],
        handlers: Handlers,
        clock: Clock,
        revive: Callable[[], None] | None = None,
    ) -> None:
        """`socket_path` is asked at each attempt; `revive` may start a private sidecar, without waiting."""
        self._socket_path = socket_path
        self._handlers = handlers
        self._clock = clock
        self._revive = revive
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._welcomed = False
        self._epoch = 0
        self._slots = 0
        self._enabled = False
        self._retry_s = RETRY_FIRST_S
        self._next_try_s = 0.0
        self._welcome_by_s = 0.0
        self._closed = False
        self._last_reason = ""

    @property
    def enabled(self) -> bool:
        """The sidecar serves this engine now."""
        return self._enabled

    @property
    def unsent(self) -> bool:
        """Something waits for room in the socket."""
        return bool(self._outbox)

    @property
    def reason(self) -> str:
        """Why tiering is off, as far as known."""
        return self._last_reason

    def attach(self, deadline_s: float) -> bool:
        """Wait until the sidecar serves us or `deadline_s` seconds passed. Only for the engine's start."""
        until_s = self._clock.now_s() + deadline_s
        while True:
            self.poll()
            left_s = until_s - self._clock.now_s()
            if self.enabled or left_s <= 0:
                return self.enabled
            readable = [self._socket] if self._socket is not None else []
            select.select(readable, [], [], min(left_s, 0.02))

    def poll(self) -> None:
        """Take in what arrived, send what waits, re-connect when it is time."""
        if self._socket is None:
            if self._closed or self._clock.now_s() < self._next_try_s:
                return
            self._connect()
            return
        if not self._welcomed and self._clock.now_s() > self._welcome_by_s:
            self._lose("the sidecar did not answer the greeting")
            return
        self._flush()
        self._receive()

    def wait_readable(self, timeout_s: float) -> None:
        """Wait until the sidecar said something, `timeout_s` seconds at most. Never on the scheduler's thread."""
        if self._socket is not None:
            select.select([self._socket], [], [], timeout_s)

    def send(self, message: Message) -> bool:
        """Queue and send as far as possible; False when there is no sidecar to send to."""
        if not self._enabled:
            return False
        self._queue(message)
        return self._socket is not None

    def close(self) -> None:
        """Leave; the sidecar frees what we held."""
        self._closed = True
        self._drop()

    def _queue(self, message: Message) -> None:
        try:
            frame = encode(message)
        except ProtocolError as error:
            logger.warning("message dropped: %s", error)
            return
        if self._outbox_bytes + len(frame) > OUTBOX_BYTES_MAX:
            self._lose("the sidecar takes nothing in")
            return
        self._outbox.append(memoryview(frame))
        self._outbox_bytes += len(frame)
        self._flush()

    def _connect(self) -> None:
        path = self._socket_path()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            self._back_off(f"no sidecar at {path}: {error.strerror}")
            if self._revive is not None:
                self._revive()
            return
        self._socket = connection
        self._reader = FrameReader()
        self._welcomed = False
        self._welcome_by_s = self._clock.now_s() + WELCOME_DEADLINE_S
        self._queue(self._handlers.hello())

    def _flush(self) -> None:
        while self._outbox and self._socket is not None:
            head = self._outbox[0]
            try:
                sent = self._socket.send(head)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(f"connection lost: {error.strerror}")
                return
            self._outbox_bytes -= sent
            if sent == len(head):
                self._outbox.popleft()
            else:
                self._outbox[0] = head[sent:]

    def _receive(self) -> None:
        for _ in range(RECEIVES_PER_POLL_MAX):
            if self._socket is None:
                return
            try:
                if self._welcomed:
                    data = self._socket.recv(RECEIVE_BYTES)
                else:
                    # The scheduler never touches the arena: the descriptors are the workers' business.
                    data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, 4)
                    for descriptor in descriptors:
                        close(descriptor)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(f"connection lost: {error.strerror}")
                return
            if not data:
                self._lose("the sidecar closed the connection")
                return
            try:
                for body in self._reader.feed(data):
                    self._dispatch(decode_from_sidecar(body))
            except ProtocolError as error:
                self._lose(f"the sidecar sent nonsense: {error}")
                return
            if len(data) < RECEIVE_BYTES:
                return

    def _dispatch(self, message: FromSidecar) -> None:
        match message:
            case Found():
                self._handlers.found(message)
            case Loaded():
                self._handlers.loaded(message)
            case Leased():
                self._handlers.leased(message)
            case Evicted():
                self._handlers.evicted(message)
            case PoolState():
                self._handlers.pool_state(message)
            case Welcome():
                self._welcomed = True
                self._epoch = message.epoch
                self._slots = len(message.offsets) // OFFSET_BYTES
                self._retry_s = RETRY_FIRST_S
            case Enabled():
                self._enable(message.reason)
            case Refused():
                self._lose(f"the sidecar refused this engine: {message.reason}")
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")

    def _enable(self, reason: str) -> None:
        if reason:
            self._enabled = False
            self._say(f"tiering is off: {reason}")
            return
        self._enabled = True
        self._last_reason = ""
        logger.info("tiering is on (epoch %x)", self._epoch)
        self._handlers.enabled(self._epoch, self._slots)

    def _lose(self, why: str) -> None:
        self._drop()
        self._back_off(why)
        self._handlers.lost()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._enabled = False
        self._welcomed = False
        self._outbox.clear()
        self._outbox_bytes = 0

    def _back_off(self, why: str) -> None:
        self._say(why)
        self._next_try_s = self._clock.now_s() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)

    def _say(self, why: str) -> None:
        """Log a reason once, not at every attempt."""
        if why != self._last_reason:
            logger.warning("%s; serving on without the warm tier", why)
        self._last_reason = why
