"""The protocol between the sidecars of a cluster, over TCP.

Frames are those of `tieredkv.protocol`: a little-endian u32 length and that many bytes, msgpack. Bytes
of KV never travel here; they are read by vineyardd's RPC. Both ends are equal: whoever dialled, each says
the same messages. A connection starts, after its authentication (see `security`), with a `PeerHello` of
each side, then a verdict of each: `PeerWelcome` or `PeerRefused`. From then on the last 8 bytes of a frame
are the xxh3-64 of those before: TCP's own sum lets some damage through, and one wrong message (a `Follow`
that is lost, a count of resets) would be believed until the connection ends.

Columns of a message are of equal length, as raw little-endian bytes: places, positions, groups and rows
int32, fingerprints and generations uint64. All is bounded at decoding; what depends on the receiver (does
the pool have such a place?) is checked by `columns` of `tieredkv.sidecar.cluster.columns`.
"""

from typing import Annotated, Final

import msgspec
import xxhash

from tieredkv.errors import ProtocolError
from tieredkv.protocol import LENGTH_BYTES, Message, encode
from tieredkv.tiers.pool import NAMESPACE_BYTES
from tieredkv.types import KEY_BYTES_MAX, KEY_BYTES_MIN

PEER_PROTOCOL_MIN: Final = 1
PEER_PROTOCOL_MAX: Final = 1
ROWS_MAX: Final = 16_384
"""Most rows of one message."""

PROOF_BYTES: Final = 8
RUNS_MAX: Final = 65_536
PLACES_MAX: Final = 1 << 26

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# Random 64 bits among others, so it has no other bound than msgpack's.
Unsigned = Annotated[int, msgspec.Meta(ge=0)]
# Each node adds its own to it and writes the sum into headers of 64 bits.
Resets = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Places = Annotated[int, msgspec.Meta(ge=0, le=PLACES_MAX)]
Namespace = Annotated[bytes, msgspec.Meta(min_length=NAMESPACE_BYTES, max_length=NAMESPACE_BYTES)]
Description = Annotated[dict[ShortText, Text], msgspec.Meta(max_length=256)]
Column32 = Annotated[bytes, msgspec.Meta(max_length=4 * ROWS_MAX)]
Column64 = Annotated[bytes, msgspec.Meta(max_length=8 * ROWS_MAX)]
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES_MIN, max_length=KEY_BYTES_MAX)]
ParentBytes = Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES_MAX)]
Keys = Annotated[list[KeyBytes], msgspec.Meta(max_length=ROWS_MAX)]
Parents = Annotated[list[ParentBytes], msgspec.Meta(max_length=ROWS_MAX)]
IdRuns = Annotated[list[tuple[int, int, int]], msgspec.Meta(max_length=RUNS_MAX)]


class PeerHello(Message, frozen=True, tag="peer_hello"):
    """First message of each side. `epoch` is random, 64 bits, for each run of a sidecar.

    `rpc_host` and `rpc_port` are where vineyardd serves this node's places, port 0 if it does not.
    `control_host` and `control_port` are where other nodes dial this one, port 0 if they cannot. An empty
    host is the one that the connection is with.
    `slot_format` and `fingerprints` are versions of formats of ours. `wall_s` is the time of day, in
    seconds since 1970, when this was said. A `visit` ends with the verdicts: somebody asks whether this
    node could be reached, and worked with.
    """

    protocol_min: int
    protocol_max: int
    cluster: Name
    node: Name
    epoch: Unsigned
    version: ShortText
    vineyard: ShortText
    slot_format: int
    fingerprints: int
    rpc_host: ShortText = ""
    rpc_port: Port = 0
    control_host: ShortText = ""
    control_port: Port = 0
    wall_s: float = 0.0
    visit: bool = False


class PeerWelcome(Message, frozen=True, tag="peer_welcome"):
    """The other side's greeting is accepted."""

    protocol: int


