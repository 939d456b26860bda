"""How bytes read from a place prove that they are the chunk that was asked for, whole and unchanged.

The checksum is xxh3-64 of the body, seeded with xxh3-64 of the header in which the words `generation`,
`checksum` and `flags` are zero: it covers all other bytes of the header, also those that mean nothing
yet, and stays right when the chunk is copied to another place, which has a generation of its own.
It catches accidents; who may write into the arena can forge it.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

import xxhash

from tieredkv.tiers.slots import FLAG_SEALED, FORMAT, HEADER_BYTES, MAGIC, TRAILER_BYTES

Bytes = bytes | bytearray | memoryview
"""Contiguous bytes (the `data` of an array); bodies are never copied to be read."""

_HEADER: Final = struct.Struct("<QQ16sQQIHHIBBxx64s64sQ56x")
"""As slots.HEADER_DTYPE, whose fields it names in their order in memory."""
_CHECKSUM_AND_FLAGS: Final = slice(40, 52)
_GENERATION: Final = slice(8, 16)
_SEAL: Final = struct.Struct("<QI")
_WORD: Final = struct.Struct("<Q")

assert _HEADER.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Expected:
    """What a place should hold; `generation` is that of the place that is read. No parent: empty."""

    key: bytes
    parent: bytes
    position: int
    group: int
    generation: int


class Proof(Enum):
    """Whether bytes are the chunk that was expected, or the first reason why they are not."""

    RIGHT = "right"
    TORN = "torn"  # rewritten since, or while it was read: header and trailer are not of that generation
    FOREIGN = "foreign"  # of another namespace, format, size or set of weights, or nothing of ours at all
    OTHER = "other"  # another chunk
    UNSEALED = "unsealed"  # nobody took its checksum yet
    CORRUPT = "corrupt"  # the checksum is wrong


def checksum(header: Bytes, body: Bytes) -> int:
    """The checksum of a chunk: `header` of HEADER_BYTES bytes, `body` as long as the header says.

    Bodies of more than some 100 kB are read without the GIL.
    """
    return xxhash.xxh3_64_intdigest(body, _seed(header))


class BodyChecksum:
    """The checksum of a chunk whose body comes piece by piece: each is read while the caches still have it."""

    def __init__(self, header: Bytes) -> None:
        """`header`: HEADER_BYTES bytes."""
        self._state = xxhash.xxh3_64(seed=_seed(header))
        self.size_bytes = 0
        """How much of the body was added."""

    def add(self, piece: Bytes) -> None:
        """The next bytes of the body. Those of more than some 100 kB are read without the GIL."""
        self._state.update(piece)
        self.size_bytes += len(piece)

    @property
    def value(self) -> int:
        """As `checksum` gives it, of what was added."""
        return self._state.intdigest()


def is_sealed(header: Bytes) -> bool:
    """Whether a header says that its checksum holds."""
    return bool(_SEAL.unpack(bytes(header[_CHECKSUM_AND_FLAGS]))[1] & FLAG_SEALED)


def told_checksum(header: Bytes) -> int:
    """The checksum that a sealed header tells."""
    told: int = _SEAL.unpack(bytes(header[_CHECKSUM_AND_FLAGS]))[0]
    return told


def sealed(header: Bytes, body_checksum: int) -> bytes:
    """The header of an unsealed chunk with its checksum, as `checksum` or a BodyChecksum gave it."""
    blank = bytearray(header)
    blank[_CHECKSUM_AND_FLAGS] = _SEAL.pack(body_checksum, FLAG_SEALED)
    return bytes(blank)


def unsealed(header: Bytes) -> bytes:
    """The header without its checksum."""
    blank = bytearray(header)
    blank[_CHECKSUM_AND_FLAGS] = bytes(_SEAL.size)
    return bytes(blank)


def describes(
    header: Bytes, trailer: Bytes, expected: Expected, *, namespace: bytes, resets: int, body_bytes: int
) -> Proof:
    """What `prove` can tell without the body: RIGHT for the right chunk, sealed or not."""
    raw = bytes(header)
    assert len(raw) == HEADER_BYTES
    assert len(trailer) == TRAILER_BYTES
    (
        magic, generation, its_namespace, its_body_bytes, _, flags, group, form,
        position, key_bytes, parent_bytes, key, parent, its_resets,
    ) = _HEADER.unpack(raw)  # fmt: skip
    (ended,) = _WORD.unpack_from(trailer)
    if not generation == ended == expected.generation:
        return Proof.TORN
    if (magic, form, its_namespace) != (MAGIC, FORMAT, namespace):
        return Proof.FOREIGN
    # A flag that nobody has defined yet may say that the bytes mean something else.
    if (its_body_bytes, its_resets, flags & ~FLAG_SEALED) != (body_bytes, resets, 0):
        return Proof.FOREIGN
    if (group, position) != (expected.group, expected.position):
        return Proof.OTHER
    if key[:key_bytes] != expected.key or parent[:parent_bytes] != expected.parent:
        return Proof.OTHER
    return Proof.RIGHT


def prove(
    header: Bytes,
    body_checksum: int,
    trailer: Bytes,
    expected: Expected,
    *,
    namespace: bytes,
    resets: int,
    body_bytes: int,
) -> Proof:
    """Whether header (HEADER_BYTES), body (`body_bytes`) and trailer (TRAILER_BYTES) are that chunk.

    `body_checksum` is what `checksum` or a BodyChecksum gave for this header and body. Of the trailer only the
    generation means something. `resets` is the reader's count.
    """
    found = describes(header, trailer, expected, namespace=namespace, resets=resets, body_bytes=body_bytes)
    if found is not Proof.RIGHT:
        return found
    if not is_sealed(header):
        return Proof.UNSEALED
    return Proof.RIGHT if told_checksum(header) == body_checksum else Proof.CORRUPT


def _seed(header: Bytes) -> int:
    """What a chunk's header makes the checksum of its body begin with."""
    blank = bytearray(header)
    assert len(blank) == HEADER_BYTES
    blank[_GENERATION] = bytes(_WORD.size)
    blank[_CHECKSUM_AND_FLAGS] = bytes(_SEAL.size)
    return xxhash.xxh3_64_intdigest(blank)
