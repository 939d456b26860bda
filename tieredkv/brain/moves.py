"""Movements between the slots of warm and the pages of cold, as values, and who carries them out.

A movement is a job of several chunks (rows): columns of equal length. Whoever submitted a job gets
exactly one result for it, whatever happens: until then the mover may read its sources and write its
targets. A mover that died is known to do neither, so its owner answers for it.
"""

from dataclasses import dataclass
from typing import NewType, Protocol

from tieredkv.types import Key

PeerId = NewType("PeerId", int)
"""Number of another node in this process; small, and not used again while anything of that node is known."""

JobId = NewType("JobId", int)
"""Number of a job; never used twice by one manager."""

JOB_ROWS_MAX = 64
"""Most chunks of one job. Fewer where chunks are large: what a job moves comes, and is free, when it ends."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """`generations` are the tenancies of the slots, `page_generations` those of the pages. A parent is empty
    at the start of a chain; positions count from there.
    """

    number: JobId
    groups: tuple[int, ...]
    keys: tuple[Key, ...]
    parents: tuple[Key, ...]
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Demote(_Rows):
    """Copy the slots' chunks into the pages. The slots are not written before the result."""

    slots: tuple[int, ...]
    generations: tuple[int, ...]
    pages: tuple[int, ...]
    page_generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Promote(_Rows):
    """Copy the pages' chunks into the slots. The pages are not written before the result.

    Whoever takes the job over marks the slots with their new tenancies before a byte is written.
    """

    slots: tuple[int, ...]
    generations: tuple[int, ...]
    pages: tuple[int, ...]
    page_generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetch(_Rows):
    """Copy another node's chunks into the slots, which are marked as for Promote.

    `places` are the peer's, slots or pages, `place_generations` the tenancies that its index told: what is
    there may have changed meanwhile, which is a failed row.
    """

    slots: tuple[int, ...]
    generations: tuple[int, ...]
    peer: PeerId
    places: tuple[int, ...]
    place_generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer(_Rows):
    """Let another node pull the slots' chunks into pages of its own. The slots are not written before the
    result; a row that the node did not want, or has no room for, failed.
    """

    slots: tuple[int, ...]
    generations: tuple[int, ...]
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Pull(_Rows):
    """Copy what another node offered into own pages; `places` and `place_generations` as in Fetch."""

    pages: tuple[int, ...]
    page_generations: tuple[int, ...]
    peer: PeerId
    places: tuple[int, ...]
    place_generations: tuple[int, ...]


Job = Demote | Promote | Fetch | Offer | Pull


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of a job: rows that did not arrive, and what it took (without waiting in the queue).

    `unproven` are those of them whose source turned out not to hold the chunk, or a damaged one.
    """

    number: JobId
    failed: frozenset[int]
    seconds: float
    unproven: frozenset[int] = frozenset()


class Mover(Protocol):
    """Carries out jobs, somewhere else. No call waits."""

    def room(self) -> int:
        """How many more jobs, offers aside, would be taken now; 0 when it cannot do anything."""
        ...

    def offer_room(self) -> int:
        """How many more offers would be taken now."""
        ...

    def submit(self, job: Job) -> bool:
        """Take the job over. False when the queue is full: then nothing of it will happen."""
        ...

    def cancel(self, number: JobId) -> None:
        """Nobody wants this job any more. It may be carried out all the same; its result comes anyhow."""
        ...

    def poll(self, count_max: int) -> list[Moved]:
        """Up to `count_max` results, each once, in the order in which the jobs ended."""
        ...
