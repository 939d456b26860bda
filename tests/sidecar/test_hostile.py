"""Peers that send garbage, too much, too little or nothing: their connection ends, and nothing else."""

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tieredkv.protocol import (
    FRAME_BYTES_MAX,
    PROTOCOL_MAX,
    Arrive,
    Hello,
    Lease,
    Ledger,
    Live,
    Message,
    Publish,
    Refused,
    Release,
    Reset,
    Return,
    SelfTest,
    StatusAsk,
    Stop,
    encode,
)
from tieredkv.sidecar.connection import OUTBOX_BYTES_MAX
from tieredkv.sidecar.reception import GREETING_DEADLINE_S

from .conftest import Start
from .engine import Admin, Engine, Link, Refusal, Worker, chain, hello
from .process import SidecarProcess, wait_until

CASES = 4000


def test_garbage_closes_that_connection_and_nothing_else(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    keys = chain(1, 5)
    engine.store(keys)
    for garbage in (b"\x00" * 64, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n" * 4, encode(StatusAsk()), encode(Lease(3))):
        link = Link(shared.socket)
        link.socket.sendall(garbage)
        assert link.ended(), garbage
    assert engine.load(keys) == 5


def test_an_oversized_frame_is_refused_before_it_is_read(shared: SidecarProcess) -> None:
    engine = Engine(shared.socket)
    engine.scheduler.socket.sendall(struct.pack("<I", FRAME_BYTES_MAX + 1))
    assert engine.scheduler.ended()
    assert shared.status()["counters"]["tieredkv_failures_total"]["protocol"] >= 1


def test_a_greeting_has_its_deadline_and_its_bound(shared: SidecarProcess) -> None:
    started_s = time.monotonic()
    silent = Link(shared.socket)
    slow = Link(shared.socket)
    slow.socket.sendall(encode(hello("worker", "slow"))[:-1])
    assert silent.ended()
    assert slow.ended()
    # It looks twice a second; the rest is for a machine that lets it wait.
    assert GREETING_DEADLINE_S * 0.9 < time.monotonic() - started_s < GREETING_DEADLINE_S + 6
    large = Link(shared.socket)
    with pytest.raises(OSError, match=r"pipe|reset"):
        large.socket.sendall(struct.pack("<I", FRAME_BYTES_MAX) + b"\0" * FRAME_BYTES_MAX)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "king"}, "role 'king'"),
        ({"protocol_min": PROTOCOL_MAX + 1, "protocol_max": PROTOCOL_MAX + 1}, "install the same version"),
        ({"engine_id": ""}, "engine_id"),
        ({"engine_id": "x" * 300}, "engine_id"),
        ({"namespace": b"short"}, "namespace"),
        ({"body_bytes": 0}, "body_bytes"),
        ({"group_strides": ()}, "group_strides"),
        ({"group_strides": (0,)}, "group_strides"),
        ({"chain_tokens": -1}, "chain_tokens"),
        ({"rank": 1}, "rank"),
        ({"world_size": 0}, "world_size"),
        ({"held_slots": b"123"}, "held_slots"),
        ({"description": {"x": "y" * 5000}}, "description"),
    ],
)
def test_a_greeting_out_of_bounds_is_refused_in_one_line(
    shared: SidecarProcess, changes: dict[str, object], reason: str
) -> None:
    greeting = hello("scheduler", "bad")
    parts = {name: getattr(greeting, name) for name in greeting.__struct_fields__}
    link = Link(shared.socket)
    link.send(Hello(**(parts | changes)))
    refused = link.expect(Refused).reason
    assert reason in refused
    assert "\n" not in refused
    assert link.ended()


