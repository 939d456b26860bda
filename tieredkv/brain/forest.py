"""The prefix forest of resident positions: refuses links that cannot be.

Policies rely on parents forming a forest. Engines could claim a cycle, which would shield its members
from eviction for ever; so each resident key has a position, and a parent's is smaller than its
children's. Keys are hashes, so honest engines always agree.
"""

from collections.abc import Sequence

from tieredkv.brain.values import POSITION_MAX
from tieredkv.policy.keymap import KeyMap
from tieredkv.types import KEY_SIZES, Key


class Forest:
    """Position of every resident key. A parent is never removed before its children."""

    def __init__(self) -> None:
        self._position: KeyMap[int] = KeyMap()
        # Keys that came before their parents, with those (empty: unknown).
        self._orphans: dict[Key, Key] = {}
        # Absent parents: how many orphans they have, and the position that they must be above. Not
        # eased when one of several orphans leaves: that only refuses more.
        self._awaited: dict[Key, tuple[int, int]] = {}

    def add(self, keys: list[Key], parents: list[Key], positions: list[int]) -> list[bool]:
        """`add_one` for each row in order."""
        if not keys or not self.add_one(keys[0], parents[0], positions[0]):
            return [False, *map(self.add_one, keys[1:], parents[1:], positions[1:])][: len(keys)]
        below = keys[1:]
        if self._unheard(below) and parents[1:] == keys[:-1] and self._rise(positions):
            # The usual batch: one path. Below its first key there is nothing to be found wrong.
            self._position.update(below, positions[1:])
            return [True] * len(keys)
        return [True, *map(self.add_one, below, parents[1:], positions[1:])]

    def add_one(self, key: Key, parent: Key, position: int) -> bool:
        """Make `key` resident at `position` below `parent` (empty at the start; elsewhere: unknown).

        False, and nothing changed, when it cannot stand there. A resident key stays where it is.
        """
        known = self._position.get(key)
        if known is not None:
            return known == position
        if len(key) not in KEY_SIZES or not 0 <= position <= POSITION_MAX:
            return False
        above = self._position.get(parent)
        if above is not None:
            if above >= position:
                return False
        elif not self._plausible_orphan(key, parent, position):
            return False
        awaited = self._awaited.get(key) if self._awaited else None
        if awaited is not None:
            if position >= awaited[1]:
                return False
            del self._awaited[key]
        if above is None and position > 0:
            orphans, below = self._awaited.get(parent, (0, position))
            self._awaited[parent] = (orphans + 1, min(below, position))
            self._orphans[key] = parent
        self._position.assign((key,), position)
        return True

    def remove(self, keys: Sequence[Key]) -> None:
        """`keys`, children before parents, are resident no more."""
        self._position.discard(keys)
        for key in keys if self._orphans else ():
            parent = self._orphans.pop(key, None)
            if parent is not None and parent in self._awaited:
                orphans, below = self._awaited.pop(parent)
                if orphans > 1:
                    self._awaited[parent] = (orphans - 1, below)

    def clear(self) -> None:
        self._position.clear()
        self._orphans.clear()
        self._awaited.clear()

    def position(self, key: Key) -> int:
        """The position of a resident key."""
        return self._position[key]

    @property
    def closed(self) -> bool:
        """Whether every resident key has its whole prefix beside it (or begins a chain)."""
        return not self._awaited

    def __contains__(self, key: Key) -> bool:
        return key in self._position

    def __len__(self) -> int:
        return len(self._position)

    def check(self) -> None:
        """Assert that every known link goes up, and what is awaited. O(n)."""
        awaited: dict[Key, int] = {}
        for key, parent in self._orphans.items():
            position = self._position[key]
            if parent in self._position:
                assert self._position[parent] < position
            else:
                awaited[parent] = awaited.get(parent, 0) + 1
                assert self._awaited[parent][1] <= position
        assert awaited == {key: count for key, (count, _) in self._awaited.items()}

    def _unheard(self, keys: list[Key]) -> bool:
        """Whether nothing was heard of any of these keys."""
        if not KEY_SIZES.issuperset(map(len, keys)):
            return False
        fresh = self._awaited.keys().isdisjoint(keys) and self._position.none_of(keys)
        return fresh and len(set(keys)) == len(keys)

    @staticmethod
    def _rise(positions: list[int]) -> bool:
        """Whether each position follows the one before."""
        return positions[-1] <= POSITION_MAX and positions == list(range(positions[0], positions[0] + len(positions)))

    @staticmethod
    def _plausible_orphan(key: Key, parent: Key, position: int) -> bool:
        if not parent:
            return True
        return position > 0 and key != parent and len(parent) in KEY_SIZES
