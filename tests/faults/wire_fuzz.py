"""A seeded fuzz of everything that decodes bytes of another process: no crash, no hang, no growth.

`python -m tests.faults.wire_fuzz --seed 1 --frames 1000000` feeds that many mutated frames to the reader of
vineyardd's RPC and as many to the decoders of the control protocol. Frame N depends on the seed and N
alone: `--first N --frames 1` repeats it.
"""

import argparse
import faulthandler
import gc
import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final

import numpy as np

from tests.faults.mutation import mutated
from tieredkv import protocol
from tieredkv.errors import ProtocolError, VineyardError
from tieredkv.sidecar.cluster import columns, peer_protocol
from tieredkv.tiers.remote import Wanted, announced, receive_blobs
from tieredkv.tiers.slots import slot_bytes
from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION, VineyardConnection

GROWTH_BYTES_MAX: Final = 32 << 20
HANG_S: Final = 30.0
_WARM_UP_SHARE: Final = 10
_WATCHED_FRAMES: Final = 1000
_GUARD: Final = b"\xaa" * 64
_IDS: Final = (1 << 63, 5, (1 << 64) - 1, 1 << 40)
_SIZES: Final = (64, 320, 1, 4096)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the frames of each target."""

    seed: int
    frames: int
    outcomes: dict[str, dict[str, int]]
    seconds: float
    slowest_frame_ms: float
    growth_bytes: int
    descriptors_left: int


def _reply(rows: tuple[int, ...]) -> bytes:
    """What vineyardd says of those blobs: each twice, with much that we do not need."""
    payloads = [
        {"object_id": _IDS[row], "data_size": _SIZES[row], "data_offset": 64, "map_size": 1 << 30, "store_fd": 8,
         "is_sealed": False, "is_owner": True, "is_gpu": False, "pointer": 140339810242752}
        for row in rows
    ]  # fmt: skip
    more = {str(number): payload for number, payload in enumerate(payloads)}
    parts = {"compress": False, "fds": [], "num": len(rows), "payloads": payloads, "type": "get_buffers_reply"}
    return json.dumps(more | parts, separators=(",", ":")).encode()


def _framed(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


_ROWS: Final = ((), (0,), (3, 1), (0, 1, 2, 3), (2, 0, 3))
_REPLIES: Final = tuple(_reply(rows) for rows in _ROWS)
_STREAMS: Final = tuple(
    _framed(reply) + b"".join(bytes([row + 1]) * _SIZES[row] for row in rows)
    for rows, reply in zip(_ROWS, _REPLIES, strict=True)
)
_REGISTRATIONS: Final = tuple(
    _framed(json.dumps(answer).encode())
    for answer in (
        {"type": "register_reply", "version": VINEYARD_VERSION, "store_match": True, "instance_id": 0, "session_id": 0},
        {"type": "register_reply", "version": "0.1", "store_match": False},
        {"type": "error", "code": 41, "message": "no"},
    )
)
_INTS: Final = np.arange(6, dtype="<i4").tobytes()
_WORDS: Final = np.arange(6, dtype="<u8").tobytes()
_ONES: Final = np.ones(6, "<u8").tobytes()
_ZEROS: Final = bytes(16)
_KEYS: Final = [bytes([number]) * 32 for number in range(4)]
_FROM_ENGINE: Final = tuple(
    protocol.encode(message)[4:]
    for message in (
        protocol.Hello(1, 1, "scheduler", "e", 0, 2, bytes(16), {"model": "m"}, 4096, 16, (1, 2), True, 7, _INTS),
        protocol.Arrive("request", 3, _KEYS, 64, "tenant", {"session": "s", "turn": 2, "more": True, "wait_s": 0.5}),
        protocol.Lease(5),
        protocol.Publish(1, _KEYS, [b"", *_KEYS[:3]], _INTS[:16], _INTS[:16]),
        protocol.Return(_INTS),
        protocol.Release("request"),
        protocol.Live(["a", "b"]),
        protocol.Reset(),
        protocol.SelfTest("reason"),
        protocol.Ledger({"tokens": {"hit": 3.0, "miss": 1e300}}),
        protocol.StatusAsk(),
        protocol.Stop(),
        protocol.Hint("s", {"closed": True}, "t"),
        protocol.Record(on=True),
    )
)
_FROM_SIDECAR: Final = tuple(
    protocol.encode(message)[4:]
    for message in (
        protocol.Welcome(1, 99, 1 << 40, 1 << 20, _WORDS),
        protocol.Refused("reason"),
        protocol.Enabled(""),
        protocol.Found("request", 3, [_INTS, b""], [_WORDS, b""], 2, 5, 1.0),
        protocol.Loaded("request", 3, _INTS, _INTS, _INTS, _WORDS, over=False),
        protocol.Leased(_INTS, _WORDS),
        protocol.Evicted(0, _KEYS),
        protocol.PoolState({"free": 3}),
        protocol.Status(b"{}"),
        protocol.Hinted(2),
        protocol.Recorded(b"line\n", 1, 0, True),
    )
)
_NEWS: Final = peer_protocol.PoolNews(
    bytes(16), {"weights": "w"}, 4096, 16, (1, 2), 9, 6, 4, slot_bytes(4096), [(1 << 63, 1, 10)], 2
)
_FROM_PEER: Final = tuple(
    protocol.encode(message)[4:]
    for message in (
        peer_protocol.PeerHello(1, 1, "cluster", "node", 7, "0.1", "0.24.2", 2, 1, "", 9402, "host", 9401, 1e9),
        peer_protocol.PeerWelcome(1),
        peer_protocol.PeerRefused("reason"),
        _NEWS,
        peer_protocol.PoolGone(bytes(16), 9),
        peer_protocol.Follow(bytes(16), 9),
        peer_protocol.Changes(bytes(16), 9, 0, True, _INTS, _ONES, _ONES),
        peer_protocol.Offer(bytes(16), 9, 3, _ZEROS, _KEYS, [b"", *_KEYS[:3]], _INTS[:16], _INTS[:16], _ONES[:32]),
        peer_protocol.OfferTaken(bytes(16), 9, 3, _INTS[:8]),
        peer_protocol.Used(bytes(16), 9, _ZEROS, _KEYS),
        peer_protocol.Ping(1),
        peer_protocol.Pong(1),
    )
)
_FRAMES: Final = tuple(struct.pack("<I", len(body)) + body for body in (*_FROM_ENGINE, *_FROM_SIDECAR))


def _announced(source: random.Random) -> str:
    frame = mutated(source.choice(_REPLIES), _REPLIES, source)
    sizes = dict(zip(_IDS, _SIZES, strict=True))
    try:
        ids = announced(frame, sizes)
    except VineyardError:
        return "refused"
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(_IDS)
    return "accepted"


def _stream(source: random.Random) -> str:
    frame = _mutated_frame(_STREAMS, source)
    memory = [bytearray(_GUARD + bytes(size) + _GUARD) for size in _SIZES]
    wanted = [
        Wanted(blob_id, size, (memoryview(body)[64:65], memoryview(body)[65:-64]))
        for blob_id, size, body in zip(_IDS, _SIZES, memory, strict=True)
    ]
    outcome = _through_socket(frame, lambda link: receive_blobs(link, wanted, range(4), monotonic() + HANG_S))
    assert all(body[:64] == body[-64:] == _GUARD for body in memory)
    return outcome


def _registration(source: random.Random) -> str:
    frame = _mutated_frame(_REGISTRATIONS, source)
    return _through_socket(frame, lambda link: link.register(monotonic() + HANG_S))


def _mutated_frame(corpus: tuple[bytes, ...], source: random.Random) -> bytes:
    """Half of them keep a true length, so that what is refused is not always the length."""
    frame = source.choice(corpus)
    if source.random() < 0.5:
        return mutated(frame, corpus, source)
    (size,) = struct.unpack_from("<Q", frame)
    return _framed(mutated(frame[8 : 8 + size], _REPLIES, source)) + frame[8 + size :]


def _through_socket(frame: bytes, use: Callable[[VineyardConnection], object]) -> str:
    """Use a connection whose peer sent `frame` and hung up; an error must have closed it."""
    ours, theirs = socket.socketpair()
    link = VineyardConnection(ours, "peer")
    with theirs:
        theirs.sendall(frame)
        theirs.shutdown(socket.SHUT_WR)
        try:
            use(link)
        except VineyardError:
            assert ours.fileno() == -1
            return "refused"
        finally:
            link.close()
    return "accepted"


def _from_engine(source: random.Random) -> str:
    return _decoded(protocol.decode_from_engine, mutated(source.choice(_FROM_ENGINE), _FROM_ENGINE, source))


def _from_sidecar(source: random.Random) -> str:
    return _decoded(protocol.decode_from_sidecar, mutated(source.choice(_FROM_SIDECAR), _FROM_SIDECAR, source))


def _from_peer(source: random.Random) -> str:
    """A message of another node, and what it says of a pool, where it says something."""
    body = mutated(source.choice(_FROM_PEER), _FROM_PEER, source)
    outcome = _decoded(peer_protocol.decode_from_peer, body)
    if outcome == "refused":
        return outcome
    message = peer_protocol.decode_from_peer(body)
    try:
        match message:
            case peer_protocol.PoolNews():
                assert len(columns.blob_ids(message)) == message.slots + message.pages
            case peer_protocol.Changes():
                told = columns.changes(message, 10)
                assert ((told.places >= 0) & (told.places < 10)).all()
            case peer_protocol.Offer():
                assert all(0 <= place < 10 for place in columns.offer(message, 10, 2).places)
            case peer_protocol.OfferTaken():
                assert columns.rows_taken(message, 4) <= set(range(4))
            case peer_protocol.Used():
                assert set(columns.groups_used(message, 2)) <= {0, 1}
            case _:
                pass
    except ProtocolError:
        return "refused"
    return outcome


def _decoded(decode: Callable[[bytes], protocol.Message], body: bytes) -> str:
    try:
        message = decode(body)
    except ProtocolError:
        return "refused"
    again = protocol.encode(message)
    assert protocol.encode(decode(again[4:])) == again
    return "accepted"


def _cut(source: random.Random) -> str:
    """A stream of frames in pieces; what is cut out of it goes to both decoders."""
    stream = mutated(b"".join(source.choices(_FRAMES, k=source.randint(1, 3))), _FRAMES, source)
    reader = protocol.FrameReader()
    at = 0
    outcome = "unfinished"
    while at < len(stream):
        end = at + source.choice((1, 3, 64, 4096))
        end = max(end, at + len(stream) // 64)
        try:
            bodies = reader.feed(stream[at:end])
        except ProtocolError:
            return "refused"
        at = end
        for body in bodies:
            outcomes = {_decoded(protocol.decode_from_engine, body), _decoded(protocol.decode_from_sidecar, body)}
            outcome = "accepted" if "accepted" in outcomes else outcome
        assert reader.pending_bytes <= len(stream)
    return outcome


Target = Callable[[random.Random], str]
WIRE: Final[tuple[tuple[str, Target], ...]] = (
    ("reply", _announced),
    ("stream", _stream),
    ("registration", _registration),
)
CONTROL: Final[tuple[tuple[str, Target], ...]] = (
    ("from_engine", _from_engine),
    ("from_sidecar", _from_sidecar),
    ("from_peer", _from_peer),
    ("frames", _cut),
)


def run(seed: int, first: int, frames: int) -> Report:
    """Frames `first` to `first + frames` of the wire, and as many of the control protocol."""
    outcomes: dict[str, Counter[str]] = {name: Counter() for name, _ in WIRE + CONTROL}
    source = random.Random()
    slowest_s = 0.0
    start_s = perf_counter()
    settled_bytes = _resident_bytes()
    descriptors = _descriptors()
    for number in range(first, first + frames):
        if (number - first) % _WATCHED_FRAMES == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        if number - first == frames // _WARM_UP_SHARE:
            settled_bytes = _resident_bytes()
        for family in (WIRE, CONTROL):
            name, target = family[number % len(family)]
            source.seed(f"{seed}/{name}/{number}")
            frame_start_s = perf_counter()
            try:
                outcomes[name][target(source)] += 1
            except BaseException as error:
                error.add_note(f"{name}: --seed {seed} --first {number} --frames 1")
                raise
            slowest_s = max(slowest_s, perf_counter() - frame_start_s)
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    return Report(
        seed=seed,
        frames=2 * frames,
        outcomes={name: dict(sorted(counts.items())) for name, counts in outcomes.items()},
        seconds=round(perf_counter() - start_s, 1),
        slowest_frame_ms=round(slowest_s * 1e3, 2),
        growth_bytes=_resident_bytes() - settled_bytes,
        descriptors_left=_descriptors() - descriptors,
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def main() -> int:
    """Fuzz, print the report; 1 when there was growth."""
    parser = argparse.ArgumentParser(description="Fuzz what decodes bytes of other processes.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, default=1_000_000)
    chosen: Any = parser.parse_args()
    report = run(chosen.seed, chosen.first, chosen.frames)
    print(json.dumps(asdict(report), indent=2))
    return int(report.growth_bytes > GROWTH_BYTES_MAX or report.descriptors_left > 0)


if __name__ == "__main__":
    raise SystemExit(main())