@pytest.mark.parametrize("role", ["scheduler", "worker", "admin"])
def test_messages_out_of_turn_close_the_connection(shared: SidecarProcess, role: str) -> None:
    allowed = {
        "scheduler": (Lease, Arrive, Publish, Return, Release, Live, Reset, Ledger, StatusAsk),
        "worker": (Lease, Return, SelfTest, Ledger, StatusAsk),
        "admin": (StatusAsk, Stop),
    }[role]
    for message in _messages(random.Random(1)):
        if isinstance(message, allowed):
            continue
        link = Admin(shared.socket) if role == "admin" else _attached(shared, role)
        link.send(message)
        assert link.ended(), message
    assert shared.status()["ready"]


def test_nonsense_in_well_formed_messages_harms_nobody(sidecar: SidecarProcess) -> None:
    engine, victim = Engine(sidecar.socket), Engine(sidecar.socket)
    keys = chain(1, 10)
    wait_until(lambda: sidecar.status()["slots"]["unpopulated"] == 0, "populated")
    victim.store(keys)
    held, _ = victim.lease(5)
    wild = np.array([-1, 2**31 - 1, *held.tolist(), 0, 1], "<i4")
    engine.scheduler.send(Return(wild.tobytes()))
    engine.publish(chain(2, len(wild)), wild)
    for group in (-1, 1, 10**6):
        engine.scheduler.send(Publish(group, [b"k" * 32], [b""], wild[:1].tobytes(), wild[2:3].tobytes()))
    own, _ = engine.lease(3)
    for key in (b"", b"k", b"k" * 65, b"k" * 100_000):
        engine.scheduler.send(Publish(0, [key], [key], own[:1].tobytes(), own[:1].tobytes()))
    engine.scheduler.send(Lease(-5))
    engine.scheduler.send(Lease(2**62))
    engine.scheduler.send(Release("nobody"))
    engine.scheduler.send(Live(["x"] * 10))
    status = sidecar.status()
    assert status["slots"]["ready"] == 10
    assert victim.load(keys) == 10
    victim.publish(chain(3, 5), held)
    assert victim.find(chain(3, 5)).slots[0] == held.tobytes()
    assert "internal" not in status["counters"]["tieredkv_failures_total"]


@pytest.mark.parametrize(
    "message",
    [
        Return(b"123"),
        Publish(0, [b"k" * 32], [], b"", b""),
        Publish(0, [b"k" * 32], [b""], b"\0" * 4, b"\0" * 3),
        Publish(0, [b"k" * 32] * 2, [b""], b"\0" * 4, b"\0" * 4),
    ],
)
def test_arrays_of_wrong_length_close_the_connection(shared: SidecarProcess, message: Message) -> None:
    engine = Engine(shared.socket)
    engine.scheduler.send(message)
    assert engine.scheduler.ended()


def test_thousands_of_mutated_frames_harm_nobody(start: Start) -> None:
    seed = 20
    chance = random.Random(seed)
    sidecar = start()
    engine = Engine(sidecar.socket)
    keys = chain(1, 10)
    engine.store(keys)
    engine.load(keys)
    frames = [encode(message) for message in _messages(chance)]
    link: Link | None = None
    for case in range(CASES):
        if link is None:
            link = (
                Link(sidecar.socket)
                if chance.random() < 0.2
                else _attached(sidecar, chance.choice(["scheduler", "worker"]))
            )
            link.socket.settimeout(0.5)
        try:
            link.socket.sendall(_mutated(chance, chance.choice(frames)))
            link.socket.setblocking(False)
            while True:
                if not link.socket.recv(1 << 16):
                    raise ConnectionError
        except BlockingIOError:
            pass
        except OSError:
            link.close()
            link = None
        if link is not None:
            link.socket.settimeout(0.5)
            if chance.random() < 0.05:
                link.close()
                link = None
        if case % 10 == 0:
            # Not further ahead of a busy machine's sidecar: what comes after its verdict on a connection tests nothing.
            engine.find([], "ordering")
        if case % 500 == 0:
            assert engine.load(keys) == 10, f"seed {seed}, case {case}"
    assert engine.load(keys) == 10
    failures = sidecar.status()["counters"]["tieredkv_failures_total"]
    assert failures["protocol"] > 100, "the mutations were too mild to test anything"
    assert "internal" not in failures
    assert "Traceback" not in sidecar.log()