class PeerRefused(Message, frozen=True, tag="peer_refused"):
    """It is not, and why, in one line; whoever says it closes."""

    reason: Text


class PoolNews(Message, frozen=True, tag="pool_news"):
    """A pool of this node that others may read. Said again, and no more than that, when `resets` has grown.

    `ids` are the blobs of all its places as runs (start, step, count). The places are the slots, then the
    pages. A pool of an `epoch` other than the one before is another pool: all that was told is void.
    """

    namespace: Namespace
    description: Description
    body_bytes: Positive
    chain_tokens: Positive
    group_strides: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=256)]
    epoch: Unsigned
    slots: Places
    pages: Places
    slot_bytes: Positive
    ids: IdRuns
    resets: Resets = 0


class PoolGone(Message, frozen=True, tag="pool_gone"):
    """This pool cannot be read any more."""

    namespace: Namespace
    epoch: Unsigned


class Follow(Message, frozen=True, tag="follow"):
    """Tell what this pool of yours holds, from the beginning, and from then on: `Changes` answer."""

    namespace: Namespace
    epoch: Unsigned


class Changes(Message, frozen=True, tag="changes"):
    """What places of a pool hold from now on: fingerprint and generation, both 0 for nothing.

    `number` counts the messages since `Follow` from 0. The first ones tell all that is held: the snapshot,
    which ends with the message whose `whole` is true; it stays true from there on.
    """

    namespace: Namespace
    epoch: Unsigned
    number: Unsigned
    whole: bool
    places: Column32
    fingerprints: Column64
    generations: Column64


class Offer(Message, frozen=True, tag="offer"):
    """Chunks that this node would lose: does your cold pool want to read them?

    They stay where they are until `OfferTaken`, or the deadline of whoever offers.
    """

    namespace: Namespace
    epoch: Unsigned
    number: Unsigned
    groups: Column32
    keys: Keys
    parents: Parents
    positions: Column32
    places: Column32
    generations: Column64


class OfferTaken(Message, frozen=True, tag="offer_taken"):
    """Answer to `Offer`: the rows that are stored now; of the others nothing is kept."""

    namespace: Namespace
    epoch: Unsigned
    number: Unsigned
    rows: Column32


class Used(Message, frozen=True, tag="used"):
    """Chunks of your pool that were read by this node, for your policy to know."""

    namespace: Namespace
    epoch: Unsigned
    groups: Column32
    keys: Keys


class Ping(Message, frozen=True, tag="ping"):
    """Answered by `Pong` with the same number."""

    number: Unsigned


class Pong(Message, frozen=True, tag="pong"):
    """Answer to `Ping`."""

    number: Unsigned


FromPeer = (
    PeerHello
    | PeerWelcome
    | PeerRefused
    | PoolNews
    | PoolGone
    | Follow
    | Changes
    | Offer
    | OfferTaken
    | Used
    | Ping
    | Pong
)

_decoder = msgspec.msgpack.Decoder(FromPeer)


def decode_from_peer(body: bytes | bytearray | memoryview) -> FromPeer:
    """Decode the body of one frame sent by a peer. Raises ProtocolError."""
    try:
        message: FromPeer = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message


def encode_proved(message: Message) -> bytes:
    """The whole frame of a message after the greeting. Raises ProtocolError when it would exceed the bound."""
    body = encode(message)[LENGTH_BYTES:]
    return (len(body) + PROOF_BYTES).to_bytes(LENGTH_BYTES, "little") + body + xxhash.xxh3_64_digest(body)


def decode_proved(body: bytes) -> FromPeer:
    """Decode the body of such a frame. Raises ProtocolError."""
    said, proof = body[:-PROOF_BYTES], body[-PROOF_BYTES:]
    if xxhash.xxh3_64_digest(said) != proof:
        raise ProtocolError("a message was damaged on its way")
    return decode_from_peer(said)
