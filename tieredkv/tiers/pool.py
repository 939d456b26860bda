"""A pool: all slots and pages of one namespace, where they lie in the arena, and their headers, in bulk.

Slots are places 0 to slots - 1, the pages of the cold tier follow. Ownership: one thread of the sidecar
writes headers and trailers of what engines store, the mover those of what it copies; nobody else ever does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.errors import VineyardError
from tieredkv.tiers.slots import (
    FLAG_SEALED,
    FORMAT,
    HEADER_BYTES,
    HEADER_DTYPE,
    MAGIC,
    TRAILER_BYTES,
    Generations,
    Ints,
    SlotWords,
    slot_bytes,
)
from tieredkv.types import KEY_BYTES_MAX, Geometry, Key

NAMESPACE_BYTES: Final = 16
GENERATION_MAX: Final = 1 << 62
"""A larger one in the arena was never given by us."""

_HEADER_WORDS: Final = HEADER_BYTES // 8
_GENERATION_WORD: Final = HEADER_DTYPE.fields["generation"][1] // 8 if HEADER_DTYPE.fields else 1
_OTHER_WORDS: Final = np.array([word for word in range(_HEADER_WORDS) if word != _GENERATION_WORD], np.int64)
_CHECKSUM_WORD: Final = 5
_FLAGS_WORD: Final = 6
_KEY_OFFSET: Final = 64
_PARENT_OFFSET: Final = 128


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What must be known to use a pool's slots again, also by another process than its maker."""

    namespace: bytes
    description: Mapping[str, str]
    geometry: Geometry
    blob_ids: tuple[int, ...]
    offsets: Ints
    pages: int = 0
    """So many of the places, the last ones, are pages of the cold tier: slots like the others, but no engine's."""

    @property
    def places(self) -> int:
        """How many slots and pages the pool has."""
        return len(self.offsets)

    @property
    def slots(self) -> int:
        """How many of them engines may use."""
        return len(self.offsets) - self.pages

    @property
    def slot_bytes(self) -> int:
        """Size of each slot's blob."""
        return slot_bytes(self.geometry.body_bytes)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk that a scan found published; `slot` is its place."""

    slot: int
    generation: int
    group: int
    key: Key
    parent: Key
    position: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What the headers of a pool say after its former owner vanished.

    `unsettled` slots were leased (or freed) when it did: somebody may be writing into them still, in the
    tenancies `unsettled_generations`.
    """

    ready: tuple[StoredChunk, ...]
    unsettled: Ints
    unsettled_generations: Generations
    next_generation: int


