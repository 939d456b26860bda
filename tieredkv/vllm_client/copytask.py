"""Copies as the back ends see them: what to move, and how a copy proves that it moved the right bytes."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.copyplan import ImpossibleJob, Ints, Pieces


class Movement(Enum):
    """Direction of a copy."""

    STORE = "store"  # KV pages -> slot bodies
    LOAD = "load"  # slot bodies -> KV pages


@dataclass(frozen=True, slots=True, eq=False)
class Tenancies:
    """Slots that must be in these tenancies for as long as a copy touches them."""

    slots: Ints
    generations: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, slots: Ints, generations: npt.NDArray[np.uint64]) -> "Tenancies":
        """Raises ImpossibleJob when the two do not belong together."""
        if len(slots) != len(generations):
            raise ImpossibleJob(f"job: {len(generations)} generations for {len(slots)} slots")
        return cls(slots, generations)


@dataclass(frozen=True, slots=True, eq=False)
class CopyTask:
    """One job. It keeps its attachment, hence the mapping, alive until it has ended.

    `tenancies` is None only for probes, whose slots are never published.
    """

    job_id: int
    movement: Movement
    pieces: Pieces
    attachment: Attachment
    tenancies: Tenancies | None

    def holds(self) -> bool:
        """Whether the slots are what the job was told: still leased (store), published (load)."""
        if self.tenancies is None:
            return True
        words = self.attachment.slot_words
        test = words.leased if self.movement is Movement.STORE else words.agree
        return bool(test(self.tenancies.slots, self.tenancies.generations).all())


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The end of one task; a failed one moved nothing that may be used."""

    job_id: int
    ok: bool
    moved_bytes: int
    seconds: float


class CopyBackend(Protocol):
    """Moves bytes for a worker. All methods are called on the worker's thread.

    Tasks end in the order of their submission as far as slots are concerned: a load sees the bytes of
    every store submitted before it.
    """

    def prepare(self, attachment: Attachment) -> None:
        """Make the arena fast to copy from and to. May take seconds; optional for correctness."""

    def submit(self, task: CopyTask) -> None:
        """Start a task; never blocks."""

    def poll(self) -> list[CopyResult]:
        """Tasks that ended since the last call; each is told once."""
        ...

    def wait(self, job_ids: AbstractSet[int]) -> None:
        """Block until these tasks have ended (unknown ones have). They are still told by `poll`."""

    def shutdown(self) -> None:
        """End: nothing is read or written after this returns. May be repeated."""
