"""The table of slots: state, tenancy and pins of each. Mechanism only; it decides nothing.

    UNPOPULATED -> FREE            its pages are there (populate)
    UNPOPULATED -> READY           published before a restart (adopt)
    UNPOPULATED -> QUARANTINED     leased before a restart; a writer may live
    FREE        -> LEASED          an engine writes
    LEASED      -> READY | FREE    published, or not
    READY       -> FREE            evicted or forgotten, never while pinned
    QUARANTINED -> LEASED | FREE   the writer came back, or is gone

With a cold tier also:

    FREE        -> LOADING         the mover writes (promotion)
    LOADING     -> READY | FREE    loaded, or failed
    LOADING     -> QUARANTINED     nobody wants it any more, and the mover may still write
    QUARANTINED -> FREE            the mover does not write it any more
    READY       -> DEMOTING        the mover reads it; still found, and nobody has it pinned
    DEMOTING    -> READY | FREE    it was read, or somebody wants it again; found no more

Requests come with a few slots and with thousands. For a few, each call of numpy costs as much as a loop
over all of them; so what every request does loops, over buffers that numpy sees as arrays too.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.brain.values import Generations, Slots
from tieredkv.types import SlotState

Index = npt.NDArray[np.int64]

NOBODY = -1
MOVER = -2

# Plain numbers: numpy asks an enumeration's class a dozen questions at each comparison.
_UNPOPULATED: Final = int(SlotState.UNPOPULATED)
_FREE: Final = int(SlotState.FREE)
_LEASED: Final = int(SlotState.LEASED)
_READY: Final = int(SlotState.READY)
_LOADING: Final = int(SlotState.LOADING)
_DEMOTING: Final = int(SlotState.DEMOTING)
_QUARANTINED: Final = int(SlotState.QUARANTINED)


class SlotTable:
    """All slots of one pool. Slot arrays given to it are in range unless a method says otherwise.

    A READY slot is `visible` until its chunk is forgotten; then it is FREE, or will be when unpinned.
    `pins_of` and `generation_of` are the buffers of `pins` and `generation`.
    """

    def __init__(self, slots: int, next_generation: int) -> None:
        assert slots >= 1
        assert next_generation >= 1
        self.slots = slots
        self.next_generation = next_generation
        # One more: what -1 stands for, the absent chunk, has the tenancy 0.
        self.generation_of = array("Q", (0,)) * (slots + 1)
        self._tenancies: Generations = np.frombuffer(self.generation_of, np.uint64)
        self.generation: Generations = self._tenancies[:slots]
        self.pins_of = array("i", (0,)) * slots
        self.pins: npt.NDArray[np.int32] = np.frombuffer(self.pins_of, np.int32)
        self._visible_of = bytearray(slots)
        self.visible: npt.NDArray[np.bool_] = np.frombuffer(self._visible_of, np.bool_)
        self._state_of = bytearray((_UNPOPULATED,)) * slots
        self._state: npt.NDArray[np.uint8] = np.frombuffer(self._state_of, np.uint8)
        self._owner_of = array("i", (NOBODY,)) * slots
        self._owner: npt.NDArray[np.int32] = np.frombuffer(self._owner_of, np.int32)
        self._free: list[int] = []
        self._mark: npt.NDArray[np.int64] = np.zeros(slots, np.int64)

    @property
    def free(self) -> int:
        """Number of FREE slots."""
        return len(self._free)

    def counts(self) -> dict[SlotState, int]:
        """Number of slots in each state."""
        counted = np.bincount(self._state, minlength=len(SlotState)).tolist()
        return {state: counted[state] for state in SlotState}

    def first_of_each(self, slots: Slots | Index) -> npt.NDArray[np.bool_]:
        """Which elements of `slots` are the first with their value. O(n)."""
        places = np.arange(len(slots))
        self._mark[slots[::-1]] = places[::-1]
        first: npt.NDArray[np.bool_] = self._mark[slots] == places
        return first

    def resumable(self, slots: Sequence[int] | npt.NDArray[np.integer]) -> Index:
        """Of `slots` (any integers, from anywhere) those that wait for a former writer, once each."""
        given = np.asarray(slots, np.int64)
        given = given[(given >= 0) & (given < self.slots)]
        given = given[self.first_of_each(given)]
        waiting = (self._state[given] == _QUARANTINED) & (self._owner[given] == NOBODY)
        resumable: Index = given[waiting]
        return resumable

    def leased_rows(self, slots: npt.NDArray[np.integer], owner: int) -> list[int]:
        """`slots` (any integers) as a list, -1 where not leased by `owner` or named before."""
        states, owners, end = self._state_of, self._owner_of, self.slots
        rows = [
            slot if 0 <= slot < end and states[slot] == _LEASED and owners[slot] == owner else -1
            for slot in slots.tolist()
        ]
        if len(set(rows)) < len(rows):
            named: set[int] = set()
            for row, slot in enumerate(rows):
                if slot in named:
                    rows[row] = -1
                named.add(slot)
        return rows

    def generations(self, slots: Slots) -> Generations:
        """The tenancies of `slots`, 0 for -1."""
        tenancies: Generations = self._tenancies[slots]
        return tenancies

    def leases(self, owner: int) -> Index:
        """Slots leased by `owner`."""
        return np.flatnonzero(self._owner == owner)

    def published(self) -> Index:
        """Slots that hold a published chunk, or still one that is gone."""
        kept = (self._state == _READY) | ((self._state == _FREE) & (self.generation > 0))
        return np.flatnonzero(kept | (self._state == _DEMOTING))

    def state(self, slot: int) -> SlotState:
        """The state of one slot."""
        return SlotState(self._state_of[slot])

    def are(self, slots: Sequence[int], state: SlotState) -> list[bool]:
        """Of each of `slots` whether it is in `state`."""
        states, wanted = self._state_of, int(state)
        return [states[slot] == wanted for slot in slots]

    def moved(self) -> Index:
        """Slots that the mover may write."""
        return np.flatnonzero(self._owner == MOVER)

    def those(self, slots: Index, state: SlotState) -> Index:
        """Which of `slots` are in `state`."""
        chosen: Index = slots[self._state[slots] == int(state)]
        return chosen

    def populate(self, first: int, count: int) -> None:
        """UNPOPULATED slots of the range become FREE; others keep their state."""
        assert 0 <= first <= first + count <= self.slots
        fresh = first + np.flatnonzero(self._state[first : first + count] == _UNPOPULATED)
        self._state[fresh] = _FREE
        self._free += fresh.tolist()

    def adopt(self, slot: int, generation: int) -> None:
        """UNPOPULATED -> READY with the tenancy of a former sidecar."""
        assert self._state[slot] == _UNPOPULATED
        assert 1 <= generation < self.next_generation
        self._state[slot] = _READY
        self.generation[slot] = generation
        self.visible[slot] = True

    def quarantine(self, slots: Index, generations: Generations) -> None:
        """UNPOPULATED -> QUARANTINED with the tenancies of a former sidecar."""
        assert (self._state[slots] == _UNPOPULATED).all()
        assert (generations < self.next_generation).all()
        self._state[slots] = _QUARANTINED
        self.generation[slots] = generations

    def resume(self, slots: Index, owner: int) -> None:
        """QUARANTINED -> LEASED, same tenancy."""
        assert (self._state[slots] == _QUARANTINED).all()
        self._state[slots] = _LEASED
        self._owner[slots] = owner

    def end_quarantine(self) -> None:
        """All QUARANTINED slots become FREE, but for those that the mover may write."""
        gone = np.flatnonzero((self._state == _QUARANTINED) & (self._owner == NOBODY))
        self._state[gone] = _FREE
        self._free += gone.tolist()

    def lease(self, count: int, owner: int) -> tuple[Slots, Generations]:
        """FREE -> LEASED: a new tenancy for each of `count` slots."""
        return self._begin(count, _LEASED, owner)

    def load(self, count: int) -> tuple[Slots, Generations]:
        """FREE -> LOADING: a new tenancy for each of `count` slots."""
        return self._begin(count, _LOADING, MOVER)

    def loaded(self, slots: Sequence[int]) -> None:
        """LOADING -> READY."""
        index = np.array(slots, np.int64)
        assert (self._state[index] == _LOADING).all()
        self._state[index] = _READY
        self._owner[index] = NOBODY
        self.visible[index] = True

    def abandon(self, slots: Index) -> None:
        """LOADING -> QUARANTINED, until the mover does not write it any more."""
        assert (self._state[slots] == _LOADING).all()
        assert not self.pins[slots].any(), "somebody waits for a slot that is abandoned"
        self._state[slots] = _QUARANTINED

    def end_loads(self, slots: Sequence[int] | Index) -> None:
        """LOADING | QUARANTINED -> FREE: the mover does not write these slots of its any more."""
        index = np.asarray(slots, np.int64)
        assert (self._owner[index] == MOVER).all()
        assert not self.pins[index].any(), "somebody waits for a slot that is not loaded"
        self._state[index] = _FREE
        self._owner[index] = NOBODY
        self._free += index.tolist()

    def demote(self, slots: Sequence[int]) -> None:
        """READY -> DEMOTING: the mover reads them. Nobody may have them pinned."""
        index = np.array(slots, np.int64)
        assert (self._state[index] == _READY).all()
        assert self.visible[index].all()
        assert not self.pins[index].any(), "a pinned chunk is no victim"
        self._state[index] = _DEMOTING

    def rest(self, slots: Sequence[int]) -> None:
        """DEMOTING -> READY."""
        index = np.array(slots, np.int64)
        assert (self._state[index] == _DEMOTING).all()
        assert self.visible[index].all()
        self._state[index] = _READY

    def hold(self, slots: Sequence[int]) -> None:
        """The mover reads these READY slots: it has a pin on each."""
        index = np.array(slots, np.int64)
        assert (self._state[index] == _READY).all()
        self.pins[index] += 1

    def unhold(self, slots: Sequence[int]) -> None:
        """The mover does not read them any more."""
        index = np.array(slots, np.int64)
        self.pins[index] -= 1
        index = index[self.pins[index] == 0]
        # Not visible: it was forgotten by a reset while held.
        self.vacate(index[~self.visible[index]].tolist())

    def demoted(self, slots: Sequence[int]) -> None:
        """DEMOTING -> FREE: the mover does not read them any more, and they are found no more."""
        index = np.array(slots, np.int64)
        assert (self._state[index] == _DEMOTING).all()
        self._state[index] = _FREE
        self.visible[index] = False
        self._free += index.tolist()

    def _begin(self, count: int, state: int, owner: int) -> tuple[Slots, Generations]:
        """A new tenancy for each of `count` FREE slots."""
        assert 0 <= count <= len(self._free)
        split = len(self._free) - count
        taken = self._free[split:]
        del self._free[split:]
        first = self.next_generation
        self.next_generation += count
        states, owners, generations = self._state_of, self._owner_of, self.generation_of
        for generation, slot in enumerate(taken, first):
            assert states[slot] == _FREE
            states[slot] = state
            owners[slot] = owner
            generations[slot] = generation
        return np.array(taken, np.int32), np.arange(first, first + count, dtype=np.uint64)

    def publish(self, slots: Iterable[int]) -> None:
        """LEASED -> READY."""
        states, owners, visible = self._state_of, self._owner_of, self._visible_of
        for slot in slots:
            assert states[slot] == _LEASED
            states[slot] = _READY
            owners[slot] = NOBODY
            visible[slot] = True

    def end_leases(self, slots: Iterable[int]) -> None:
        """LEASED -> FREE, unpublished."""
        for slot in slots:
            assert self._state_of[slot] == _LEASED
            self._state_of[slot] = _FREE
            self._owner_of[slot] = NOBODY
            self._free.append(slot)

    def vacate(self, slots: Iterable[int]) -> None:
        """READY -> FREE: the chunk is gone. Nobody may have it pinned."""
        states, visible, pins, free = self._state_of, self._visible_of, self.pins_of, self._free
        for slot in slots:
            assert states[slot] == _READY
            assert not pins[slot], "a pinned chunk would be overwritten"
            states[slot] = _FREE
            visible[slot] = False
            free.append(slot)

    def forget(self, slots: Sequence[int]) -> None:
        """These chunks become invisible: the slots are FREE, or will be when unpinned and moved."""
        index = np.asarray(slots, np.int64)
        self.visible[index] = False
        index = self.those(index, SlotState.READY)
        self.vacate(index[self.pins[index] == 0].tolist())

    def check(self) -> None:
        """Assert what must hold of each slot alone. O(slots)."""
        free = np.flatnonzero(self._state == _FREE)
        assert sorted(self._free) == free.tolist()
        assert ((self._owner >= 0) == (self._state == _LEASED)).all()
        moved = self._owner == MOVER
        assert np.isin(self._state[moved], (_LOADING, _QUARANTINED)).all()
        assert moved[self._state == _LOADING].all()
        assert (self.pins >= 0).all()
        assert np.isin(self._state[self.pins > 0], (_READY, _LOADING)).all()
        assert (self.pins[self._state == _LOADING] > 0).all(), "nobody waits for a LOADING slot"
        used = ~np.isin(self._state, (_UNPOPULATED, _FREE))
        generations = self.generation[used]
        assert (self.generation < self.next_generation).all()
        assert not self.generation_of[-1]
        assert (generations > 0).all()
        assert len(np.unique(generations)) == len(generations)
        assert (self.visible <= np.isin(self._state, (_READY, _DEMOTING))).all()
        forgotten = (self._state == _READY) & ~self.visible
        assert (self.pins[forgotten] > 0).all(), "a READY slot is neither visible nor pinned"
