"""What a sidecar and its mover tell each other, over a stream socket pair: frames as in tieredkv.protocol.

First comes `ArenaIs`, whose first byte brings the arena's memfd; the mover answers `Ready`. Pools, peers
and resets are told before the jobs that need them. Every job is answered by one `Done`, every `Seal` by one
`Checksums`; a mover that cannot go on ends, and has not written since. Arrays are little-endian, as raw
bytes: places int64, generations, checksums and blob ids uint64.
"""

from enum import Enum

import msgspec

from tieredkv.errors import ProtocolError
from tieredkv.protocol import Message


class Loss(Enum):
    """Why a chunk of a job did not arrive. The first ones are those of tieredkv.tiers.proof.Proof."""

    TORN = "torn"
    FOREIGN = "foreign"
    OTHER = "other"
    UNSEALED = "unsealed"
    CORRUPT = "corrupt"
    MISSING = "missing"  # the peer has no such blob
    UNREACHABLE = "unreachable"  # the peer did not answer, or not in time
    CANCELLED = "cancelled"
    DIED = "died"  # the mover did


# --- sidecar -> mover -----------------------------------------------------------------------------


class ArenaIs(Message, frozen=True, tag="arena"):
    """The arena that all pools lie in; its memfd comes along."""

    size_bytes: int


class PoolIs(Message, frozen=True, tag="pool"):
    """A pool under a number of its own; the first `slots` of its places are no pages."""

    pool: int
    namespace: bytes
    body_bytes: int
    slots: int
    resets: int
    offsets: bytes


class PoolEnds(Message, frozen=True, tag="pool_ends"):
    """Nothing of this pool is wanted any more; what is queued is answered as cancelled."""

    pool: int


class ResetsAre(Message, frozen=True, tag="resets"):
    """From now on only chunks of this count of resets are copied."""

    pool: int
    resets: int


class PeerIs(Message, frozen=True, tag="peer"):
    """Where another node's vineyardd listens, and which blobs its places of this pool are."""

    pool: int
    peer: int
    host: str
    port: int
    blob_ids: bytes


class PeerEnds(Message, frozen=True, tag="peer_ends"):
    """Nothing of this pool is fetched from that peer any more."""

    pool: int
    peer: int


class Rows(Message, frozen=True):
    """Chunks that go from places to places; columns of equal length.

    An `urgent` job goes before all that are not.
    """

    pool: int
    number: int
    groups: tuple[int, ...]
    keys: tuple[bytes, ...]
    parents: tuple[bytes, ...]
    positions: tuple[int, ...]
    sources: tuple[int, ...]
    source_generations: tuple[int, ...]
    targets: tuple[int, ...]
    target_generations: tuple[int, ...]
    urgent: bool

    def __len__(self) -> int:
        return len(self.targets)


class Copy(Rows, frozen=True, tag="copy"):
    """Both places are here: from slots to pages or back."""


class Fetch(Rows, frozen=True, tag="fetch"):
    """The sources are the peer's. It is over `deadline_s` after it was taken over, `work_s` after it was begun."""

    peer: int
    deadline_s: float
    work_s: float


class Cancel(Message, frozen=True, tag="cancel"):
    """Nobody wants this job any more."""

    pool: int
    number: int


class Seal(Message, frozen=True, tag="seal"):
    """Take the checksums of these slots, when there is nothing else to do."""

    pool: int
    number: int
    places: bytes
    generations: bytes


# --- mover -> sidecar -----------------------------------------------------------------------------


class Ready(Message, frozen=True, tag="ready"):
    """The arena is mapped."""


class Done(Message, frozen=True, tag="done"):
    """A job is over; `failed` tells for rows why they did not arrive. Nothing of it is touched any more."""

    pool: int
    number: int
    failed: dict[int, Loss]
    seconds: float


class Checksums(Message, frozen=True, tag="checksums"):
    """Checksums of those of the slots that still held what was meant, when they were read."""

    pool: int
    number: int
    places: bytes
    generations: bytes
    checksums: bytes
    seconds: float


ToMover = ArenaIs | PoolIs | PoolEnds | ResetsAre | PeerIs | PeerEnds | Copy | Fetch | Cancel | Seal
FromMover = Ready | Done | Checksums

_to_mover = msgspec.msgpack.Decoder(ToMover)
_from_mover = msgspec.msgpack.Decoder(FromMover)


def decode_to_mover(body: bytes) -> ToMover:
    """Decode the body of one frame that the sidecar sent. Raises ProtocolError."""
    try:
        message: ToMover = _to_mover.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message


def decode_from_mover(body: bytes) -> FromMover:
    """Decode the body of one frame that the mover sent. Raises ProtocolError."""
    try:
        message: FromMover = _from_mover.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message