def test_a_reader_that_does_not_read_is_cut_off_within_bounds(sidecar: SidecarProcess) -> None:
    engine, other = Engine(sidecar.socket), Engine(sidecar.socket)
    keys = chain(1, 1000)
    wait_until(lambda: sidecar.status()["slots"]["unpopulated"] == 0, "populated")
    other.store(keys)
    arrive = encode(Arrive("r", 1, keys, 16_000))
    before_kib = _resident_kib(sidecar)
    with pytest.raises(OSError, match=r"pipe|reset"):
        engine.scheduler.socket.sendall(arrive * (4 * OUTBOX_BYTES_MAX // 12_000))
    assert other.load(keys) == 1000
    assert _resident_kib(sidecar) - before_kib < 4 * OUTBOX_BYTES_MAX // 1024


def test_connections_are_bounded_and_the_admin_still_gets_through(start: Start) -> None:
    sidecar = start(limits={"connections_max": 3})
    engine = Engine(sidecar.socket)
    Worker(sidecar.socket, "third")
    with pytest.raises(Refusal, match=r"limits\.connections_max"):
        Worker(sidecar.socket, "fourth")
    assert len(sidecar.status()["engines"]) == 2
    assert engine.store(chain(1, 2)) == 2


def _attached(sidecar: SidecarProcess, role: str) -> Link:
    link = Link(sidecar.socket)
    link.send(hello(role, f"hostile-{role}"))
    link.receive()
    return link


def _messages(chance: random.Random) -> Iterator[Message]:
    numbers = np.arange(4, dtype="<i4").tobytes()
    keys = [chance.randbytes(32) for _ in range(4)]
    yield hello("scheduler", "mutant")
    yield hello("worker", "mutant", held_epoch=5, held_slots=numbers)
    yield Arrive("r", 1, keys, 64, "tenant", {"hint": 1})
    yield Lease(3)
    yield Publish(0, keys, [b"", *keys[:-1]], numbers, numbers)
    yield Return(numbers)
    yield Release("r")
    yield Live(["r", "s"])
    yield SelfTest("")
    yield Ledger({"tieredkv_failures_total": {"x": 1.0}})
    yield StatusAsk()
    yield Stop()


def _mutated(chance: random.Random, frame: bytes) -> bytes:
    body = bytearray(frame[4:])
    for _ in range(chance.randrange(4)):
        match chance.randrange(4):
            case 0 if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
            case 1 if body:
                del body[chance.randrange(len(body)) :]
            case 2:
                at = chance.randrange(len(body) + 1)
                body[at:at] = chance.randbytes(chance.randrange(1, 20))
            case _ if body:
                start = chance.randrange(len(body))
                body += body[start : start + 16]
    size = len(body) if chance.random() < 0.95 else chance.randrange(2**32)
    return struct.pack("<I", size) + bytes(body)


def _resident_kib(sidecar: SidecarProcess) -> int:
    """Private memory: the arena's pages do not count."""
    assert sidecar.process is not None
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def test_a_chain_that_names_a_key_twice_counts_up_to_there(start: Start) -> None:
    """Also where it is in cold pages: a chunk is loaded once."""
    chunks, chunk_bytes = 256, 4096 + 256 + 64 + 64
    sidecar = start(
        warm=str(chunks * chunk_bytes), cold={"size": "8MiB", "low_free": 0.2, "high_free": 0.4}, policy={"name": "lru"}
    )
    engine = Engine(sidecar.socket)
    wait_until(lambda: sidecar.status()["mover"]["ready"], "a mover")
    stored = [chain(seed, 32) for seed in range(16)]
    for keys in stored:
        assert engine.store(keys) == 32
        wait_until(lambda: not sidecar.status()["slots"]["demoting"], "demoted")
    first = stored[0]
    assert engine.load([*first[:2], *first[1:]], "nonsense") == 2
    assert engine.load(first, "sense") == 32
