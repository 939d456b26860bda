"""A node without processes: the arena's words and bodies, the engines' views, and an oracle beside them.

Bodies hold *content tags* instead of KV bytes. A tag is written when an engine writes a slot, and
compared when a reader was told that a chunk is there, and again for as long as the reader needs it: a
wrong, stale or unwritten slot is visible. The sidecar's part (headers and trailers) is played here by
the letter of the slot format.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tieredkv.brain.values import Loaded
from tieredkv.manager import AdoptedChunk, Forgotten, Leased, Published
from tieredkv.types import EngineId, Generation, Key, RequestId, SlotId

Tag = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Header:
    generation: int
    group: int
    key: Key
    parent: Key
    position: int


@dataclass(frozen=True, slots=True)
class Hope:
    """What a request was told that will come: the head of its chain, `coming` positions long.

    `somewhere` are the chunks of the chain that warm, cold or another node had then.
    """

    chain: tuple[Key, ...]
    coming: int
    weights: int
    somewhere: frozenset[tuple[int, Key]]


@dataclass(slots=True)
class Engine:
    """What an engine knows of itself: its leases and what its requests may read."""

    leases: dict[int, int] = field(default_factory=dict[int, int])
    stale: set[int] = field(default_factory=set[int])
    reads: dict[RequestId, dict[int, Tag]] = field(default_factory=dict[RequestId, dict[int, Tag]])
    ended: set[RequestId] = field(default_factory=set[RequestId])
    hopes: dict[RequestId, Hope] = field(default_factory=dict[RequestId, "Hope"])

    def held(self) -> set[int]:
        """Slots that count against its share."""
        return {slot for reads in self.reads.values() for slot in reads} | self.leases.keys()


class Arena:
    """Words and bodies of all slots; who may write which; which chunk is where."""

    def __init__(self, slots: int, marks: Counter[str]) -> None:
        self.slots = slots
        self.marks = marks
        self.weights = 0
        self.bodies: list[Tag] = [("untouched",)] * slots
        self.headers: list[Header | None] = [None] * slots
        self.trailers = [0] * slots
        self.last_generation = 0
        self.visible: dict[tuple[int, Key], int] = {}

    def content(self, group: int, key: Key) -> Tag:
        """The right body of a chunk under the present weights."""
        return ("kv", self.weights, group, key)

    def write(self, slot: int, tag: Tag) -> None:
        """A worker writes a body."""
        self.bodies[slot] = tag

    def apply_lease(self, name: EngineId, leased: Leased) -> list[int]:
        """Trailers of new tenancies, and at once the first bytes of a writer; the slots."""
        self.apply_evicted(leased.evicted)
        slots: list[int] = leased.slots.tolist()
        for slot, generation in zip(slots, leased.generations.tolist(), strict=True):
            assert slot not in self.visible.values(), "a visible chunk would be overwritten"
            self.begin(slot, generation)
            self.write(slot, ("half written", name, generation))
        return slots

    def begin(self, slot: int, generation: int) -> None:
        """The trailer of a new tenancy."""
        assert generation > self.last_generation, "a generation was used twice"
        self.last_generation = generation
        self.trailers[slot] = generation

    def apply_loaded(self, loaded: Loaded) -> None:
        """Headers of what came from cold."""
        job = loaded.job
        for row in loaded.rows:
            slot, group, key = job.slots[row], job.groups[row], job.keys[row]
            assert job.generations[row] == self.trailers[slot]
            self.headers[slot] = Header(job.generations[row], group, key, job.parents[row], job.positions[row])
            assert (group, key) not in self.visible
            self.visible[group, key] = slot

    def apply_evicted(self, evicted: dict[int, list[Key]]) -> None:
        """Chunks that the manager says are gone must have been there."""
        for group, keys in evicted.items():
            for key in keys:
                del self.visible[group, key]

    def apply_published(self, published: Published, group: int, rows: list[tuple[Key, Key, int, int]]) -> None:
        """Headers of accepted `rows` (key, parent, position, slot)."""
        for row, generation in zip(published.rows.tolist(), published.generations.tolist(), strict=True):
            key, parent, position, slot = rows[row]
            assert generation == self.trailers[slot]
            self.headers[slot] = Header(generation, group, key, parent, position)
            assert (group, key) not in self.visible
            self.visible[group, key] = slot

    def apply_reset(self, forgotten: Forgotten) -> None:
        """New weights: no header that names an old chunk may stay."""
        self.apply_evicted(forgotten.evicted)
        assert not self.visible, "a reset left chunks"
        for slot in forgotten.slots.tolist():
            self.headers[slot] = None
        self.weights += 1

    def read(self, slot: int, generation: int, group: int, key: Key) -> Tag:
        """What a reader gets that was told of this chunk; it must prove itself."""
        header = self.headers[slot]
        assert header is not None, "found a slot without a header"
        assert header.generation == self.trailers[slot] == generation, "found a slot of another tenancy"
        assert (header.group, header.key) == (group, key), "found another chunk's slot"
        tag = self.bodies[slot]
        assert tag == self.content(group, key), "found a body that is not the chunk's"
        return tag

    def scan(self) -> tuple[list[AdoptedChunk], list[int]]:
        """What a new sidecar sees: whole chunks, and slots that are between a lease and a publication."""
        whole: list[AdoptedChunk] = []
        unsettled: list[int] = []
        self.visible.clear()
        newest: dict[tuple[int, Key], int] = {}
        for slot, (header, trailer) in enumerate(zip(self.headers, self.trailers, strict=True)):
            if header is not None and header.generation == trailer:
                name = (header.group, header.key)
                whole.append(
                    AdoptedChunk(
                        SlotId(slot), Generation(trailer), header.group, header.key, header.parent, header.position
                    )
                )
                if name in newest:
                    self.marks["adopted one of two tenancies"] += 1
                if trailer > newest.get(name, 0):
                    newest[name] = trailer
                    self.visible[name] = slot
            elif trailer:
                unsettled.append(slot)
        return whole, unsettled


def int32(slots: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """As the wire carries slots."""
    return np.array(slots, np.int32)
