"""The reader of vineyardd's RPC against peers that answer wrongly, too much, too little, slowly or never."""

import json
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic

import pytest

from tieredkv.clock import ManualClock
from tieredkv.errors import VineyardError
from tieredkv.tiers.remote import BACKOFF_MIN_S, PeerReader, Wanted
from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION

SIZE = 1000
ID = 1 << 63
REGISTERED = {"type": "register_reply", "version": VINEYARD_VERSION, "store_match": True}
Answer = Callable[[socket.socket], None]


def _frame(answer: object) -> bytes:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return struct.pack("<Q", len(body)) + body


def _send(*parts: bytes) -> Answer:
    return lambda peer: peer.sendall(b"".join(parts))


def _payload(blob_id: int = ID, size: int = SIZE) -> dict[str, int]:
    return {"object_id": blob_id, "data_size": size}


def _buffers(*payloads: object, **more: object) -> bytes:
    return _frame({"type": "get_buffers_reply", "payloads": list(payloads), **more})


class FakePeer:
    """Answers every connection with one answer to its registration and one to each request after it."""

    def __init__(self, *answers: Answer, registered: Answer | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._answers = (registered or _send(_frame(REGISTERED)), *answers)
        self.accepted = 0
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self.accepted += 1
                self._peers.append(peer)
                self._threads.append(threading.Thread(target=self._talk, args=(peer,), daemon=True))
                self._threads[-1].start()

    def _talk(self, peer: socket.socket) -> None:
        with suppress(OSError, struct.error), peer, peer.makefile("rb") as stream:
            for answer in self._answers:
                stream.read(struct.unpack("<Q", stream.read(8))[0])
                answer(peer)
            stream.read()

    def close(self) -> None:
        for part in (self._listener, *self._peers):
            with suppress(OSError):
                part.shutdown(socket.SHUT_RDWR)
            part.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


class Talk:
    """A reader and the peer that it talks to."""

    def __init__(self, *answers: Answer, **more: Answer) -> None:
        self.peer = FakePeer(*answers, **more)
        self.clock = ManualClock(1000.0)
        self.reader = PeerReader("127.0.0.1", self.peer.port, connect_deadline_s=5, clock=self.clock)

    def read(self, count: int = 1, deadline_s: float = 5) -> list[bytes | None]:
        """Blobs ID, ID + 1, ... with 64 bytes on either side that must not change."""
        memory = [bytearray(b"\xaa" * (SIZE + 128)) for _ in range(count)]
        rows = [Wanted(ID + row, SIZE, (memoryview(body)[64:-64],)) for row, body in enumerate(memory)]
        try:
            arrived = self.reader.read(rows, until_s=self.clock.now_s() + deadline_s)
        finally:
            assert all(body[:64] == body[-64:] == b"\xaa" * 64 for body in memory)
        return [bytes(body[64:-64]) if whole else None for body, whole in zip(memory, arrived, strict=True)]


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    made: list[Talk] = []

    def make(*answers: Answer, **more: Answer) -> Talk:
        made.append(Talk(*answers, **more))
        return made[-1]

    yield make
    for one in made:
        one.reader.close()
        one.peer.close()


def test_the_order_of_the_reply_counts(talk: Callable[..., Talk]) -> None:
    bodies = [bytes([row]) * SIZE for row in range(3)]
    made = talk(_send(_buffers(_payload(ID + 2), _payload(ID)), bodies[2], bodies[0]))
    assert made.read(3) == [bodies[0], None, bodies[2]]


def test_a_reply_in_single_bytes_is_a_reply(talk: Callable[..., Talk]) -> None:
    body = random.Random(1).randbytes(SIZE)

    def drip(peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _buffers(_payload()) + body:
            peer.sendall(bytes([byte]))

    assert talk(drip).read() == [body]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_buffers(_payload(size=SIZE + 1)), "of 1001 bytes instead of 1000"),
        (_buffers(_payload(size=-SIZE)), "of -1000 bytes instead of 1000"),
        (_buffers(_payload(size=0)), "of 0 bytes"),
        (_buffers(_payload(ID + 7)), "not asked for"),
        (_buffers(_payload(-1)), "not asked for"),
        (_buffers(_payload(10**30)), "not asked for|object_id|range"),
        (_buffers(_payload(), _payload()), "twice"),
        (_buffers(_payload(), compress=True), "compressed"),
        (_buffers({"object_id": ID}), "data_size"),
        (_buffers({"object_id": str(ID), "data_size": SIZE}), "object_id"),
        (_buffers({"object_id": ID, "data_size": float(SIZE) + 0.5}), "data_size"),
        (_buffers(None), "payloads"),
        (_frame({"type": "get_buffers_reply", "payloads": None}), "payloads"),
        (_frame({"type": "get_buffers_reply"}), "payloads"),
        (_frame({"type": "register_reply", "payloads": []}), "no get_buffers_reply"),
        (_frame({"code": 41, "message": "x" * 1500}), "code 41 'x{200}'"),
        (_frame([1, 2]), "get_buffers_reply"),
        (_frame(b""), "get_buffers_reply"),
        (_frame(b"\xff\xfe\0x"), "get_buffers_reply"),
        (_frame(b'{"type":"get_buffers_reply","payloads":[],"x":"\xff"}' * 2), "get_buffers_reply"),
        (_frame(b'{"x":' + b"[" * 1500), "get_buffers_reply"),
        (_frame(b"[" * 2000), "get_buffers_reply"),
        (struct.pack("<Q", 1 << 63), "bytes"),
        (struct.pack("<Q", 2049), "of 2049 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bytes"),
    ],
)
def test_nonsense_is_an_error_and_closes(talk: Callable[..., Talk], reply: bytes, reason: str) -> None:
    made = talk(_send(reply, bytes(SIZE)))
    with pytest.raises(VineyardError, match=reason):
        made.read()
    with pytest.raises(VineyardError, match="not asked again"):
        made.read()
    made.clock.advance(BACKOFF_MIN_S)
    with pytest.raises(VineyardError, match=reason):
        made.read()
    assert made.peer.accepted == 4  # two connections each time


