"""The reader of vineyardd's RPC against a real vineyardd: right bytes, misses, deadlines, deaths, new starts."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredkv.clock import ManualClock
from tieredkv.errors import VineyardError
from tieredkv.tiers.remote import BACKOFF_MAX_S, BACKOFF_MIN_S, PIECE_BYTES, REQUEST_BLOBS_MAX, PeerReader, Wanted

from .real_vineyardd import DEADLINE_S, RealVineyardd

pytestmark = pytest.mark.usefixtures("no_sockets_left")

_WITNESS = """
import hashlib, json, sys
import vineyard
client = vineyard.connect(host="127.0.0.1", port=int(sys.argv[1]))
ids = [vineyard.ObjectID(int(text)) for text in json.loads(sys.argv[2])]
blobs = [client.get_remote_blob(blob_id, unsafe=True) for blob_id in ids]
print(json.dumps([hashlib.sha256(memoryview(blob)).hexdigest() for blob in blobs]))
"""


class Reader(PeerReader):
    """A reader whose clock the test moves; `fetch` reads whole blobs."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.clock = ManualClock(1000.0)
        super().__init__(host, port, connect_deadline_s=DEADLINE_S, clock=self.clock)

    def fetch(self, ids: list[int], size_bytes: int, deadline_s: float = DEADLINE_S) -> list[bytes | None]:
        bodies = [bytearray(size_bytes) for _ in ids]
        rows = [Wanted(blob_id, size_bytes, (memoryview(body),)) for blob_id, body in zip(ids, bodies, strict=True)]
        arrived = self.read(rows, until_s=self.clock.now_s() + deadline_s)
        return [bytes(body) if whole else None for body, whole in zip(bodies, arrived, strict=True)]


@pytest.fixture(scope="module")
def peer() -> Iterator[RealVineyardd]:
    """One vineyardd for the tests that leave it as it was."""
    vineyardd = RealVineyardd()
    yield vineyardd
    vineyardd.close()


@pytest.fixture
def doomed() -> Iterator[RealVineyardd]:
    """One for a test that kills it."""
    vineyardd = RealVineyardd()
    yield vineyardd
    vineyardd.close()


@pytest.fixture
def no_sockets_left() -> Iterator[None]:
    """Checks that a test's readers close what they open."""
    before = _sockets()
    yield
    assert _sockets() <= before


@pytest.fixture
def reader(no_sockets_left: None, peer: RealVineyardd) -> Iterator[Reader]:
    made = Reader(peer.port)
    yield made
    made.close()


def _sockets() -> int:
    return sum("socket:" in _link(entry) for entry in Path("/proc/self/fd").iterdir())


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""


def _contents(count: int, size_bytes: int, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(size_bytes) for _ in range(count)]


@pytest.mark.parametrize("size_bytes", [1, 63, 64, 65, 320, 4096, 65856, (1 << 20) + 320, (4 << 20) + 320])
def test_the_bytes_are_right_at_every_size(peer: RealVineyardd, reader: Reader, size_bytes: int) -> None:
    contents = _contents(5, size_bytes)
    ids = peer.create(contents)
    assert reader.fetch(ids, size_bytes) == contents
    assert reader.fetch(ids[::-1], size_bytes) == contents[::-1]
    peer.drop(ids)


def test_a_blob_is_scattered_over_its_targets(peer: RealVineyardd, reader: Reader) -> None:
    contents = _contents(300, 1000)
    ids = peer.create(contents)
    parts = [tuple(bytearray(size) for size in (256, 0, 680, 64)) for _ in ids]
    rows = [Wanted(blob_id, 1000, tuple(map(memoryview, row))) for blob_id, row in zip(ids, parts, strict=True)]
    assert all(reader.read(rows, until_s=reader.clock.now_s() + DEADLINE_S))
    assert [b"".join(row) for row in parts] == contents
    peer.drop(ids)


@pytest.mark.parametrize("room_bytes", [100, PIECE_BYTES - 64, PIECE_BYTES, 2 * PIECE_BYTES + 1])
def test_what_is_handed_on_is_each_target_in_order_and_whole(
    peer: RealVineyardd, reader: Reader, room_bytes: int
) -> None:
    sizes = (256, room_bytes, 64)
    contents = _contents(5, sum(sizes))
    ids = peer.create(contents)
    rows = [Wanted(blob_id, sum(sizes), tuple(memoryview(bytearray(size)) for size in sizes)) for blob_id in ids]
    told: dict[tuple[int, int], bytes] = {}
    arrived: list[int] = []

    def on_piece(row: int, target: int, piece: memoryview) -> None:
        assert row not in arrived
        assert len(piece) <= PIECE_BYTES
        assert (row, target) == max([(row, target), *(key for key in told if key[0] == row)])
        told[row, target] = told.get((row, target), b"") + bytes(piece)

    reader.read(rows, until_s=reader.clock.now_s() + DEADLINE_S, on_piece=on_piece, on_arrived=arrived.append)
    assert sorted(arrived) == list(range(5))
    assert [b"".join(told[row, target] for target in range(3)) for row in range(5)] == contents
    peer.drop(ids)


