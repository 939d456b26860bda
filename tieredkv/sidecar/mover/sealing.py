"""Checksums of chunks in the slots where engines stored them, so that other nodes can read them."""

from time import monotonic

import numpy as np

from tieredkv.sidecar.mover.messages import Checksums, Seal
from tieredkv.sidecar.mover.places import Places
from tieredkv.tiers import proof


class Sealing:
    """One `Seal` on its way, slot by slot: whatever else there is to do comes between two slots.

    Nothing is written here. A slot may be leased to an engine meanwhile, and then its header is the
    sidecar's to write: so the sidecar enters the checksums, where the slot still holds the same.
    """

    def __init__(self, places: Places, job: Seal) -> None:
        self._places = places
        self._job = job
        self._numbers: list[int] = np.frombuffer(job.places, np.int64).tolist()
        self._generations: list[int] = np.frombuffer(job.generations, np.uint64).tolist()
        self._next = 0
        self._seconds = 0.0
        self._taken: list[tuple[int, int, int]] = []

    @property
    def over(self) -> bool:
        """Whether all slots were read, or nobody wants them any more."""
        return self._places.ended or self._next == len(self._numbers)

    def seal_one(self) -> None:
        """Read the next slot. The body is read without the GIL."""
        start_s = monotonic()
        self._take(self._numbers[self._next], self._generations[self._next])
        self._next += 1
        self._seconds += monotonic() - start_s

    def answer(self) -> Checksums:
        """The result so far."""
        places, generations, checksums = zip(*self._taken, strict=True) if self._taken else ((), (), ())
        return Checksums(
            self._job.pool,
            self._job.number,
            np.array(places, np.int64).tobytes(),
            np.array(generations, np.uint64).tobytes(),
            np.array(checksums, np.uint64).tobytes(),
            self._seconds,
        )

    def _take(self, place: int, generation: int) -> None:
        if not self._places.agrees(place, generation):
            return
        header = self._places.header(place)
        if proof.is_sealed(header):
            checksum = proof.told_checksum(header)
        else:
            checksum = proof.checksum(header, self._places.body(place).data)
        if self._places.agrees(place, generation):
            self._taken.append((place, generation, checksum))
