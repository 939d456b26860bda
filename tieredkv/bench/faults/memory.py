"""A node's memory, to be damaged: bits of places flipped, places rewritten while others read them."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.bench.faults.node import Node
from tieredkv.errors import Unreachable
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.record import read_record
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.pool import PoolRecord
from tieredkv.tiers.slots import FLAG_SEALED, HEADER_BYTES, HEADER_DTYPE, TRAILER_BYTES

_FLAGS_OFFSET: Final = 48
_FLAGS_END: Final = 52


@dataclass(frozen=True, slots=True)
class Held:
    """A sealed chunk in a place."""

    place: int
    key: bytes
    generation: int


class NodeMemory:
    """The pool of a node, mapped as its own vineyardd has it."""

    def __init__(self, node: Node) -> None:
        """Raises Unreachable when the node has no pool."""
        try:
            record = read_record(RuntimeDirectory(node.directory).pool_record)
        except ValueError as error:
            raise Unreachable(f"node {node.name}: {error}") from None
        if record is None or not record.pools:
            raise Unreachable(f"node {node.name} has no pool")
        self._record: PoolRecord = record.pools[0].record
        descriptor = _arena_of(record.vineyardd.pid)
        try:
            self._arena = Arena(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    @property
    def slots(self) -> int:
        """Places below this are slots, the others pages."""
        return self._record.slots

    def held(self, *, pages: bool) -> list[Held]:
        """What slots (or pages) hold now, with a checksum."""
        places = range(self.slots, self._record.places) if pages else range(self.slots)
        return [held for held in map(self._held, places) if held is not None]

    def flip(self, held: Held, count: int, random: Random) -> int:
        """Flip bits of a place, all in its header, its body or its trailer; returns how many.

        Never the mark of a slot that has its checksum: without it the sidecar of the node, which trusts
        its own memory, would take another one of what lies there.
        """
        part = random.choice(("header", "body", "trailer"))
        place = self._bytes(held.place)
        size = len(place)
        start, end = {
            "header": (0, HEADER_BYTES),
            "body": (HEADER_BYTES, HEADER_BYTES + self._record.geometry.body_bytes),
            "trailer": (size - TRAILER_BYTES, size - TRAILER_BYTES + 8),
        }[part]
        bits: set[tuple[int, int]] = set()
        while len(bits) < count:
            at = random.randrange(start, end)
            if held.place >= self.slots or not _FLAGS_OFFSET <= at < _FLAGS_END:
                bits.add((at, random.randrange(8)))
        for at, bit in bits:
            place[at] ^= 1 << bit
        return count

    def tear(self, held: Held, random: Random) -> None:
        """Rewrite a place as its next tenant would, then put back what was there."""
        place = self._bytes(held.place)
        body = place[HEADER_BYTES:-TRAILER_BYTES]
        trailer = place[-TRAILER_BYTES:][:8].view(np.uint64)
        before = body.copy()
        trailer[0] = held.generation + 1
        middle = random.randrange(1, len(body))
        body[:middle] = random.randrange(256)
        body[middle:] = random.randrange(256)
        body[:middle] = before[:middle]
        trailer[0] = held.generation
        body[middle:] = before[middle:]

    def _bytes(self, place: int) -> npt.NDArray[np.uint8]:
        start = int(self._record.offsets[place])
        return self._arena.view[start : start + self._record.slot_bytes]

    def _held(self, place: int) -> Held | None:
        raw = self._bytes(place)
        header = raw[:HEADER_BYTES].view(HEADER_DTYPE)[0]
        generation = int(header["generation"])
        ended = int(raw[-TRAILER_BYTES:][:8].view(np.uint64)[0])
        if not generation or generation != ended or not int(header["flags"]) & FLAG_SEALED:
            return None
        return Held(place, bytes(header["key"])[: int(header["key_bytes"])], generation)


@contextmanager
def torn(memory: NodeMemory, held: Sequence[Held], random: Random) -> Generator[None]:
    """Rewrite these places again and again; all is as before at the end."""
    over = Event()

    def rewrite() -> None:
        while held and not over.is_set():
            memory.tear(random.choice(held), random)

    writer = Thread(target=rewrite, name="torn", daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def _arena_of(pid: int) -> int:
    """A descriptor of the memfd that a vineyardd holds. Raises Unreachable."""
    for name in _descriptors(pid):
        if "memfd:" in os.fspath(name.readlink()):
            return os.open(name, os.O_RDWR | os.O_CLOEXEC)
    raise Unreachable(f"process {pid} has no arena")


def _descriptors(pid: int) -> Iterator[Path]:
    try:
        yield from Path(f"/proc/{pid}/fd").iterdir()
    except OSError as error:
        raise Unreachable(f"process {pid}: {error.strerror}") from None