def test_missing_blobs_are_misses_and_the_connection_lives_on(peer: RealVineyardd, reader: Reader) -> None:
    contents: list[bytes | None] = [*_contents(4, 4096)]
    ids = peer.create(_contents(4, 4096))
    peer.drop(ids[1:2])
    contents[1] = None
    asked = [7, *ids, 8, 9]
    for _ in range(3):
        assert reader.fetch(asked, 4096) == [None, *contents, None, None]
        assert reader.fetch([1, 2, 3], 4096) == [None] * 3
    peer.drop([ids[0], *ids[2:]])


def test_nothing_wanted_is_nothing_asked(reader: Reader) -> None:
    assert reader.fetch([], 1) == []


def test_blobs_are_read_as_they_are_now(peer: RealVineyardd, reader: Reader) -> None:
    ids = peer.create(_contents(2, 8192))
    for seed in range(2, 20):
        content = _contents(1, 8192, seed)[0]
        peer.rewrite(peer.blobs, 1, content)
        assert reader.fetch(ids, 8192)[1] == content
    peer.drop(ids)


def test_many_rows_and_the_same_blob_twice(peer: RealVineyardd, reader: Reader) -> None:
    contents = _contents(50, 700)
    ids = peer.create(contents)
    numbers = random.Random(5).choices(range(50), k=2 * REQUEST_BLOBS_MAX)
    assert reader.fetch([ids[number] for number in numbers], 700) == [contents[number] for number in numbers]
    many = peer.create(_contents(3 * REQUEST_BLOBS_MAX + 7, 64))
    assert reader.fetch(many, 64) == _contents(3 * REQUEST_BLOBS_MAX + 7, 64)
    peer.drop(ids)
    peer.drop(many)


def test_rows_are_reported_when_they_are_complete(peer: RealVineyardd, reader: Reader) -> None:
    contents = _contents(20, 1 << 20)
    ids = peer.create(contents)
    bodies = [bytearray(1 << 20) for _ in ids]
    rows = [Wanted(blob_id, 1 << 20, (memoryview(body),)) for blob_id, body in zip(ids, bodies, strict=True)]
    reported: list[int] = []

    def on_arrived(row: int) -> None:
        assert bodies[row] == contents[row]
        reported.append(row)

    reader.read(rows, until_s=reader.clock.now_s() + DEADLINE_S, on_arrived=on_arrived)
    assert reported == list(range(20))
    peer.drop(ids)


def test_a_cancelled_read_ends_soon_and_leaves_the_connection_usable(peer: RealVineyardd, reader: Reader) -> None:
    contents = _contents(20, 1 << 20)
    ids = peer.create(contents)
    bodies = [bytearray(1 << 20) for _ in ids]
    rows = [Wanted(blob_id, 1 << 20, (memoryview(body),)) for blob_id, body in zip(ids, bodies, strict=True)]
    reported: list[int] = []
    arrived = reader.read(
        rows,
        until_s=reader.clock.now_s() + DEADLINE_S,
        cancelled=lambda: bool(reported),
        on_arrived=reported.append,
    )
    assert 0 < sum(arrived) < len(ids)
    assert [row for row, whole in enumerate(arrived) if whole] == reported
    assert all(bytes(body) == bytes(1 << 20) for body, whole in zip(bodies, arrived, strict=True) if not whole)
    assert reader.fetch(ids, 1 << 20) == contents
    peer.drop(ids)


