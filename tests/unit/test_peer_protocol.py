"""What sidecars say to each other: golden bytes, bounds, and a great many mutated frames."""

import random

import msgspec
import numpy as np
import pytest

from tieredkv.brain.moves import JOB_ROWS_MAX
from tieredkv.errors import ProtocolError
from tieredkv.protocol import Message, encode
from tieredkv.sidecar.cluster import columns
from tieredkv.sidecar.cluster.agreement import pool_conflict, preferred
from tieredkv.sidecar.cluster.columns import pack32, pack64
from tieredkv.sidecar.cluster.peer_protocol import (
    ROWS_MAX,
    Changes,
    Offer,
    OfferTaken,
    PeerHello,
    PeerRefused,
    PeerWelcome,
    Ping,
    Pong,
    PoolGone,
    PoolNews,
    Used,
    decode_from_peer,
)
from tieredkv.tiers.slots import slot_bytes

SPACE = bytes(range(16))
KEY = bytes(range(32))
HELLO = PeerHello(1, 1, "c", "n", 2**64 - 1, "0.1.0", "0.24.2", 2, 1, "h", 9600, "h", 9500, 1.5)
NEWS = PoolNews(SPACE, {"model": "m"}, 4096, 16, (1, 4), 5, 3, 2, slot_bytes(4096), [(2**63, 64, 5)], 1)
CHANGES = Changes(SPACE, 5, 0, True, pack32([0, 4]), pack64([2**64 - 1, 0]), pack64([3, 0]))
OFFER = Offer(SPACE, 5, 1, pack32([1]), [KEY], [b""], pack32([7]), pack32([2]), pack64([9]))

GOLDEN: list[tuple[Message, str]] = [
    (PeerWelcome(1), "92ac706565725f77656c636f6d6501"),
    (PeerRefused("no"), "92ac706565725f72656675736564a26e6f"),
    (PoolGone(SPACE, 5), "93a9706f6f6c5f676f6e65c410000102030405060708090a0b0c0d0e0f05"),
    (
        OfferTaken(SPACE, 7, 1, pack32([0])),
        "95ab6f666665725f74616b656ec410000102030405060708090a0b0c0d0e0f0701c40400000000",
    ),
    (Ping(1), "92a470696e6701"),
    (Pong(2**64 - 1), "92a4706f6e67cfffffffffffffffff"),
    (
        HELLO,
        (
            "dc0010aa706565725f68656c6c6f0101a163a16ecfffffffffffffffffa5302e312e30a6302e32342e320201a168cd2580a168cd251c"
            "cb3ff8000000000000c2"
        ),
    ),
    (
        CHANGES,
        (
            "98a76368616e676573c410000102030405060708090a0b0c0d0e0f0500c3c4080000000004000000c410ffffffffffffffff"
            "0000000000000000c41003000000000000000000000000000000"
        ),
    ),
]
OTHERS: list[Message] = [NEWS, OFFER, Used(SPACE, 5, pack32([0]), [KEY])]
MUTANTS = 60_000


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes(message: Message, golden: str) -> None:
    assert encode(message)[4:].hex() == golden
    assert decode_from_peer(bytes.fromhex(golden)) == message


@pytest.mark.parametrize("message", OTHERS, ids=lambda value: type(value).__name__)
def test_what_is_said_is_heard(message: Message) -> None:
    assert decode_from_peer(encode(message)[4:]) == message


@pytest.mark.parametrize(
    "message",
    [
        msgspec.structs.replace(HELLO, node=""),
        msgspec.structs.replace(HELLO, cluster="c" * 257),
        msgspec.structs.replace(HELLO, rpc_port=65536),
        msgspec.structs.replace(NEWS, namespace=b"short"),
        msgspec.structs.replace(NEWS, group_strides=()),
        msgspec.structs.replace(NEWS, slots=-1),
        msgspec.structs.replace(NEWS, resets=2**62 + 1),
        msgspec.structs.replace(NEWS, description={"a": "x" * 4097}),
        msgspec.structs.replace(CHANGES, places=bytes(4 * ROWS_MAX + 4)),
        msgspec.structs.replace(OFFER, keys=[b"k"]),
        msgspec.structs.replace(OFFER, parents=[bytes(65)]),
        msgspec.structs.replace(OFFER, keys=[KEY] * (ROWS_MAX + 1)),
    ],
)
def test_what_is_out_of_bounds_is_no_message(message: Message) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        decode_from_peer(encode(message)[4:])


def test_changes_are_checked_against_the_pool() -> None:
    taken = columns.changes(CHANGES, 5)
    assert taken.places.tolist() == [0, 4]
    assert taken.fingerprints.tolist() == [2**64 - 1, 0]
    for wrong, places in (
        (CHANGES, 4),
        (msgspec.structs.replace(CHANGES, places=pack32([-1, 0])), 5),
        (msgspec.structs.replace(CHANGES, places=b"123"), 5),
        (msgspec.structs.replace(CHANGES, fingerprints=pack64([1])), 5),
        (msgspec.structs.replace(CHANGES, generations=pack64([3, 1])), 5),
        (msgspec.structs.replace(CHANGES, generations=pack64([0, 0])), 5),
        (msgspec.structs.replace(CHANGES, generations=pack64([2**63, 0])), 5),
    ):
        with pytest.raises(ProtocolError, match="Changes: "):
            columns.changes(wrong, places)