@pytest.mark.parametrize(
    "registered",
    [
        _send(_frame({**REGISTERED, "version": "0.25.0"})),
        _send(_frame({**REGISTERED, "version": "9" * 100_000})),
        _send(_frame({**REGISTERED, "store_match": False})),
        _send(_frame({"type": "register_reply"})),
        _send(_frame(b"null")),
        _send(struct.pack("<Q", (1 << 20) + 1)),
        _send(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        lambda peer: peer.shutdown(socket.SHUT_RDWR),
    ],
    ids=["version", "long-version", "store", "empty", "null", "oversized", "ssh", "hang-up"],
)
def test_who_does_not_register_us_is_refused(talk: Callable[..., Talk], registered: Answer) -> None:
    made = talk(_send(_buffers(_payload()), bytes(SIZE)), registered=registered)
    with pytest.raises(VineyardError) as refusal:
        made.read()
    assert len(str(refusal.value)) < 300
    assert made.peer.accepted == 1


@pytest.mark.parametrize("cut", [0, 3, 8, 20, -SIZE, -1])
@pytest.mark.parametrize("hang_up", [True, False], ids=["hang-up", "silence"])
def test_a_reply_that_breaks_off(talk: Callable[..., Talk], cut: int, *, hang_up: bool) -> None:
    def answer(peer: socket.socket) -> None:
        peer.sendall((_buffers(_payload()) + bytes(SIZE))[:cut])
        if hang_up:
            peer.shutdown(socket.SHUT_RDWR)

    with pytest.raises(VineyardError, match="closed|reset" if hang_up else "no answer before the deadline"):
        talk(answer).read(deadline_s=5 if hang_up else 0.05)


def test_more_than_announced_is_never_taken_for_the_next_reply(talk: Callable[..., Talk]) -> None:
    body = random.Random(2).randbytes(SIZE)
    made = talk(_send(_buffers(_payload()), body, _buffers(_payload()), bytes(SIZE)))
    for _ in range(3):
        assert made.read() == [body]  # what lies about makes it connect anew
    assert made.peer.accepted == 6


def test_a_refused_connection_names_the_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reader = PeerReader("127.0.0.1", port, connect_deadline_s=5, clock=ManualClock(1.0))
    with pytest.raises(VineyardError, match=rf"vineyardd of 127\.0\.0\.1:{port}: .*refused"):
        reader.read([], until_s=2.0)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "bad..name", ""])
def test_a_name_without_address_is_an_error(host: str) -> None:
    reader = PeerReader(host, 1, connect_deadline_s=5, clock=ManualClock(1.0))
    with pytest.raises(VineyardError):
        reader.read([], until_s=6.0)


def test_whatever_a_peer_announces_little_memory_is_taken(talk: Callable[..., Talk]) -> None:
    count = 50
    huge = [_payload(ID + row, 1 << 40) for row in range(count)]
    made = talk(_send(_buffers(*huge), bytes(1 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(VineyardError, match="1099511627776 bytes"):
            made.read(count)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_deadline_holds_however_slowly_a_peer_drips() -> None:
    stop = threading.Event()

    def drip(peer: socket.socket) -> None:
        for byte in _buffers(_payload()) + bytes(SIZE):
            peer.sendall(bytes([byte]))
            if stop.wait(0.02):
                return

    peer = FakePeer(drip)
    reader = PeerReader("127.0.0.1", peer.port, connect_deadline_s=5)
    with pytest.raises(VineyardError, match="no answer before the deadline"):
        reader.read([Wanted(ID, SIZE, (memoryview(bytearray(SIZE)),))], until_s=monotonic() + 0.2)
    stop.set()
    peer.close()
