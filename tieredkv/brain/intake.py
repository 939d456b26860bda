"""What other nodes offer to this node's cold pool: judged as own victims are, then pulled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tieredkv.brain.cold import Candidate, ColdTable
from tieredkv.brain.demotion import Demotions
from tieredkv.brain.moves import JobId, Moved, Mover, PeerId, Pull
from tieredkv.brain.values import POSITION_MAX, Pulled
from tieredkv.types import KEY_BYTES_MAX, KEY_BYTES_MIN, Key

FLIGHTS_MAX = 64
"""Pulls at a time; what is offered beside them is refused."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A chunk in a slot of another node, in a tenancy of it."""

    group: int
    key: Key
    parent: Key
    position: int
    place: int
    generation: int


@dataclass(frozen=True, slots=True)
class _Flight:
    job: Pull
    ticket: int
    rows: tuple[int, ...]
    present: tuple[int, ...]


class Intake:
    """See the module."""

    def __init__(self, cold: ColdTable, demotions: Demotions, mover: Mover, numbers: Iterator[JobId]) -> None:
        self._cold = cold
        self._demotions = demotions
        self._mover = mover
        self._numbers = numbers
        self._flights: dict[JobId, _Flight] = {}
        self._pulled: list[Pulled] = []

    def __contains__(self, number: JobId) -> bool:
        return number in self._flights

    def offered(self, peer: PeerId, ticket: int, chunks: Sequence[Offered]) -> None:
        """A node offers these, heads first within a chain. A Pulled will tell what became of them.

        Never raises for what a peer says: nonsense is refused.
        """
        present = tuple(row for row, one in enumerate(chunks) if self._page(one) is not None)
        rows = self._wanted(chunks) if len(self._flights) < FLIGHTS_MAX else []
        if rows:
            pages = [self._cold.fill() for _ in rows]
            chosen = [chunks[row] for row in rows]
            job = Pull(
                number=next(self._numbers),
                peer=peer,
                groups=tuple(one.group for one in chosen),
                keys=tuple(one.key for one in chosen),
                parents=tuple(one.parent for one in chosen),
                positions=tuple(one.position for one in chosen),
                pages=tuple(pages),
                page_generations=tuple(map(self._cold.generation, pages)),
                places=tuple(one.place for one in chosen),
                place_generations=tuple(one.generation for one in chosen),
            )
            if self._mover.submit(job):
                self._flights[job.number] = _Flight(job, ticket, tuple(rows), present)
                return
            for page in pages:
                self._cold.unfill(page)
        self._pulled.append(Pulled(ticket, present))

    def finish(self, moved: Moved) -> None:
        """A pull ended."""
        flight = self._flights.pop(moved.number)
        for row in moved.failed:
            self._cold.unfill(flight.job.pages[row])
        good = [row for row in range(len(flight.job)) if row not in moved.failed]
        self._cold.filled(flight.job, good)
        self._demotions.copied(flight.job.keys[row] for row in good)
        stored = [
            flight.rows[row]
            for row in good
            if self._cold.page(flight.job.groups[row], flight.job.keys[row]) is not None
        ]
        self._pulled.append(Pulled(flight.ticket, tuple(sorted((*flight.present, *stored)))))

    def take_pulled(self) -> list[Pulled]:
        """Offers that ended since the last call."""
        pulled, self._pulled = self._pulled, []
        return pulled

    def clear(self) -> None:
        """Everything was forgotten: what is on its way is not wanted."""
        for number in self._flights:
            self._mover.cancel(number)

    def filling(self) -> list[int]:
        """Pages that the mover writes."""
        return [page for flight in self._flights.values() for page in flight.job.pages]

    def _page(self, one: Offered) -> int | None:
        return self._cold.page(one.group, one.key) if 0 <= one.group < self._cold.groups else None

    def _wanted(self, chunks: Sequence[Offered]) -> list[int]:
        """Rows that are worth a page, and have one."""
        named: set[tuple[int, Key]] = set()
        rows: list[int] = []
        slots_of: dict[Key, list[tuple[int, int]]] = {}
        first_of: dict[Key, Offered] = {}
        for row, one in enumerate(chunks):
            if not self._sane(one) or (one.group, one.key) in named or self._page(one) is not None:
                continue
            named.add((one.group, one.key))
            first = first_of.setdefault(one.key, one)
            if (first.parent, first.position) == (one.parent, one.position):
                rows.append(row)
                slots_of.setdefault(one.key, []).append((one.group, one.place))
        candidates = [
            Candidate(key, first.parent, first.position, tuple(slots_of[key])) for key, first in first_of.items()
        ]
        admitted = {one.key for one in self._cold.admit(candidates)}
        return [row for row in rows if chunks[row].key in admitted]

    def _sane(self, one: Offered) -> bool:
        return (
            0 <= one.group < self._cold.groups
            and KEY_BYTES_MIN <= len(one.key) <= KEY_BYTES_MAX
            and (KEY_BYTES_MIN <= len(one.parent) <= KEY_BYTES_MAX if one.parent else one.position == 0)
            and one.key != one.parent
            and 0 <= one.position <= POSITION_MAX
            and one.place >= 0
            and one.generation > 0
        )
