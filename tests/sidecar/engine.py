"""A small blocking engine: speaks the protocol, maps the arena, writes and reads chunk bodies."""

import array
import mmap
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from tieredkv.protocol import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Arrive,
    Enabled,
    Evicted,
    Found,
    FrameReader,
    FromSidecar,
    Hello,
    Lease,
    Leased,
    Loaded,
    Message,
    PoolState,
    Publish,
    Refused,
    Release,
    Reset,
    SelfTest,
    Status,
    StatusAsk,
    Stop,
    Welcome,
    decode_from_sidecar,
    encode,
)
from tieredkv.tiers.slots import HEADER_BYTES, SlotWords

TIMEOUT_S = 10.0
RECEIVE_BYTES = 1 << 18
NAMESPACE = b"namespace-of-16b"
BODY_BYTES = 4096

Kind = TypeVar("Kind", bound=Message)


class Refusal(Exception):
    """The sidecar sent Refused."""


class Link:
    """One connection."""

    opened: ClassVar[list["Link"]] = []
    """All of this process, to be closed after a test however it ended."""

    def __init__(self, path: Path) -> None:
        Link.opened.append(self)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.fds: list[int] = []
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._reader = FrameReader()
        self._inbox: list[FromSidecar] = []
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._greeted = False

    def send(self, message: Message) -> None:
        self.socket.sendall(encode(message))

    def receive(self) -> FromSidecar:
        """The next message. Raises EOFError when the sidecar hung up."""
        while not self._inbox:
            try:
                if self._greeted:
                    size = self.socket.recv_into(self._buffer)
                else:
                    size, fds = self._receive_first()
                    self.fds += fds
            except ConnectionError:
                raise EOFError from None
            if not size:
                raise EOFError
            self._greeted = True
            self._inbox += [decode_from_sidecar(body) for body in self._reader.feed(self._buffer[:size])]
        return self._inbox.pop(0)

    def _receive_first(self) -> tuple[int, list[int]]:
        """Descriptors come with the first byte only."""
        space = socket.CMSG_SPACE(4 * 4)
        size, ancillary, _, _ = self.socket.recvmsg_into([self._buffer], space)
        return size, [fd for _, _, content in ancillary for fd in array.array("i", content)]

    def expect(self, kind: type[Kind]) -> Kind:
        try:
            message = self.receive()
        except (EOFError, TimeoutError):
            self.close()
            raise
        if isinstance(message, Refused) and kind is not Refused:
            self.close()
            raise Refusal(message.reason)
        assert isinstance(message, kind), f"{message} instead of {kind.__name__}"
        return message

    def ended(self) -> bool:
        """Whether the sidecar hangs up (before the time-out)."""
        try:
            while True:
                self.receive()
        except EOFError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Admin(Link):
    """An administrator's connection."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.send(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "admin"))
        self.expect(Welcome)

    def status(self) -> dict:
        self.send(StatusAsk())
        return msgspec.json.decode(self.expect(Status).json)

    def stop(self) -> None:
        self.send(Stop())
        assert self.ended()


def hello(role: str, engine_id: str, **changes: object) -> Hello:
    """The greeting of a small engine with one KV group."""
    parts: dict = {
        "namespace": NAMESPACE,
        "description": {"model": "small"},
        "body_bytes": BODY_BYTES,
        "chain_tokens": 16,
        "group_strides": (1,),
    }
    return Hello(PROTOCOL_MIN, PROTOCOL_MAX, role, engine_id=engine_id, **(parts | changes))


NOT_READY = "the warm tier is not ready"
ATTEMPTS = 5


class Worker(Link):
    """A rank: holds the mapping."""

    def __init__(self, path: Path, engine_id: str, rank: int = 0, *, verdict: str | None = "", **changes: object):
        super().__init__(path)
        self.send(hello("worker", engine_id, rank=rank, **changes))
        self.welcome = self.expect(Welcome)
        self.arena = np.frombuffer(mmap.mmap(self.fds[0], self.welcome.arena_bytes), np.uint8)
        self.offsets = np.frombuffer(self.welcome.offsets, "<i8")
        self.words = SlotWords(self.arena, self.offsets, self.welcome.slot_bytes)
        if verdict is not None:
            self.send(SelfTest(verdict))

    def body(self, slot: int, size: int = BODY_BYTES) -> npt.NDArray[np.uint8]:
        start = int(self.offsets[slot]) + HEADER_BYTES
        return self.arena[start : start + size]


def attach_worker(path: Path, engine_id: str, **changes: object) -> Worker:
    """Attach like a real worker, which tries again when a busy machine makes its pool late."""
    for _ in range(ATTEMPTS - 1):
        try:
            return Worker(path, engine_id, **changes)
        except Refusal as refusal:
            if NOT_READY not in str(refusal):
                raise
    return Worker(path, engine_id, **changes)


class Engine:
    """A scheduler and one worker."""

    def __init__(self, path: Path, engine_id: str | None = None, **changes: object) -> None:
        self.id = engine_id or f"engine-{secrets.token_hex(4)}"
        self.worker = attach_worker(
            path, self.id, **{key: value for key, value in changes.items() if key != "wants_events"}
        )
        self.scheduler = Link(path)
        self.scheduler.send(hello("scheduler", self.id, **changes))
        self.welcome = self.scheduler.expect(Welcome)
        assert self.scheduler.expect(Enabled).reason == ""
        self.evicted: list[tuple[int, bytes]] = []
        self.loaded: list[Loaded] = []
        self._seq = 0

    def answer(self, kind: type[Kind]) -> Kind:
        """The next message of that kind; evictions and loads that come before it are kept."""
        while True:
            message = self.scheduler.receive()
            if isinstance(message, Evicted):
                self.evicted += [(message.group, key) for key in message.keys]
            elif isinstance(message, Loaded) and kind is not Loaded:
                self.loaded.append(message)
            elif not isinstance(message, PoolState):
                break
        assert isinstance(message, kind), message
        return message

    def lease(self, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        self.scheduler.send(Lease(count))
        leased = self.answer(Leased)
        return np.frombuffer(leased.slots, "<i4"), np.frombuffer(leased.generations, "<u8")

    def publish(self, keys: Sequence[bytes], slots: npt.NDArray[np.int32], parent: bytes = b"", first: int = 0) -> None:
        positions = np.arange(first, first + len(keys), dtype="<i4").tobytes()
        parents = [parent, *keys[:-1]]
        self.scheduler.send(Publish(0, list(keys), parents, positions, slots.astype("<i4").tobytes()))

    def store(self, keys: Sequence[bytes]) -> int:
        """Store a chain, each body filled from its key; returns how many slots were leased for it."""
        slots, _ = self.lease(len(keys))
        for key, slot in zip(keys, slots.tolist(), strict=False):
            self.worker.body(slot)[:] = body_of(key)
        self.publish(keys[: len(slots)], slots)
        return len(slots)

    def find(self, keys: Sequence[bytes], request: str = "r") -> Found:
        self._seq += 1
        self.scheduler.send(Arrive(request, self._seq, list(keys), 16 * len(keys)))
        found = self.answer(Found)
        assert (found.request, found.seq) == (request, self._seq)
        return found

    def load(self, keys: Sequence[bytes], request: str = "r") -> int:
        """How many leading chunks of the chain are there; asserts that their bytes are right.

        Waits for what is coming from cold.
        """
        found = self.find(keys, request)
        places = dict(enumerate(self._columns(found.slots[0], found.generations[0])))
        over = not found.coming
        while not over:
            loaded = self.loaded.pop(0) if self.loaded else self.answer(Loaded)
            if (loaded.request, loaded.seq) == (request, self._seq):
                numbers = np.frombuffer(loaded.numbers, "<i4").tolist()
                places.update(zip(numbers, self._columns(loaded.slots, loaded.generations), strict=True))
                over = loaded.over
        count = next((number for number in range(len(keys)) if places.get(number, (-1, 0))[0] < 0), len(keys))
        for number, key in enumerate(keys[:count]):
            slot, generation = places[number]
            index, wanted = np.array([slot]), np.array([generation], np.uint64)
            assert self.worker.words.agree(index, wanted).all()
            body = self.worker.body(slot).copy()
            assert self.worker.words.agree(index, wanted).all()
            assert bytes(body) == bytes(body_of(key)), "wrong bytes under a key"
        self.scheduler.send(Release(request))
        return count

    @staticmethod
    def _columns(slots: bytes, generations: bytes) -> list[tuple[int, int]]:
        return list(zip(np.frombuffer(slots, "<i4").tolist(), np.frombuffer(generations, "<u8").tolist(), strict=True))

    def reset(self) -> None:
        """New weights; returns when the sidecar has forgotten everything."""
        self.scheduler.send(Reset())
        self.lease(0)

    def close(self) -> None:
        self.scheduler.close()
        self.worker.close()


def chain(seed: int, count: int) -> list[bytes]:
    """Keys of a chain: 32 bytes each."""
    return [key.tobytes() for key in np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)]


def body_of(key: bytes, size: int = BODY_BYTES) -> npt.NDArray[np.uint8]:
    """The bytes stored under a key: different ones for each."""
    return np.resize(np.frombuffer(key, np.uint8), size)