def test_a_failure_of_the_caller_does_not_desync_the_connection(peer: RealVineyardd, reader: Reader) -> None:
    contents = _contents(20, 1 << 20)
    ids = peer.create(contents)
    body = bytearray(1 << 20)

    def fail(row: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reader.read(
            [Wanted(blob_id, 1 << 20, (memoryview(body),)) for blob_id in ids],
            until_s=reader.clock.now_s() + DEADLINE_S,
            on_arrived=fail,
        )
    reader.clock.advance(BACKOFF_MIN_S)
    assert reader.fetch(ids, 1 << 20) == contents
    peer.drop(ids)


def test_a_host_may_be_a_name(peer: RealVineyardd) -> None:
    ids = peer.create(_contents(1, 64))
    named = Reader(peer.port, "localhost")
    assert named.fetch(ids, 64) == _contents(1, 64)
    named.close()
    peer.drop(ids)


def test_a_stopped_peer_costs_a_deadline_and_then_nothing(doomed: RealVineyardd) -> None:
    contents = _contents(8, 1 << 20)
    ids = doomed.create(contents)
    reader = Reader(doomed.port)
    assert reader.fetch(ids, 1 << 20) == contents
    doomed.stop()
    with pytest.raises(VineyardError, match="no answer before the deadline"):
        reader.fetch(ids, 1 << 20, deadline_s=0.2)
    with pytest.raises(VineyardError, match=r"not asked again for 0\.1 s"):
        reader.fetch(ids, 1 << 20)
    reader.clock.advance(BACKOFF_MIN_S)
    with pytest.raises(VineyardError, match="deadline"):  # the kernel accepts, nobody registers us
        reader.fetch(ids, 1 << 20, deadline_s=0.2)
    doomed.resume()
    reader.clock.advance(2 * BACKOFF_MIN_S)
    assert reader.fetch(ids, 1 << 20) == contents
    reader.close()


def test_a_peer_killed_midway_and_started_again(doomed: RealVineyardd) -> None:
    contents = _contents(64, 1 << 20)
    ids = doomed.create(contents)
    reader = Reader(doomed.port)
    bodies = [bytearray(1 << 20) for _ in ids]
    reported: list[int] = []

    def on_arrived(row: int) -> None:
        assert bodies[row] == contents[row]
        if not reported:
            doomed.kill()
        reported.append(row)

    with pytest.raises(VineyardError, match=r"closed|reset|refused|Broken"):
        reader.read(
            [Wanted(blob_id, 1 << 20, (memoryview(body),)) for blob_id, body in zip(ids, bodies, strict=True)],
            until_s=reader.clock.now_s() + DEADLINE_S,
            on_arrived=on_arrived,
        )
    assert 0 < len(reported) < len(ids)
    again = RealVineyardd(doomed.port)
    try:
        reader.clock.advance(BACKOFF_MIN_S)
        assert reader.fetch(ids[:3], 1 << 20) == [None] * 3  # the new one's ids are others
        assert reader.fetch(again.create(contents[:2]), 1 << 20) == contents[:2]
    finally:
        reader.close()
        again.close()


def test_a_peer_started_again_while_nothing_was_read_costs_nothing(doomed: RealVineyardd) -> None:
    reader = Reader(doomed.port)
    assert reader.fetch(doomed.create(_contents(1, 64)), 64) == _contents(1, 64)
    doomed.kill()
    again = RealVineyardd(doomed.port)
    try:
        assert reader.fetch(again.create(_contents(1, 64)), 64) == _contents(1, 64)
    finally:
        reader.close()
        again.close()


def test_the_backoff_doubles_to_its_bound_and_starts_anew_after_a_reply(doomed: RealVineyardd) -> None:
    reader = Reader(doomed.port)
    ids = doomed.create(_contents(1, 64))
    assert reader.fetch(ids, 64) == _contents(1, 64)
    doomed.kill()
    wait_s = BACKOFF_MIN_S
    for _ in range(8):
        with pytest.raises(VineyardError, match=r"refused|closed|reset"):
            reader.fetch(ids, 64)
        reader.clock.advance(0.9 * wait_s)
        with pytest.raises(VineyardError, match="not asked again"):
            reader.fetch(ids, 64)
        reader.clock.advance(0.1 * wait_s + 1e-6)
        wait_s = min(2 * wait_s, BACKOFF_MAX_S)
    assert wait_s == BACKOFF_MAX_S
    again = RealVineyardd(doomed.port)
    try:
        assert reader.fetch(again.create(_contents(1, 64)), 64) == _contents(1, 64)
    finally:
        again.close()
    with pytest.raises(VineyardError, match=r"refused"):
        reader.fetch(ids, 64)
    reader.clock.advance(BACKOFF_MIN_S + 1e-6)
    with pytest.raises(VineyardError, match=r"refused"):
        reader.fetch(ids, 64)


def test_the_shipped_client_reads_the_same_bytes(peer: RealVineyardd, reader: Reader) -> None:
    pytest.importorskip("vineyard.bdist")
    contents = _contents(6, 65856)
    ids = peer.create(contents)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITNESS, str(peer.port), json.dumps([str(blob) for blob in ids])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    ours = [hashlib.sha256(body or b"").hexdigest() for body in reader.fetch(ids, 65856)]
    assert ours == json.loads(told.stdout.splitlines()[-1])
    assert ours == [hashlib.sha256(content).hexdigest() for content in contents]
    peer.drop(ids)