def test_news_are_checked() -> None:
    assert columns.blob_ids(NEWS) == [2**63 + 64 * place for place in range(5)]
    for wrong in (
        msgspec.structs.replace(NEWS, ids=[(1, 1, 4)]),
        msgspec.structs.replace(NEWS, ids=[(1, 1, 2**40)]),
        msgspec.structs.replace(NEWS, ids=[(1, -1, 5)]),
        msgspec.structs.replace(NEWS, ids=[(2**64 - 2, 1, 5)]),
        msgspec.structs.replace(NEWS, slot_bytes=4096),
    ):
        with pytest.raises(ProtocolError, match="PoolNews: "):
            columns.blob_ids(wrong)


def _offer(rows: int) -> Offer:
    column = pack32([1] * rows)
    return Offer(SPACE, 5, 1, column, [KEY] * rows, [b""] * rows, column, column, pack64([9] * rows))


def test_no_more_blob_ids_are_made_of_runs_than_there_are_places() -> None:
    made: list[int] = []

    class Counted(int):
        def __mul__(self, other: int) -> int:
            made.append(other)
            return int(self) * other

    wrong = msgspec.structs.replace(NEWS, ids=[(0, Counted(64), 1 << 20)])
    with pytest.raises(ProtocolError, match="PoolNews: "):
        columns.blob_ids(wrong)
    assert not made


def test_offers_are_checked() -> None:
    assert columns.offer(OFFER, 5, 2).positions == (7,)
    assert len(columns.offer(_offer(JOB_ROWS_MAX), 5, 2).groups) == JOB_ROWS_MAX
    for wrong in (
        msgspec.structs.replace(OFFER, groups=pack32([2])),
        msgspec.structs.replace(OFFER, places=pack32([5])),
        msgspec.structs.replace(OFFER, positions=pack32([-1])),
        msgspec.structs.replace(OFFER, generations=pack64([0])),
        msgspec.structs.replace(OFFER, parents=[]),
        _offer(JOB_ROWS_MAX + 1),
    ):
        with pytest.raises(ProtocolError, match="Offer: "):
            columns.offer(wrong, 5, 2)
    assert columns.rows_taken(OfferTaken(SPACE, 5, 1, pack32([0, 2])), 3) == {0, 2}
    with pytest.raises(ProtocolError):
        columns.rows_taken(OfferTaken(SPACE, 5, 1, pack32([3])), 3)
    assert columns.groups_used(Used(SPACE, 5, pack32([1]), [KEY]), 2) == (1,)
    with pytest.raises(ProtocolError):
        columns.groups_used(Used(SPACE, 5, pack32([1, 1]), [KEY]), 2)


def test_mutated_frames_are_messages_or_protocol_errors() -> None:
    source = random.Random(4)
    frames = [encode(message)[4:] for message, _ in GOLDEN] + [encode(message)[4:] for message in OTHERS]
    heard = 0
    for _ in range(MUTANTS):
        body = bytearray(source.choice(frames))
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(body))
            match source.randrange(3):
                case 0:
                    body[at] ^= 1 << source.randrange(8)
                case 1:
                    del body[at : at + source.randint(1, 8)]
                case _:
                    body[at:at] = source.randbytes(source.randint(1, 8))
            if not body:
                break
        try:
            message = decode_from_peer(body)
            heard += 1
            match message:
                case Changes():
                    columns.changes(message, 5)
                case PoolNews():
                    columns.blob_ids(message)
                case Offer():
                    columns.offer(message, 5, 2)
                case _:
                    pass
        except ProtocolError:
            pass
    assert heard > MUTANTS // 100, "mutated too much to test what comes after decoding"


def test_pools_that_should_share_and_cannot_say_why() -> None:
    other = bytes(16)
    assert pool_conflict(NEWS, NEWS) is None
    assert pool_conflict(NEWS, msgspec.structs.replace(NEWS, body_bytes=8192)) == "body_bytes 8192 there, 4096 here"
    ours = msgspec.structs.replace(NEWS, description={"weights": "w", "hash": "sha256", "format": "2"})
    hashed = msgspec.structs.replace(ours, namespace=other, description={**ours.description, "hash": "xxhash"})
    assert pool_conflict(ours, hashed) == "hash xxhash there, sha256 here"
    formatted = msgspec.structs.replace(ours, namespace=other, description={**ours.description, "format": "3"})
    assert pool_conflict(ours, formatted) == "format 3 there, 2 here"
    model = msgspec.structs.replace(ours, namespace=other, description={**ours.description, "weights": "x"})
    assert pool_conflict(ours, model) is None, "another model is nobody's mistake"
    alike = pool_conflict(ours, msgspec.structs.replace(ours, namespace=other))
    assert alike == f"namespace {other.hex()} there, {SPACE.hex()} here"


def test_of_two_connections_both_ends_keep_the_same() -> None:
    a, b = (msgspec.structs.replace(HELLO, node=name) for name in "ab")
    # One was dialled by a, the other by b.
    assert preferred(a, b, dialled_here=True) == preferred(b, a, dialled_here=False) is True
    assert preferred(a, b, dialled_here=False) == preferred(b, a, dialled_here=True) is False


def test_columns_of_arrays_and_lists_are_alike() -> None:
    assert pack32(np.array([1, 2])) == pack32([1, 2]) == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert pack64(np.array([1], np.uint64)) == pack64([1])
