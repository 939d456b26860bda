"""Promotion: what a request will need moves from cold pages and from other nodes into warm slots while it waits.

A request's *wish* is what cold or another node has of its chain and warm has not, up to the first position
of which nobody has a chunk (see `tieredkv.brain.lacking`). It is carried out head first, several wishes in
their order; the slots belong to the request from the start (pinned, within its engine's share). What failed,
or was not there in time, is a miss for this request, and so is all behind it: it may not wish again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import compress

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import ColdTable
from tieredkv.brain.demotion import Demotions
from tieredkv.brain.elsewhere import Copy, Elsewhere
from tieredkv.brain.holder import Holder
from tieredkv.brain.lacking import Row, Search
from tieredkv.brain.moves import Fetch, JobId, Moved, Mover, PeerId, Promote
from tieredkv.brain.values import Loaded, Progress, Slots
from tieredkv.brain.warm import Warm
from tieredkv.policy.placement import Placement
from tieredkv.types import EngineId, Key, RequestId, SlotState

WISHES_MAX = 65_536
"""Requests that may wait, and as many that are remembered as failed."""


class _Start(Enum):
    DONE = "done"
    SHORT = "short"  # of FREE slots
    BUSY = "busy"  # the mover's queue is full


@dataclass(slots=True)
class _Wish:
    """rows[:told] were told as ready, rows[:len(slots)] have a slot, pinned for the request.

    It is over when all rows were told; those that will not come are taken off.
    """

    engine: EngineId
    request: RequestId
    holder: Holder
    rows: list[Row]
    reach: int
    deadline_s: float
    slots: list[int] = field(default_factory=list[int])
    told: int = 0


@dataclass(frozen=True, slots=True)
class _Load:
    """A row that needs a slot, and the page that it comes from (None: from another node)."""

    row: Row
    page: int | None

    @property
    def nowhere(self) -> bool:
        return self.page is None and self.row.copy is None

    @property
    def source(self) -> PeerId | None:
        """Whose job it is; None: the copy in cold."""
        return self.row.copy.peer if self.page is None and self.row.copy is not None else None


class Promotions:
    """See the module. A request waits `deadline_s` at most, counted from its wish."""

    def __init__(
        self,
        warm: Warm,
        cold: ColdTable,
        elsewhere: Elsewhere,
        demotions: Demotions,
        mover: Mover,
        placement: Placement,
        numbers: Iterator[JobId],
        *,
        deadline_s: float,
        reserve: int,
        job_rows: int,
    ) -> None:
        """`reserve` FREE slots are left to the engines."""
        assert deadline_s > 0
        self._warm = warm
        self._cold = cold
        self._elsewhere = elsewhere
        self._demotions = demotions
        self._mover = mover
        self._placement = placement
        self._numbers = numbers
        self._deadline_s = deadline_s
        self._reserve = reserve
        self._job_rows = job_rows
        self._wishes: dict[tuple[EngineId, RequestId], _Wish] = {}
        self._failed: dict[tuple[EngineId, RequestId], None] = {}
        self._jobs: dict[JobId, Promote | Fetch] = {}
        # Chunks that are LOADING, and the job that loads a slot (LOADING or QUARANTINED).
        self._slot_of: dict[tuple[int, Key], int] = {}
        self._search = Search(cold, elsewhere, self._slot_of)
        self._job_of: dict[int, JobId] = {}
        self._loaded: list[Loaded] = []
        # Whether some request may have to be told something.
        self._news = False

    def __contains__(self, number: JobId) -> bool:
        return number in self._jobs

    def loading(self, group: int, key: Key) -> bool:
        """Whether this chunk is on its way."""
        return (group, key) in self._slot_of

    def __len__(self) -> int:
        """Number of chunks that are on their way."""
        return len(self._slot_of)

    # --- requests -----------------------------------------------------------------------------------

    def wish(
        self,
        engine: EngineId,
        request: RequestId,
        holder: Holder,
        chain: Sequence[Key],
        found: list[Slots],
        strides: tuple[int, ...],
    ) -> int:
        """The request wants what `found` lacks. How far its chain will be ready (0: nothing comes)."""
        name = (engine, request)
        known = self._wishes.get(name)
        if known is not None:
            return known.reach if known.reach <= len(chain) else 0
        if name in self._failed or len(self._wishes) >= WISHES_MAX:
            return 0
        rows, reach = self._search.lacking(chain, found, strides)
        if not rows or not self._mover.room():
            return 0
        waiting = len(self._job_of) + sum(len(wish.rows) - len(wish.slots) for wish in self._wishes.values())
        sources: Counter[int | None] = Counter(row.copy.peer if row.copy is not None else None for row in rows)
        if not self._placement.worth_loading(sources, waiting):
            return 0
        deadline_s = self._warm.clock.now_s() + self._deadline_s
        self._wishes[name] = _Wish(engine, request, holder, rows, reach, deadline_s)
        return reach

    def requests(self, engine: EngineId) -> frozenset[RequestId]:
        """Requests of the engine that wait, or may not wish again."""
        names = [*self._wishes, *self._failed] if self._wishes or self._failed else []
        return frozenset(request for owner, request in names if owner == engine)

    def released(self, engine: EngineId, request: RequestId, unpinned: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The request is over, and nobody pins these slots any more; those of them that are loaded."""
        self._wishes.pop((engine, request), None)
        self._failed.pop((engine, request), None)
        if not self._slot_of:
            return unpinned
        self._abandon(self._warm.table.those(unpinned, SlotState.LOADING))
        return self._warm.table.those(unpinned, SlotState.READY)

    # --- loads --------------------------------------------------------------------------------------

    def start(self) -> int:
        """Begin what can be begun; for how many chunks a FREE slot is lacking."""
        lacking = 0
        for wish in self._wishes.values():
            outcome = _Start.DONE
            while outcome is _Start.DONE and len(wish.slots) < len(wish.rows):
                outcome = self._start_some(wish)
            if outcome is _Start.BUSY:
                break
            if outcome is _Start.SHORT:
                lacking += len(wish.rows) - len(wish.slots)
        return lacking

    def finish(self, moved: Moved) -> None:
        """A promotion ended."""
        job = self._jobs.pop(moved.number)
        table = self._warm.table
        if isinstance(job, Promote):
            self._cold.end_read(job.pages)
            self._cold.damaged((job.groups[row], job.keys[row], job.pages[row]) for row in sorted(moved.unproven))
        else:
            self._elsewhere.distrust(
                [Copy(job.peer, job.places[row], job.place_generations[row]) for row in sorted(moved.unproven)]
            )
        for slot in job.slots:
            del self._job_of[slot]
        self._news = True
        loading = table.are(job.slots, SlotState.LOADING)
        wanted = list(compress(range(len(job)), loading))
        for row in wanted:
            del self._slot_of[job.groups[row], job.keys[row]]
        arrived = [row for row in wanted if row not in moved.failed]
        fits = self._warm.forest.add(
            [job.keys[row] for row in arrived],
            [job.parents[row] for row in arrived],
            [job.positions[row] for row in arrived],
        )
        good = list(compress(arrived, fits))
        self._enter(job, good)
        source = job.peer if isinstance(job, Fetch) else None
        self._placement.loaded(source, len(job) - len(moved.failed), moved.seconds)
        lost = {job.slots[row] for row in set(wanted).difference(good)}
        for wish in self._wishes.values() if lost else ():
            at = next((at for at, slot in enumerate(wish.slots) if slot in lost), None)
            if at is not None:
                self._cut(wish, at)
        table.end_loads([slot for slot, still in zip(job.slots, loading, strict=True) if not still])

    def expire(self, now_s: float) -> None:
        """Whoever waited too long waits no more."""
        for wish in self._wishes.values():
            if now_s >= wish.deadline_s:
                self._cut(wish, self._ready(wish))

    def take_loaded(self) -> list[Loaded]:
        """What can be read since the last call."""
        loaded, self._loaded = self._loaded, []
        return loaded

    def take_progress(self) -> list[Progress]:
        """What requests have to be told since the last call."""
        progress: list[Progress] = []
        if not self._news:
            return progress
        self._news = False
        for wish in list(self._wishes.values()):
            ready = self._ready(wish)
            over = ready == len(wish.rows)
            if ready > wish.told or over:
                progress.append(self._progress(wish, ready, over))
                wish.told = ready
            if over:
                del self._wishes[wish.engine, wish.request]
        return progress

    def clear(self) -> None:
        """Everything was forgotten: nobody waits any more, nor is told of what came before."""
        for wish in self._wishes.values():
            self._cut(wish, wish.told)

    def reads(self) -> list[int]:
        """Pages that the mover reads, once for each job."""
        return [page for job in self._jobs.values() if isinstance(job, Promote) for page in job.pages]

    def check(self) -> None:
        """Assert every invariant. O(slots)."""
        table = self._warm.table
        slots = [slot for job in self._jobs.values() for slot in job.slots]
        assert len(set(slots)) == len(slots)
        assert self._job_of == {slot: number for number, job in self._jobs.items() for slot in job.slots}
        assert sorted(slots) == table.moved().tolist()
        loading = {slot for slot in slots if table.state(slot) == SlotState.LOADING}
        assert sorted(self._slot_of.values()) == sorted(loading)
        for name, slot in self._slot_of.items():
            job = self._jobs[self._job_of[slot]]
            assert name in zip(job.groups, job.keys, strict=True)
            assert name[1] not in self._warm.residents[name[0]]
        waited: set[int] = set()
        for wish in self._wishes.values():
            assert 0 <= wish.told <= len(wish.slots) <= len(wish.rows)
            assert np.isin(wish.slots, wish.holder.pinned(wish.request)).all()
            waited.update(wish.slots)
        assert loading <= waited, "nobody waits for a slot that is LOADING"

    # --- parts --------------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        """Slots that loads may take now. What is kept for a wish is not among them any more."""
        return max(0, self._demotions.available - self._reserve)

    def _start_some(self, wish: _Wish) -> _Start:
        """Give slots to the wish's next rows, at most a job of them."""
        room = wish.holder.room
        new: list[_Load] = []
        slots: list[int] = []
        outcome = _Start.DONE
        cut = wish.holder.full(wish.request)
        rows = wish.rows[len(wish.slots) : len(wish.slots) + self._job_rows]
        for row in rows:
            group, key = row.group, row.key
            slot = self._warm.residents[group].slot(key)
            if slot is not None and not self._keep(key, len(new)):
                outcome = _Start.SHORT
                break
            if slot is None:
                slot = self._slot_of.get((group, key))
            page = self._cold.page(group, key) if slot is None else None
            room -= slot is None or not wish.holder.holds(slot)
            load = _Load(row, page) if slot is None else None
            cut = cut or room < 0 or (load is not None and load.nowhere)
            if cut:
                break
            if load is not None:
                if new and load.source != new[0].source:
                    break  # another job
                if len(new) >= self._free:
                    outcome = _Start.SHORT
                    break
                new.append(load)
            slots.append(-1 if slot is None else slot)
        if self._shorten(new, slots):
            outcome, cut = _Start.SHORT, False
        if new and not self._load(new, slots):
            return _Start.BUSY
        if slots:
            self._news = True
            wish.holder.add(wish.request, np.array(slots, np.int64))
            wish.slots += slots
        if cut:
            self._cut(wish, len(wish.slots))
        return outcome

    def _keep(self, key: Key, begun: int) -> bool:
        """Keep a resident chunk for a wish that shall load `begun` chunks before it: else their slots might be made
        of it. False when they must be.
        """
        if 0 < begun >= self._free and self._demotions.leaves(key):
            return False
        self._demotions.keep(key)
        return True

    def _shorten(self, new: list[_Load], slots: list[int]) -> bool:
        """Leave out the loads that there are no slots for any more, and what comes after them; whether there were any.

        What was kept took more along than itself: all chunks of its position, and what was leaving above it.
        """
        if len(new) <= self._free:
            return False
        del new[self._free :]
        del slots[[at for at, slot in enumerate(slots) if slot < 0][len(new)] :]
        return True

    def _load(self, new: list[_Load], slots: list[int]) -> bool:
        """Submit a job for these, all of one source, and fill their slots into the gaps of `slots`."""
        table = self._warm.table
        self._demotions.release(len(new) - table.free)
        targets, generations = table.load(len(new))
        loading: list[int] = targets.tolist()
        job = self._job(new, tuple(loading), tuple(generations.tolist()))
        if not self._mover.submit(job):
            table.end_loads(loading)
            return False
        self._jobs[job.number] = job
        if isinstance(job, Promote):
            self._cold.read(job.pages)
        given = iter(loading)
        for at, slot in enumerate(slots):
            if slot < 0:
                slots[at] = next(given)
        for load, slot in zip(new, loading, strict=True):
            self._slot_of[load.row.group, load.row.key] = slot
            self._job_of[slot] = job.number
        return True

    def _job(self, new: list[_Load], slots: tuple[int, ...], generations: tuple[int, ...]) -> Promote | Fetch:
        groups, keys = tuple(load.row.group for load in new), tuple(load.row.key for load in new)
        source = new[0].source
        if source is None:
            pages = tuple(load.page for load in new if load.page is not None)
            links = [self._cold.link(key) for key in keys]
            return Promote(
                next(self._numbers), groups, keys, tuple(parent for parent, _ in links),
                tuple(position for _, position in links), slots, generations, pages,
                tuple(map(self._cold.generation, pages)),
            )  # fmt: skip
        copies = [load.row.copy for load in new if load.row.copy is not None]
        return Fetch(
            next(self._numbers), groups, keys, tuple(load.row.parent for load in new),
            tuple(load.row.end - 1 for load in new), slots, generations, source,
            tuple(copy.place for copy in copies), tuple(copy.generation for copy in copies),
        )  # fmt: skip

    def _enter(self, job: Promote | Fetch, rows: list[int]) -> None:
        """These rows of the job are in READY slots now."""
        table = self._warm.table
        table.loaded([job.slots[row] for row in rows])
        for group in sorted({job.groups[row] for row in rows}):
            own = [row for row in rows if job.groups[row] == group]
            keys, parents = [job.keys[row] for row in own], [job.parents[row] for row in own]
            self._warm.ghosts.remove(keys)
            self._demotions.entered(keys, parents)
            self._warm.enter(group, keys, parents, [job.positions[row] for row in own], [job.slots[row] for row in own])
            self._cold.entered_warm(keys)
        if rows:
            self._loaded.append(Loaded(job, tuple(rows)))

    def _ready(self, wish: _Wish) -> int:
        """How many rows of the wish can be read, from the first on."""
        ready = wish.told
        while ready < len(wish.slots) and self._warm.table.state(wish.slots[ready]) == SlotState.READY:
            ready += 1
        return ready

    def _progress(self, wish: _Wish, ready: int, over: bool) -> Progress:
        rows, slots = wish.rows[wish.told : ready], wish.slots[wish.told : ready]
        return Progress(
            engine=wish.engine,
            request=wish.request,
            groups=tuple(row.group for row in rows),
            numbers=tuple(row.number for row in rows),
            slots=np.array(slots, np.int32),
            generations=self._warm.table.generation[slots],
            ready_to=wish.rows[ready].end - 1 if ready < len(wish.rows) else wish.reach,
            over=over,
        )

    def _cut(self, wish: _Wish, at: int) -> None:
        """Rows from `at` on will not come for this request."""
        self._news = True
        if len(self._failed) < WISHES_MAX:
            self._failed[wish.engine, wish.request] = None
        if at < len(wish.rows):
            wish.reach = wish.rows[at].end - 1
        gone = np.array(wish.slots[at:], np.int64)
        del wish.rows[at:], wish.slots[at:]
        # What can be read already may have been told in a second answer: it stays pinned.
        unpinned = wish.holder.drop(wish.request, self._warm.table.those(gone, SlotState.LOADING))
        self._abandon(unpinned)

    def _abandon(self, slots: npt.NDArray[np.int64]) -> None:
        """Nobody waits for these LOADING slots any more."""
        if not len(slots):
            return
        table = self._warm.table
        table.abandon(slots)
        gone = set(slots.tolist())
        for number in sorted({self._job_of[slot] for slot in gone if slot in self._job_of}):
            job = self._jobs[number]
            for group, key, slot in zip(job.groups, job.keys, job.slots, strict=True):
                if slot in gone:
                    del self._slot_of[group, key]
            if not any(table.are(job.slots, SlotState.LOADING)):
                self._mover.cancel(number)
        # Those of a job that has ended.
        table.end_loads(sorted(slot for slot in gone if slot not in self._job_of))
