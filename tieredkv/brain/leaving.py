"""Positions that are about to leave warm: found as before, but out of the policy's hands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import Candidate
from tieredkv.types import Key


class Fate(Enum):
    """What becomes of a position that was given up."""

    LEAVING = "leaving"  # the mover copies it
    SAFE = "safe"  # cold has it; its slots are anybody's who needs them
    KEPT = "kept"  # wanted again, while the mover copies it
    HIDDEN = "hidden"  # found no more, while the mover copies it


@dataclass(slots=True)
class Moving:
    """A position that was given up."""

    position: Candidate
    fate: Fate

    @property
    def slots(self) -> list[int]:
        """Slots of its chunks."""
        return [slot for _, slot in self.position.slots]


class Leaving:
    """The LEAVING and the SAFE ones, by key, by parent and by slot."""

    def __init__(self, slots: int) -> None:
        self.safe_slots = 0
        self._moving: dict[Key, Moving] = {}
        self._safe: dict[Key, Moving] = {}
        # Parents, with what is leaving below them.
        self._below: dict[Key, dict[Key, None]] = {}
        self._key_of: dict[int, Key] = {}
        self._marked: npt.NDArray[np.bool_] = np.zeros(slots, np.bool_)

    def add(self, moving: Moving) -> None:
        """It is LEAVING, or SAFE and the next to go after those that are."""
        key = moving.position.key
        assert key not in self._moving
        self._moving[key] = moving
        self._below.setdefault(moving.position.parent, {})[key] = None
        for slot in moving.slots:
            self._key_of[slot] = key
            self._marked[slot] = True
        if moving.fate is Fate.SAFE:
            self._note_safe(moving)

    def rest(self, moving: Moving) -> None:
        """LEAVING -> SAFE."""
        assert moving.fate is Fate.LEAVING
        moving.fate = Fate.SAFE
        self._note_safe(moving)

    def remove(self, moving: Moving) -> None:
        """It stays, or is gone."""
        position = moving.position
        del self._moving[position.key]
        siblings = self._below[position.parent]
        del siblings[position.key]
        if not siblings:
            del self._below[position.parent]
        for slot in moving.slots:
            del self._key_of[slot]
            self._marked[slot] = False
        if self._safe.pop(position.key, None) is not None:
            self.safe_slots -= len(position.slots)

    def get(self, key: Key) -> Moving | None:
        """The leaving position of this key."""
        return self._moving.get(key)

    def among(self, keys: Iterable[Key]) -> list[Key]:
        """Those of `keys` that are leaving."""
        return list(filter(self._moving.__contains__, keys))

    def in_slots(self, parts: Sequence[npt.NDArray[np.int32]]) -> list[Key]:
        """What is leaving in these slots (-1: none)."""
        found: dict[Key, None] = {}
        for part in parts if self._moving else ():
            marked = part[self._marked[part] & (part >= 0)]
            found.update((self._key_of[slot], None) for slot in marked.tolist())
        return list(found)

    def first_safe(self, slots: int) -> list[Moving]:
        """The SAFE positions that go first, with at least `slots` slots in all, or all there are."""
        chosen: list[Moving] = []
        for moving in self._safe.values():
            if slots <= 0:
                break
            chosen.append(moving)
            slots -= len(moving.position.slots)
        return chosen

    def below(self, keys: Iterable[Key]) -> list[Moving]:
        """What is leaving below `keys`, children before parents."""
        found: list[Moving] = []
        todo = [key for key in keys if key in self._below]
        while todo:
            children = [self._moving[child] for child in self._below[todo.pop()]]
            found += children
            todo += [child.position.key for child in children if child.position.key in self._below]
        # Each was found, for the last time, after what is above it.
        return list({moving.position.key: moving for moving in reversed(found)}.values())

    def clear(self) -> None:
        self.safe_slots = 0
        self._moving.clear()
        self._safe.clear()
        self._below.clear()
        self._key_of.clear()
        self._marked[:] = False

    def __contains__(self, key: object) -> bool:
        return key in self._moving

    def __len__(self) -> int:
        return len(self._moving)

    def values(self) -> Iterable[Moving]:
        """All of them."""
        return self._moving.values()

    def check(self) -> None:
        """Assert that the views agree. O(slots)."""
        slots = {slot: key for key, moving in self._moving.items() for slot in moving.slots}
        assert slots == self._key_of
        assert sorted(slots) == np.flatnonzero(self._marked).tolist()
        below = {(one.position.parent, key) for key, one in self._moving.items()}
        assert below == {(parent, key) for parent, keys in self._below.items() for key in keys}
        safe = {key for key, one in self._moving.items() if one.fate is Fate.SAFE}
        assert safe == self._safe.keys()
        assert self.safe_slots == sum(len(one.position.slots) for one in self._safe.values())
        assert all(one.fate in {Fate.SAFE, Fate.LEAVING} for one in self._moving.values())

    def _note_safe(self, moving: Moving) -> None:
        self._safe[moving.position.key] = moving
        self.safe_slots += len(moving.position.slots)
