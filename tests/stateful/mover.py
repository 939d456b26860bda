"""A mover without bytes: it copies content tags between the arena's slots and pages of its own.

Nothing happens by itself. A job stays pending until `end` ends it, well or badly; until then its targets
hold rubbish, as if half of it were written. Sources are read, and targets written, at the end: whoever
gave a slot or a page away too early is found out.
"""

from collections import Counter

from tests.stateful.node import Arena, Tag
from tests.stateful.others import OtherNode
from tieredkv.brain.elsewhere import Copy
from tieredkv.brain.moves import Demote, Fetch, Job, JobId, Moved, Offer, Promote, Pull
from tieredkv.types import Key


class TaggedMover:
    """Keeps the contract of `Mover`, as badly as it allows. `refusals` is for how many submissions."""

    def __init__(self, arena: Arena, other: OtherNode, marks: Counter[str], *, queue_max: int, seconds: float) -> None:
        self.refusals = 0
        self.pending: dict[JobId, Job] = {}
        self.cancelled: set[JobId] = set()
        self._arena = arena
        self._other = other
        self._marks = marks
        self._queue_max = queue_max
        self._seconds = seconds
        self._pages: dict[int, tuple[int, Tag]] = {}
        self._results: list[tuple[Moved, Job]] = []
        self._numbers: set[JobId] = set()

    # --- Mover --------------------------------------------------------------------------------------

    def room(self) -> int:
        return self._queue_max - len(self.pending)

    def offer_room(self) -> int:
        return self.room()

    def submit(self, job: Job) -> bool:
        assert job.number not in self._numbers, "a number was used twice"
        assert len(job), "an empty job"
        self._numbers.add(job.number)
        if self.refusals or len(self.pending) >= self._queue_max:
            self.refusals = max(0, self.refusals - 1)
            self._marks["mover refused"] += 1
            return False
        self.pending[job.number] = job
        if isinstance(job, Promote | Fetch):
            for slot, generation in zip(job.slots, job.generations, strict=True):
                self._arena.begin(slot, generation)
                self._arena.write(slot, ("half loaded", job.number))
        elif isinstance(job, Demote | Pull):
            for page, generation in zip(job.pages, job.page_generations, strict=True):
                assert generation > self._pages.get(page, (0, ()))[0], "a page's generation was used twice"
                self._pages[page] = (generation, ("half filled", job.number))
        return True

    def cancel(self, number: JobId) -> None:
        assert number in self._numbers
        if number in self.pending:
            self.cancelled.add(number)
            self._marks["cancelled"] += 1

    def poll(self, count_max: int) -> list[Moved]:
        results, self._results = self._results[:count_max], self._results[count_max:]
        return [moved for moved, _ in results]

    # --- for the test -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do or to tell."""
        return not self.pending and not self._results

    def promotions(self) -> list[Promote | Fetch]:
        """Pending loads into warm."""
        return [job for job in self.pending.values() if isinstance(job, Promote | Fetch)]

    def loading(self) -> set[tuple[int, Key]]:
        """Chunks that are being loaded, as far as the manager can know."""
        jobs = [*self.pending.values(), *(job for _, job in self._results)]
        return {
            name for job in jobs if isinstance(job, Promote | Fetch) for name in zip(job.groups, job.keys, strict=True)
        }

    def demotions(self) -> list[Demote | Offer]:
        """Pending ones, to here or to another node."""
        return [job for job in self.pending.values() if isinstance(job, Demote | Offer)]

    def end(self, number: JobId, failed: frozenset[int], *, untouched: bool = False) -> None:
        """A job ends. Its `failed` rows leave rubbish; one that stays `untouched` moved nothing at all."""
        job = self.pending.pop(number)
        if untouched:
            failed, unproven = frozenset(range(len(job))), frozenset[int]()
        else:
            unproven = frozenset(row for row in range(len(job)) if self._copy(job, row, failed=row in failed))
        self.cancelled.discard(number)
        self._results.append((Moved(number, failed | unproven, self._seconds * len(job), unproven), job))

    def page_tag(self, page: int) -> Tag:
        """What is in a page."""
        return self._pages[page][1]

    def _copy(self, job: Job, row: int, *, failed: bool) -> bool:
        """True when the source does not hold the chunk any more."""
        rubbish: Tag = ("rubbish", job.number, row)
        tag: Tag | None
        if isinstance(job, Fetch | Pull):
            copy = Copy(job.peer, job.places[row], job.place_generations[row])
            tag = self._other.read(job.groups[row], job.keys[row], copy)
            if tag is not None:
                # The header tells for which weights it was stored.
                tag = tag if tag == self._arena.content(job.groups[row], job.keys[row]) else None
        else:
            tag = self._source(job, row)
        unproven = tag is None
        written = rubbish if failed or tag is None else tag
        if isinstance(job, Promote | Fetch):
            slot = job.slots[row]
            assert self._arena.trailers[slot] == job.generations[row], "a slot was given away while it was moved"
            self._arena.write(slot, written)
        elif isinstance(job, Demote | Pull):
            page, generation = job.pages[row], job.page_generations[row]
            assert self._pages[page][0] == generation, "a page was given away while it was moved"
            self._pages[page] = (generation, written)
        elif not failed:
            assert tag is not None
            self._other.hold(job.groups[row], job.keys[row], tag, page=True)
        return unproven

    def _source(self, job: Promote | Demote | Offer, row: int) -> Tag:
        if isinstance(job, Promote):
            generation, tag = self._pages[job.pages[row]]
            assert generation == job.page_generations[row], "a page was given away while it was moved"
            return tag
        slot = job.slots[row]
        assert self._arena.trailers[slot] == job.generations[row], "a slot was given away while it was moved"
        return self._arena.bodies[slot]
