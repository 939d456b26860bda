"""Demotion ahead of need: warm's next victims are copied to cold before anybody needs their slots.

A victim is *leaving* while the mover copies it, then *safe*: its slot is anybody's who needs one, at once.
Until then it is found as before, and if somebody wants it, it is *kept*: back in the policy, and its copy
stays a copy. If its parent leaves warm first, it is *hidden*: found no more, its slot FREE when the mover
has read it. What cold does not want, or what the mover's queue has no room for, is dropped at once:
nobody waits for a demotion. Where a victim belongs to another node's cold pool, it is offered to that
node, which pulls it; where a page of another node holds it already, it is safe.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import Candidate, ColdTable
from tieredkv.brain.elsewhere import Elsewhere
from tieredkv.brain.leaving import Fate, Leaving, Moving
from tieredkv.brain.moves import Demote, JobId, Moved, Mover, Offer, PeerId
from tieredkv.brain.warm import Warm
from tieredkv.policy.placement import Placement
from tieredkv.types import Key, SlotState

STEP_VICTIMS_MAX = 1024
"""Victims of one step, and copies that one step begins."""

COPIES_MAX = 65_536
"""Positions that may wait for being copied; what is older is copied when it leaves."""


@dataclass(frozen=True, slots=True)
class _Flight:
    job: Demote | Offer
    moving: tuple[Moving, ...]

    def slots(self, fate: Fate) -> list[int]:
        """Slots of the positions that have this fate."""
        return [slot for one in self.moving if one.fate is fate for slot in one.slots]


class Demotions:
    """See the module. Between `low_free` and `high_free` slots can be had at once or soon, if the mover can."""

    def __init__(
        self,
        warm: Warm,
        cold: ColdTable,
        elsewhere: Elsewhere,
        mover: Mover,
        placement: Placement,
        numbers: Iterator[JobId],
        *,
        low_free: int,
        high_free: int,
        job_rows: int,
    ) -> None:
        assert 0 <= low_free <= high_free <= warm.table.slots
        self._warm = warm
        self._cold = cold
        self._elsewhere = elsewhere
        self._mover = mover
        self._placement = placement
        self._numbers = numbers
        self._low = low_free
        self._high = high_free
        self._job_rows = max(job_rows, len(warm.residents))
        self._parent_of: dict[Key, Key] = {}
        self._leaving = Leaving(warm.table.slots)
        self._flights: dict[JobId, _Flight] = {}
        self._cancelled: set[JobId] = set()
        # Number of DEMOTING slots, and the READY ones that the mover reads.
        self._demoting = 0
        self._held: set[int] = set()
        self._to_copy: deque[Key] = deque(maxlen=COPIES_MAX)

    def __contains__(self, number: JobId) -> bool:
        return number in self._flights

    def __len__(self) -> int:
        """Number of positions that are leaving or safe."""
        return len(self._leaving)

    @property
    def available(self) -> int:
        """Slots that can be had at once without loss."""
        return self._warm.table.free + self._leaving.safe_slots

    @property
    def unreserved(self) -> int:
        """FREE slots past those that are kept available: taking more means that somebody has to leave."""
        return max(0, self._warm.table.free - max(0, self._high - self._demoting - self._leaving.safe_slots))

    # --- what is wanted -----------------------------------------------------------------------------

    def entered(self, keys: Sequence[Key], parents: Sequence[Key]) -> None:
        """Chunks of these positions come to warm: what is leaving above them, and of them, must stay.

        Before the policy hears of them, for it believes the first who names a parent.
        """
        for key, parent in zip(keys, parents, strict=True):
            # As the policy does: of two parents that engines claim the first counts for all groups.
            self._parent_of.setdefault(key, parent)
        if len(self._leaving):
            for key in self._leaving.among((*parents, *keys)):
                self.keep(key)

    def leaves(self, key: Key) -> bool:
        """Whether it is about to leave, unless somebody wants it."""
        return self._leaving.get(key) is not None

    def keep(self, key: Key) -> None:
        """Somebody wants `key`: if it is leaving, it and all that is leaving above it stay."""
        path: list[Moving] = []
        while (moving := self._leaving.get(key)) is not None:
            self._leaving.remove(moving)
            path.append(moving)
            key = moving.position.parent
        if not path:
            return
        path.reverse()
        moved = [moving for moving in path if moving.fate is Fate.LEAVING]
        for moving in moved:
            moving.fate = Fate.KEPT
        slots = [slot for moving in moved for slot in moving.slots]
        self._warm.table.rest(slots)
        self._demoting -= len(slots)
        self._hold(slots)
        positions = [moving.position for moving in path]
        keys = [position.key for position in positions]
        self._warm.policy.insert(keys, [position.parent for position in positions], self._warm.clock.now_s())
        self._cold.entered_warm(keys)

    def keep_slots(self, slots: Sequence[npt.NDArray[np.int32]]) -> None:
        """Somebody wants the chunks in these slots (-1: none)."""
        for key in self._leaving.in_slots(slots):
            self.keep(key)

    def parent(self, key: Key) -> Key | None:
        """The parent of a position that is in warm; None of one that is not."""
        return self._parent_of.get(key)

    def copied(self, keys: Iterable[Key]) -> None:
        """Pages hold chunks of these positions now, which may be in warm for good."""
        self._cold.entered_warm(
            key for key in dict.fromkeys(keys) if key in self._parent_of and key not in self._leaving
        )

    def copy(self, keys: Iterable[Key]) -> None:
        """Copy these positions to cold while they are in warm, as the mover finds time."""
        self._to_copy.extend(keys)

    # --- who leaves ---------------------------------------------------------------------------------

    def make_room(self, wanted: int) -> None:
        """Give up the next victims when fewer slots than the low mark, and `wanted` for loads, can be had soon."""
        coming = self.available + self._demoting
        # Loads leave the low mark to the engines.
        target = max(self._high if coming < self._low else 0, wanted + self._low if wanted else 0)
        # Ahead of need nobody has to be lost: they stay until the mover finds time, and other nodes for an offer.
        jobs = min(self._mover.room(), self._mover.offer_room())
        most = min(target - coming, STEP_VICTIMS_MAX, jobs * self._job_rows)
        if most > 0:
            self._give_up(self._warm.victims(most))

    def hurry(self, slots: int) -> None:
        """A load lacks so many slots: cancel demotions when it is not worth waiting for them.

        The latest go first: the mover has not begun them, and within a chain they are its tail.
        """
        if slots <= 0 or self._placement.worth_waiting(slots, self._demoting - slots):
            return
        for number, flight in reversed(self._flights.items()):
            if slots <= 0:
                return
            leaving = len(flight.slots(Fate.LEAVING))
            slots -= leaving
            if leaving and number not in self._cancelled:
                self._cancelled.add(number)
                self._mover.cancel(number)

    def release(self, slots: int) -> None:
        """Free so many slots of what is safe, if there are."""
        chosen = self._leaving.first_safe(slots)
        below = self._leaving.below([moving.position.key for moving in chosen])
        known = {moving.position.key for moving in below}
        self._part_with([*below, *(moving for moving in chosen if moving.position.key not in known)])

    def drop(self, victims: Sequence[Key]) -> None:
        """These positions (children before parents, out of the policy) leave warm at once."""
        slots = self._leave(victims)
        self._warm.table.vacate(slots)
        self._warm.tallies.evicted("room", len(slots))

    def copy_some(self) -> None:
        """Begin to copy what waits for it; when the mover is busy, it goes on waiting."""
        keys = [self._to_copy.popleft() for _ in range(min(len(self._to_copy), STEP_VICTIMS_MAX))]
        here = dict.fromkeys(key for key in keys if key in self._parent_of and key not in self._leaving)
        admitted = self._cold.admit([one for one in map(self._candidate, here) if self._uncopied(one)])
        taken = self._submit(admitted, Fate.KEPT)
        self._hold([slot for one in taken for slot in one.slots])
        self._to_copy.extendleft(one.key for one in reversed(admitted[len(taken) :]))

    # --- results ------------------------------------------------------------------------------------

    def finish(self, moved: Moved) -> None:
        """A demotion ended."""
        flight = self._flights.pop(moved.number)
        self._cancelled.discard(moved.number)
        job, table = flight.job, self._warm.table
        good = [row for row in range(len(job)) if row not in moved.failed]
        self._placement.demoted(len(good), moved.seconds)
        if isinstance(job, Demote):
            for row in moved.failed:
                self._cold.unfill(job.pages[row])
            self._cold.filled(job, good)
        away: set[Key] = set()
        if isinstance(job, Offer):
            away = set(job.keys).difference(job.keys[row] for row in moved.failed)
        self._rest_or_leave([one for one in flight.moving if one.fate is Fate.LEAVING], away)
        hidden, held = flight.slots(Fate.HIDDEN), flight.slots(Fate.KEPT)
        table.demoted(hidden)
        self._demoting -= len(hidden)
        table.unhold(held)
        self._held.difference_update(held)
        # Kept, or stored again since it was hidden.
        self.copied(job.keys)

    def clear(self) -> None:
        """Everything was forgotten: what is on its way is hidden."""
        for moving in self._leaving.values():
            moving.fate = Fate.HIDDEN
        self._leaving.clear()
        self._parent_of.clear()
        self._to_copy.clear()
        for number in sorted(self._flights.keys() - self._cancelled):
            self._mover.cancel(number)
        self._cancelled.update(self._flights)

    def filling(self) -> list[int]:
        """Pages that the mover writes."""
        jobs = [flight.job for flight in self._flights.values()]
        return [page for job in jobs if isinstance(job, Demote) for page in job.pages]

    def check(self) -> npt.NDArray[np.int32]:
        """Assert every invariant; returns the mover's pins per slot. O(slots)."""
        table = self._warm.table
        self._leaving.check()
        pins = np.zeros(table.slots, np.int32)
        demoting: list[int] = []
        leaving: set[Key] = set()
        for flight in self._flights.values():
            pins[flight.slots(Fate.KEPT)] += 1
            demoting += flight.slots(Fate.LEAVING) + flight.slots(Fate.HIDDEN)
            assert not table.visible[flight.slots(Fate.HIDDEN)].any()
            leaving.update(one.position.key for one in flight.moving if one.fate is Fate.LEAVING)
        assert self._cancelled <= self._flights.keys()
        assert pins.max(initial=0) <= 1
        assert np.flatnonzero(pins).tolist() == sorted(self._held)
        assert len(demoting) == len(set(demoting)) == self._demoting == table.counts()[SlotState.DEMOTING]
        for moving in self._leaving.values():
            assert moving.fate is Fate.SAFE or moving.position.key in leaving
            wanted = SlotState.READY if moving.fate is Fate.SAFE else SlotState.DEMOTING
            assert all(table.are(moving.slots, wanted))
            assert table.visible[moving.slots].all()
            assert not table.pins[moving.slots].any(), "what somebody needs is about to leave"
        assert leaving <= {moving.position.key for moving in self._leaving.values()}
        assert len(self._parent_of) == len(self._warm.forest)
        for key, parent in self._parent_of.items():
            assert key in self._warm.forest
            assert (key in self._leaving) == (key not in self._warm.policy)
            assert parent not in self._leaving or key in self._leaving, "a chunk would stay under one that leaves"
        return pins

    def in_warm_for_good(self) -> list[Key]:
        """Positions of warm that are not about to leave."""
        return [key for key in self._parent_of if key not in self._leaving]

    # --- parts --------------------------------------------------------------------------------------

    def _candidate(self, key: Key) -> Candidate:
        held = [(group, residents.slot(key)) for group, residents in enumerate(self._warm.residents)]
        slots = tuple((group, slot) for group, slot in held if slot is not None)
        return Candidate(key, self._parent_of[key], self._warm.forest.position(key), slots)

    def _uncopied(self, position: Candidate) -> bool:
        """Whether cold lacks a chunk of it that is not being copied."""
        return not self._cold.holds(position) and self._held.isdisjoint(slot for _, slot in position.slots)

    def _hold(self, slots: list[int]) -> None:
        self._warm.table.hold(slots)
        self._held.update(slots)

    def _give_up(self, victims: list[Key]) -> None:
        """Of these (children before parents) demote what is worth it, and drop what is not."""
        candidates = [self._candidate(key) for key in victims]
        kept = self._kept_elsewhere(candidates)
        safe = [one for one in candidates if one.key in kept or self._cold.holds(one)]
        # Their copies are needed now: cold must not give them up for the others.
        self._cold.left_warm(victims)
        for one in safe:
            self._leaving.add(Moving(one, Fate.SAFE))
        if len(safe) < len(candidates) and self._placement.worth_demoting():
            lacking = [one for one in reversed(candidates) if one.key not in self._leaving]
            taken = self._send_away(lacking)
            slots = [slot for one in taken for slot in one.slots]
            self._warm.table.demote(slots)
            self._demoting += len(slots)
            for moving in taken:
                self._leaving.add(moving)
        # Children of what is dropped are hidden by it, so those that are leaving had to become it before.
        self.drop([key for key in victims if key not in self._leaving])

    def _kept_elsewhere(self, positions: Sequence[Candidate]) -> AbstractSet[Key]:
        """The keys of those of which other nodes' pages hold every chunk."""
        kept = {one.key for one in positions}
        for group in range(self._cold.groups):
            keys = [one.key for one in positions if any(group == other for other, _ in one.slots)]
            answers = self._elsewhere.keeps(group, keys)
            kept.difference_update(key for key, answer in zip(keys, answers, strict=True) if not answer)
        return kept

    def _send_away(self, positions: Sequence[Candidate]) -> list[Moving]:
        """Demote these (heads first within a chain), each run of a chain to the node where it belongs."""
        home: PeerId | None = None
        below = Key(b"")
        here: list[Candidate] = []
        taken: list[Moving] = []
        away: dict[PeerId, list[Candidate]] = {}
        for one in positions:
            if one.parent != below or not below:
                home = self._elsewhere.home(one.key)
            below = one.key
            (here if home is None else away.setdefault(home, [])).append(one)
        taken += self._submit(self._cold.admit(here), Fate.LEAVING)
        for peer, offered in away.items():
            taken += self._offer(peer, offered)
        return taken

    def _offer(self, peer: PeerId, positions: Sequence[Candidate]) -> list[Moving]:
        taken: list[Moving] = []
        for at in range(0, len(positions), self._job_rows):
            part = positions[at : at + self._job_rows]
            rows = [(one, group, slot) for one in part for group, slot in one.slots]
            slots = tuple(slot for _, _, slot in rows)
            job = Offer(
                number=next(self._numbers),
                peer=peer,
                groups=tuple(group for _, group, _ in rows),
                keys=tuple(one.key for one, _, _ in rows),
                parents=tuple(one.parent for one, _, _ in rows),
                positions=tuple(one.position for one, _, _ in rows),
                slots=slots,
                generations=tuple(self._warm.table.generation[list(slots)].tolist()),
            )
            if not self._mover.submit(job):
                break
            moving = tuple(Moving(one, Fate.LEAVING) for one in part)
            self._flights[job.number] = _Flight(job, moving)
            taken += moving
        return taken

    def _submit(self, positions: Sequence[Candidate], fate: Fate) -> list[Moving]:
        """Hand `positions` to the mover, job by job; those that it took."""
        taken: list[Moving] = []
        at = 0
        while at < len(positions):
            first = at
            rows: list[tuple[Candidate, int, int, int]] = []
            while at < len(positions) and len(rows) + len(positions[at].slots) <= self._job_rows:
                one = positions[at]
                lacking = [where for where in one.slots if self._cold.page(where[0], one.key) is None]
                rows += [(one, group, slot, self._cold.fill()) for group, slot in lacking]
                at += 1
            job = self._job(rows)
            if not self._mover.submit(job):
                for page in job.pages:
                    self._cold.unfill(page)
                return taken
            moving = tuple(Moving(one, fate) for one in positions[first:at])
            self._flights[job.number] = _Flight(job, moving)
            taken += moving
        return taken

    def _job(self, rows: list[tuple[Candidate, int, int, int]]) -> Demote:
        positions, groups, slots, pages = zip(*rows, strict=True)
        return Demote(
            number=next(self._numbers),
            groups=groups,
            keys=tuple(one.key for one in positions),
            parents=tuple(one.parent for one in positions),
            positions=tuple(one.position for one in positions),
            slots=slots,
            generations=tuple(self._warm.table.generation[list(slots)].tolist()),
            pages=pages,
            page_generations=tuple(map(self._cold.generation, pages)),
        )

    def _rest_or_leave(self, leaving: list[Moving], away: AbstractSet[Key]) -> None:
        """The mover has read these LEAVING positions: they are safe (in cold, or `away`), or lost."""
        safe = [one for one in leaving if one.position.key in away or self._cold.holds(one.position)]
        # They went heads first; what is safe goes tails first.
        for moving in reversed(safe):
            self._leaving.rest(moving)
        slots = [slot for moving in safe for slot in moving.slots]
        self._warm.table.rest(slots)
        self._demoting -= len(slots)
        lost = [moving for moving in reversed(leaving) if moving.fate is Fate.LEAVING]
        for moving in lost:
            self._leaving.remove(moving)
        slots = self._leave([moving.position.key for moving in lost])
        self._warm.table.demoted(slots)
        self._demoting -= len(slots)
        self._warm.tallies.evicted("room", len(slots))

    def _leave(self, keys: Sequence[Key]) -> list[int]:
        """These positions (children before parents, leaving no more) are in warm no more; their slots."""
        self._part_with(self._leaving.below(keys))
        return self._forgotten(keys)

    def _part_with(self, moving: Sequence[Moving]) -> None:
        """These, children before parents and nothing left below them, are found no more."""
        if not moving:
            return
        for one in moving:
            self._leaving.remove(one)
        self._forgotten([one.position.key for one in moving])
        safe = [slot for one in moving if one.fate is Fate.SAFE for slot in one.slots]
        self._warm.table.vacate(safe)
        self._warm.tallies.evicted("safe", len(safe))
        for one in moving:
            if one.fate is Fate.LEAVING:
                one.fate = Fate.HIDDEN
                self._warm.table.visible[one.slots] = False

    def _forgotten(self, keys: Sequence[Key]) -> list[int]:
        for key in keys:
            del self._parent_of[key]
        self._cold.left_warm(keys)
        return self._warm.leave(keys)
