"""A worker's tie to the sidecar: the mapping of the arena, kept current across restarts.

Ownership: a background thread owns the socket after the start. It publishes one value, the current
`Attachment`, by a single assignment; the worker's thread reads it once per job. An old mapping lives as
long as a job refers to it.
"""

import logging
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tieredkv.clock import Clock
from tieredkv.errors import ProtocolError, TieredKVError
from tieredkv.protocol import (
    FrameReader,
    FromSidecar,
    Hello,
    Lease,
    Leased,
    Message,
    Refused,
    Return,
    SelfTest,
    Welcome,
    decode_from_sidecar,
    encode,
)
from tieredkv.vllm_client.attachment import Attachment

logger = logging.getLogger("tieredkv.worker")

RECEIVE_BYTES: Final = 256 * 1024
ANSWER_DEADLINE_S: Final = 5.0
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 5.0
PROBE_SLOTS: Final = 3

T = TypeVar("T", bound=FromSidecar)


@dataclass(frozen=True, slots=True)
class Offer:
    """Slots that may be written for a self-test."""

    attachment: Attachment
    slots: npt.NDArray[np.int64]


class WorkerLink:
    """Connects a rank, maps the arena, borrows probe slots, reports the self-test."""

    def __init__(
        self,
        hello: Hello,
        socket_path: Callable[[], Path],
        clock: Clock,
        revive: Callable[[], None] | None,
    ) -> None:
        self._hello = hello
        self._socket_path = socket_path
        self._clock = clock
        self._on_attach: Callable[[Attachment], None] = lambda _: None
        self._revive = revive
        self._current: Attachment | None = None
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._inbox: list[FromSidecar] = []
        self._descriptors: list[int] = []
        self._lock_fd: int | None = None
        self._verdict: str | None = None
        self._offer: Offer | None = None
        self._testing: Offer | None = None
        self._stop_read, self._stop_write = os.pipe()
        self._thread: threading.Thread | None = None

    def set_on_attach(self, on_attach: Callable[[Attachment], None]) -> None:
        """`on_attach` prepares a new mapping (registers it with the GPU) before jobs may use it."""
        self._on_attach = on_attach

    @property
    def current(self) -> Attachment | None:
        """The mapping to use for new jobs; None while there is none."""
        return self._current

    def attach(self, deadline_s: float) -> bool:
        """Connect and map, waiting at most `deadline_s` seconds. Only for the worker's start."""
        until_s = self._clock.now_s() + deadline_s
        while True:
            try:
                self._connect(min(until_s, self._clock.now_s() + ANSWER_DEADLINE_S))
            except (OSError, TieredKVError) as error:
                self._disconnect()
                if self._clock.now_s() >= until_s or isinstance(error, PermissionError):
                    logger.warning("no warm tier yet: %s", error)
                    return False
                if self._revive is not None:
                    self._revive()
                select.select([], [], [], 0.05)
            else:
                return True

    def take_offer(self) -> Offer | None:
        """Slots for a self-test that the thread leased after a late attachment; once."""
        offer, self._offer = self._offer, None
        self._testing = offer
        return offer

    def return_offer(self, offer: Offer) -> None:
        """Give the slots of an offer back."""
        self._testing = None
        self._tell(Return(offer.slots.astype("<i4").tobytes()))

    def probe(self, count: int, test: Callable[[Attachment, npt.NDArray[np.int64]], str]) -> str | None:
        """Lease up to `count` slots, run `test` on them, give them back.

        Returns why it failed, or nothing; None when there was no test, because the sidecar went away or
        has no slot yet: the thread then tries again.
        """
        attachment = self._current
        assert attachment is not None, "attach first"
        try:
            self._send(Lease(count))
            leased = self._expect(Leased, self._clock.now_s() + ANSWER_DEADLINE_S)
            slots = np.frombuffer(leased.slots, dtype="<i4").astype(np.int64)
            if not len(slots):
                raise ConnectionError("the sidecar has no free slot for the self-test")
            reason = test(attachment, slots)
            self._send(Return(leased.slots))
        except (OSError, TieredKVError) as error:
            logger.warning("no self-test yet: %s", error)
            self._disconnect()
            return None
        return reason

    def report(self, verdict: str) -> None:
        """Tell the sidecar how the self-test ended, now and after each re-connection."""
        self._verdict = verdict
        self._tell(SelfTest(verdict))

    def watch(self) -> None:
        """Start the thread that re-connects when the sidecar is gone."""
        self._thread = threading.Thread(target=self._watch, name="tieredkv-attach", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and let go of the arena, into which no job may write any more."""
        os.write(self._stop_write, b"x")
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._disconnect()
        self._current = None
        # The process may live on: without this it would keep what the engine had leased.
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # --- the connection ----------------------------------------------------------------------------

    def _connect(self, until_s: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(max(until_s - self._clock.now_s(), 0.01))
        self._reader, self._inbox, self._descriptors = FrameReader(), [], []
        self._socket = connection
        connection.connect(str(self._socket_path()))
        self._send(self._greeting())
        welcome = self._expect(Welcome, until_s)
        if len(self._descriptors) != 2:
            raise ProtocolError(f"expected 2 file descriptors, got {len(self._descriptors)}")
        # If mapping fails they are closed with the connection: who cannot write must not hold a lock.
        arena_fd, lock_fd = self._descriptors
        if self._current is None or self._current.epoch != welcome.epoch:
            self._map(welcome, arena_fd)
        self._descriptors = []
        os.close(arena_fd)
        # The new lock first: at no moment may this process look dead while it can write.
        former, self._lock_fd = self._lock_fd, lock_fd
        if former is not None:
            os.close(former)
        if self._verdict is not None:
            self._send(SelfTest(self._verdict))

    def _greeting(self) -> Hello:
        """Names the slots that the worker's thread is testing with right now: they must stay ours."""
        testing = self._testing
        if testing is None:
            return self._hello
        held = testing.slots.astype("<i4").tobytes()
        return replace(self._hello, held_epoch=testing.attachment.epoch, held_slots=held)

    def _map(self, welcome: Welcome, arena_fd: int) -> None:
        """Raises ProtocolError when the arena is not what the sidecar says of it, and what `on_attach` raises."""
        try:
            mapping = mmap.mmap(arena_fd, welcome.arena_bytes)
            arena = np.frombuffer(mapping, dtype=np.uint8)
            offsets = np.frombuffer(welcome.offsets, dtype="<i8")
            attachment = Attachment.over(arena, epoch=welcome.epoch, offsets=offsets, slot_bytes=welcome.slot_bytes)
        except (AssertionError, OverflowError, ValueError) as error:
            raise ProtocolError(f"the arena cannot be mapped as the sidecar says: {error!r}") from error
        self._on_attach(attachment)
        self._current = attachment

    def _tell(self, message: Message) -> None:
        """Send if there is a connection; the thread mends a broken one, and says it then."""
        connection = self._socket
        if connection is not None:
            try:
                connection.sendall(encode(message))
            except OSError as error:
                logger.warning("not told to the sidecar: %s", error)

    def _send(self, message: Message) -> None:
        assert self._socket is not None
        self._socket.sendall(encode(message))

    def _receive(self) -> None:
        """Read once into the inbox. Raises OSError at the end of the stream or after the time-out."""
        assert self._socket is not None
        data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, 4)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        if not data:
            raise ConnectionError("the sidecar closed the connection")
        self._inbox += [decode_from_sidecar(body) for body in self._reader.feed(data)]

    def _expect(self, kind: type[T], until_s: float) -> T:
        assert self._socket is not None
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kind):
                    return message
                if isinstance(message, Refused):
                    raise PermissionError(f"the sidecar refused this engine: {message.reason}")
            self._socket.settimeout(max(until_s - self._clock.now_s(), 0.01))
            self._receive()

    def _lease_offer(self) -> None:
        """Attached for the first time, by the thread: the worker's own thread must test before any job."""
        self._send(Lease(PROBE_SLOTS))
        leased = self._expect(Leased, self._clock.now_s() + ANSWER_DEADLINE_S)
        slots = np.frombuffer(leased.slots, dtype="<i4").astype(np.int64)
        if not len(slots) or self._current is None:
            raise ConnectionError("the sidecar has no free slot for the self-test")
        self._offer = Offer(self._current, slots)

    def _disconnect(self) -> None:
        self._offer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _watch(self) -> None:
        retry_s = RETRY_FIRST_S
        said = ""
        while True:
            readable = [self._stop_read] if self._socket is None else [self._stop_read, self._socket.fileno()]
            ready, _, _ = select.select(readable, [], [], None if self._socket is not None else retry_s)
            if self._stop_read in ready:
                return
            try:
                if self._socket is None:
                    if self._revive is not None:
                        self._revive()
                    self._connect(self._clock.now_s() + ANSWER_DEADLINE_S)
                    if self._verdict is None and self._testing is None:
                        self._lease_offer()
                    retry_s = RETRY_FIRST_S
                    said = ""
                    logger.info("attached again")
                else:
                    self._receive()
                    self._inbox.clear()
            except (OSError, TieredKVError) as error:
                # A reason once, not at every attempt.
                if str(error) != said:
                    said = str(error)
                    logger.warning("detached: %s", said)
                self._disconnect()
                retry_s = min(retry_s * 2, RETRY_LAST_S)
