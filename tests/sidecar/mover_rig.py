"""A mover on an arena of its own, as a sidecar would hold it, and chunks whose bytes tell what they are."""

import os
import select
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import monotonic

import numpy as np

from tieredkv.brain.moves import Demote, Fetch, JobId, Moved, PeerId, Promote, Pull
from tieredkv.sidecar.keeper import SharedArena
from tieredkv.sidecar.mover.client import MoverProcess
from tieredkv.tiers import proof
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.pool import Pool, PoolRecord
from tieredkv.tiers.slots import HEADER_BYTES, HEADER_DTYPE, slot_bytes
from tieredkv.types import Geometry, Key

NAMESPACE = b"mover-namespace!"
RESETS = 2
DEADLINE_S = 30.0


def key_of(chunk: int) -> Key:
    return Key(chunk.to_bytes(4, "little") * 8)


@lru_cache(maxsize=64)
def body_of(chunk: int, size: int) -> np.ndarray:
    return np.random.default_rng(chunk).integers(0, 256, size, np.uint8)


class Node:
    """Slots and pages with a mover. Generations are given out here, as the brain would."""

    def __init__(
        self,
        *,
        slots: int = 16,
        pages: int = 16,
        body_bytes: int = 4096,
        arena: SharedArena | None = None,
        offsets: np.ndarray | None = None,
        blob_ids: Sequence[int] = (),
        mover: bool = True,
        hang_s: float = 5.0,
        fetch_deadline_s: float = 5.0,
    ) -> None:
        places = slots + pages
        self.body_bytes = body_bytes
        size = slot_bytes(body_bytes)
        if arena is None:
            fd = os.memfd_create("arena")
            os.ftruncate(fd, places * size)
            arena = SharedArena(fd, Arena(fd, places * size))
        self.arena = arena
        self.record = PoolRecord(
            NAMESPACE,
            {},
            Geometry(body_bytes=body_bytes, chain_tokens=16, group_strides=(1,)),
            tuple(blob_ids) or tuple(range(places)),
            offsets if offsets is not None else np.arange(places) * size,
            pages,
        )
        self.pool = Pool(self.record, arena.mapping.view)
        self.generation = 0
        self.jobs = 0
        self.skipped_s = 0.0
        self.moved: dict[int, Moved] = {}
        self.mover: MoverProcess | None = None
        if mover:
            self.mover = MoverProcess(arena, hang_s=hang_s, fetch_deadline_s=fetch_deadline_s)
            self.jobs_of = self.mover.open_pool(self.record, RESETS)
            self.wait(lambda: self.held.ready)

    @property
    def held(self) -> MoverProcess:
        assert self.mover is not None
        return self.mover

    def close(self) -> None:
        if self.mover is not None:
            self.mover.close()
        self.arena.close()

    # --- time ---------------------------------------------------------------------------------------

    def wait(self, until: Callable[[], bool]) -> None:
        """Turn the sidecar's loop until it is so."""
        end_s = monotonic() + DEADLINE_S
        while not until():
            assert monotonic() < end_s, "the mover did not do it"
            self.wait_briefly()
            self.turn()

    def wait_briefly(self) -> None:
        """As the loop does when it has nothing to do."""
        select.select([self.held], [], [], 0.01)

    def turn(self) -> None:
        """One turn of the loop; `skipped_s` have passed besides."""
        self.held.receive()
        self.held.tick(monotonic() + self.skipped_s)
        self.take()

    def take(self) -> None:
        for moved in self.jobs_of.poll(1000):
            assert moved.number not in self.moved, "answered twice"
            self.moved[moved.number] = moved

    def result(self, number: int) -> Moved:
        self.wait(lambda: number in self.moved)
        return self.moved[number]

    # --- chunks -------------------------------------------------------------------------------------

    def give(self, count: int) -> list[int]:
        """New generations."""
        self.generation += count
        return list(range(self.generation - count + 1, self.generation + 1))

    def store(self, slots: Sequence[int], chunks: Sequence[int], *, resets: int = RESETS) -> list[int]:
        """An engine stores chunks; the generations of their slots."""
        generations = self.give(len(slots))
        at, tenancies = np.array(slots), np.array(generations, np.uint64)
        self.pool.start_tenancy(at, tenancies)
        for slot, chunk in zip(slots, chunks, strict=True):
            self.body(slot)[:] = body_of(chunk, self.body_bytes)
        self.pool.publish(
            at,
            tenancies,
            group=0,
            keys=[key_of(chunk) for chunk in chunks],
            parents=[b""] * len(chunks),
            positions=np.array(chunks),
            resets=resets,
        )
        return generations

    def seal(self, slots: Sequence[int], generations: Sequence[int]) -> None:
        """Have the checksums of slots entered, without a mover."""
        sums = [proof.checksum(bytes(self.place(slot)[:HEADER_BYTES]), self.body(slot).data) for slot in slots]
        self.pool.seal(np.array(slots), np.array(generations, np.uint64), np.array(sums, np.uint64))

    def place(self, place: int) -> np.ndarray:
        start = int(self.record.offsets[place])
        return self.arena.mapping.view[start : start + self.record.slot_bytes]

    def body(self, place: int) -> np.ndarray:
        return self.place(place)[HEADER_BYTES : HEADER_BYTES + self.body_bytes]

    def header(self, place: int) -> np.void:
        row: np.void = self.place(place)[:HEADER_BYTES].view(HEADER_DTYPE)[0]
        return row

    def holds(self, place: int, generation: int, chunk: int) -> bool:
        """Whether a reader would accept the place as that chunk, and gets its bytes."""
        agrees = self.pool.words.agree(np.array([place]), np.array([generation], np.uint64))[0]
        key = self.header(place)["key"].tobytes().rstrip(b"\0")
        return bool(
            agrees
            and key == key_of(chunk).rstrip(b"\0")
            and (self.body(place) == body_of(chunk, self.body_bytes)).all()
        )

    # --- jobs ---------------------------------------------------------------------------------------

    def page(self, number: int) -> int:
        return self.record.slots + number

    def _job(self, kind: type[Demote] | type[Promote], chunks: Sequence[int], **columns: Sequence[int]) -> int | None:
        self.jobs += 1
        job = kind(
            number=JobId(self.jobs),
            groups=(0,) * len(chunks),
            keys=tuple(map(key_of, chunks)),
            parents=(Key(b""),) * len(chunks),
            positions=tuple(chunks),
            **{name: tuple(column) for name, column in (columns | self._pages(columns)).items()},
        )
        return self.jobs if self.jobs_of.submit(job) else None

    def _pages(self, columns: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """The brain counts pages from 0; here they are places."""
        return {"pages": [page - self.pool.record.slots for page in columns["pages"]]} if "pages" in columns else {}

    def fetch(
        self,
        peer: int,
        chunks: Sequence[int],
        places: Sequence[int],
        generations: Sequence[int],
        slots: Sequence[int],
    ) -> tuple[int, list[int]]:
        """Submit; the number of the job, and the generations of the slots."""
        self.jobs += 1
        given = self.give(len(slots))
        job = Fetch(
            number=JobId(self.jobs),
            peer=PeerId(peer),
            groups=(0,) * len(chunks),
            keys=tuple(map(key_of, chunks)),
            parents=(Key(b""),) * len(chunks),
            positions=tuple(chunks),
            slots=tuple(slots),
            generations=tuple(given),
            places=tuple(places),
            place_generations=tuple(generations),
        )
        assert self.jobs_of.submit(job)
        return self.jobs, given

    def pull(
        self,
        peer: int,
        chunks: Sequence[int],
        places: Sequence[int],
        generations: Sequence[int],
        pages: Sequence[int],
    ) -> tuple[int, list[int]]:
        """Submit; the number of the job, and the generations of the pages."""
        self.jobs += 1
        given = self.give(len(pages))
        job = Pull(
            number=JobId(self.jobs),
            peer=PeerId(peer),
            groups=(0,) * len(chunks),
            keys=tuple(map(key_of, chunks)),
            parents=(Key(b""),) * len(chunks),
            positions=tuple(chunks),
            pages=tuple(page - self.pool.record.slots for page in pages),
            page_generations=tuple(given),
            places=tuple(places),
            place_generations=tuple(generations),
        )
        assert self.jobs_of.submit(job)
        return self.jobs, given

    def demote(
        self, chunks: Sequence[int], slots: Sequence[int], generations: Sequence[int], pages: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Submit; the number of the job, and the generations of the pages."""
        given = self.give(len(pages))
        number = self._job(Demote, chunks, slots=slots, generations=generations, pages=pages, page_generations=given)
        assert number is not None, "refused"
        return number, given

    def promote(
        self, chunks: Sequence[int], pages: Sequence[int], generations: Sequence[int], slots: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Submit; the number of the job, and the generations of the slots."""
        given = self.give(len(slots))
        number = self._job(Promote, chunks, slots=slots, generations=given, pages=pages, page_generations=generations)
        assert number is not None, "refused"
        return number, given