class Pool:
    """The slots of one namespace through a mapping of the arena. Not thread safe."""

    def __init__(self, record: PoolRecord, arena: npt.NDArray[np.uint8]) -> None:
        assert len(record.namespace) == NAMESPACE_BYTES
        assert len(record.blob_ids) == record.places > record.pages >= 0
        assert not (record.offsets % 8).any()
        assert int(record.offsets.min()) >= 0
        assert int(record.offsets.max()) + record.slot_bytes <= len(arena)
        self.record = record
        self.words = SlotWords(arena, record.offsets, record.slot_bytes)
        self._arena_words: Generations = arena[: len(arena) // 8 * 8].view(np.uint64)
        self._first_word = record.offsets // 8
        self._trailer_word = (record.offsets + record.slot_bytes - TRAILER_BYTES) // 8

    def start_tenancy(self, slots: Ints, generations: Generations) -> None:
        """Slots were leased: nobody accepts their old bodies from here on."""
        self.words.set_trailers(slots, generations)

    def publish(
        self,
        slots: Ints,
        generations: Generations,
        *,
        group: int,
        keys: Sequence[bytes],
        parents: Sequence[bytes],
        positions: Ints,
        resets: int = 0,
    ) -> None:
        """Write the headers of wholly written slots; the generation, which makes them valid, comes last."""
        assert len(slots) == len(generations) == len(keys) == len(parents) == len(positions)
        assert 0 <= group < len(self.record.geometry.group_strides)
        rows = np.zeros(len(slots), HEADER_DTYPE)
        rows["magic"] = MAGIC
        rows["namespace"] = np.frombuffer(self.record.namespace, "V16")[0]
        rows["body_bytes"] = self.record.geometry.body_bytes
        rows["group"] = group
        rows["format"] = FORMAT
        rows["position"] = positions
        rows["resets"] = resets
        rows["key_bytes"] = [len(key) for key in keys]
        rows["parent_bytes"] = [len(parent) for parent in parents]
        rows["key"] = _padded(keys)
        rows["parent"] = _padded(parents)
        words = rows.view(np.uint64).reshape(len(slots), _HEADER_WORDS)
        target = self._first_word[slots][:, None] + _OTHER_WORDS
        self._arena_words[target] = words[:, _OTHER_WORDS]
        self.words.set_headers(slots, generations)

    def seal(self, slots: Ints, generations: Generations, checksums: Generations) -> npt.NDArray[np.bool_]:
        """Enter the checksums (tieredkv.tiers.proof) of chunks that are still published; which ones are."""
        still = self.words.agree(slots, generations)
        first = self._first_word[slots[still]]
        self._arena_words[first + _CHECKSUM_WORD] = checksums[still]
        # The flag comes last; it is in the low half of its word.
        self._arena_words[first + _FLAGS_WORD] |= np.uint64(FLAG_SEALED)
        return still

    def invalidate(self, slots: Ints) -> None:
        """Make published chunks unreadable, also for a process that adopts the pool later."""
        self.words.set_headers(slots, np.zeros(len(slots), np.uint64))

    def wipe(self) -> None:
        """Forget whatever an earlier pool left in this memory. Touches two pages of each slot."""
        everything = np.arange(self.record.places)
        nothing = np.zeros(self.record.places, np.uint64)
        self.words.set_trailers(everything, nothing)
        self.words.set_headers(everything, nothing)

    def populated(self, extents: Ints) -> int:
        """How many places, counted from the first, have all their memory: it is in `extents` (see arena.populated)."""
        firsts, ends = self.record.offsets, self.record.offsets + self.record.slot_bytes
        at = np.searchsorted(extents[:, 0], firsts, side="right") - 1
        whole = (at >= 0) & (ends <= extents[np.maximum(at, 0), 1]) if len(extents) else np.zeros(len(ends), np.bool_)
        return len(whole) if bool(whole.all()) else int(np.argmin(whole))

    def touched(self, extents: Ints) -> Ints:
        """The places that anybody ever wrote into, and perhaps others: some of their memory is in `extents`."""
        ends = self.record.offsets + self.record.slot_bytes
        following = np.searchsorted(extents[:, 1], self.record.offsets, side="right")
        starts = np.append(extents[:, 0], np.iinfo(np.int64).max)
        return np.flatnonzero(starts[following] < ends)

    def scan(self, places: Ints, *, resets: int) -> Scan:
        """Read the headers of `places`, in rising order; what was never touched is, by that.

        Raises VineyardError when this cannot be a pool of ours.
        """
        rows = self._arena_words[self._first_word[places, None] + np.arange(_HEADER_WORDS)]
        trailers = self._arena_words[self._trailer_word[places]]
        headers = rows.view(HEADER_DTYPE).reshape(len(places))
        generations = headers["generation"]
        plausible = (
            (headers["magic"] == MAGIC)
            & (headers["format"] == FORMAT)
            & (headers["body_bytes"] == self.record.geometry.body_bytes)
            & (headers["group"] < len(self.record.geometry.group_strides))
            & (headers["key_bytes"] > 0)
            & (headers["key_bytes"] <= KEY_BYTES_MAX)
            & (headers["parent_bytes"] <= KEY_BYTES_MAX)
            & (headers["namespace"] == np.frombuffer(self.record.namespace, "V16")[0])
            & (headers["resets"] == resets)
        )
        last = int(np.concatenate((generations, trailers)).max(initial=np.uint64(0)))
        if last > GENERATION_MAX:
            raise VineyardError(f"the pool is damaged: generation {last} in a slot")
        unsettled = np.flatnonzero((generations != trailers) & (trailers > 0))
        whole = np.flatnonzero((generations == trailers) & (generations > 0) & plausible)
        return Scan(
            ready=_chunks(whole, places, headers, rows),
            unsettled=places[unsettled],
            unsettled_generations=trailers[unsettled],
            next_generation=last + 1,
        )


def _chunks(
    whole: Ints, places: Ints, headers: npt.NDArray[np.void], rows: npt.NDArray[np.uint64]
) -> tuple[StoredChunk, ...]:
    """The chunks of the rows `whole`, which are those of `places`.

    Of two with the same name the one that was written later.
    """
    found: dict[tuple[int, bytes], StoredChunk] = {}
    columns = (headers[name][whole].tolist() for name in _NUMBERS)
    at: list[int] = places[whole].tolist()
    for row, place, generation, group, position, key_bytes, parent_bytes in zip(
        whole.tolist(), at, *columns, strict=True
    ):
        header = rows[row].tobytes()
        key = Key(header[_KEY_OFFSET : _KEY_OFFSET + key_bytes])
        parent = Key(header[_PARENT_OFFSET : _PARENT_OFFSET + parent_bytes])
        other = found.get((group, key))
        if other is None or other.generation < generation:
            found[group, key] = StoredChunk(place, generation, group, key, parent, position)
    return tuple(sorted(found.values(), key=lambda chunk: chunk.generation))


_NUMBERS: Final = ("generation", "group", "position", "key_bytes", "parent_bytes")


def _padded(keys: Sequence[bytes]) -> npt.NDArray[np.void]:
    return np.frombuffer(b"".join(key.ljust(KEY_BYTES_MAX, b"\0") for key in keys), f"V{KEY_BYTES_MAX}")
