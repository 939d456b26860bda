"""Where the visible chunks of one KV group are.

Chunks that were published one after the other are kept as *stretches*, so that a look-up compares a
long chain with a few stretches instead of hashing each of its keys: a tenth of the time.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, cast

import numpy as np

from tieredkv.brain.slots import SlotTable
from tieredkv.brain.values import POSITION_MAX, Slots
from tieredkv.policy.chains import common
from tieredkv.policy.keymap import SHARD_MASK, KeyMap
from tieredkv.types import Key

STRETCH_KEYS_MAX = 4096
"""Longest stretch: taking a key out of its middle costs as much."""


class _Stretch:
    """`keys[i]` is in slot `slots[i]` (int32)."""

    __slots__ = ("keys", "slots")

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.slots = array("i")


_NO_STRETCH: Final = _Stretch()
"""Where no chunk is. Nobody changes it."""


class Residents:
    """Key -> slot of one group, looked up by whole chains. The pool has `slots` slots."""

    def __init__(self, slots: int) -> None:
        self.slot_of: KeyMap[int] = KeyMap()
        # By slot: a list is smaller than a second dictionary, and has nothing to hash.
        self._stretch_at = [_NO_STRETCH] * slots

    def slot(self, key: Key) -> int | None:
        """The slot of a key, None if it is absent."""
        return self.slot_of.get(key)

    def find(self, keys: Sequence[Key], *, closed: bool) -> Slots:
        """Slots of the keys in order, -1 where absent; trailing absent ones are left out.

        `closed` promises that no key is resident whose predecessor is not.
        """
        keys = list(keys)
        parts: list[array[int]] = []
        at = 0
        while at < len(keys):
            slot = self.slot_of.get(keys[at])
            if slot is None:
                following = len(keys) if closed else self.slot_of.first_known(keys, at)
                if following == len(keys):
                    break
                parts.append(array("i", (-1,)) * (following - at))
                at = following
                continue
            stretch = self._stretch_at[slot]
            start = 0 if stretch.keys[0] == keys[at] else stretch.keys.index(keys[at])
            same = common(keys, at, stretch.keys[start:] if start else stretch.keys)
            parts.append(stretch.slots[start : start + same])
            at += same
        return np.frombuffer(b"".join(parts), np.int32)

    def add(self, keys: list[Key], parents: list[Key], positions: Sequence[int], slots: Sequence[int]) -> None:
        """Absent `keys` (at least one) are in `slots` from now on.

        A key goes on the stretch that its parent ends. Where parents have no chunk in this group,
        rising positions belong to one chain, most likely; `find` does not rely on it.
        """
        stretch_at = self._stretch_at
        if parents[1:] == keys[:-1]:
            stretch = self._ending_in(parents[0])
            if len(stretch.keys) + len(keys) <= STRETCH_KEYS_MAX:
                stretch.keys += keys
                stretch.slots.extend(slots)
                for slot in slots:
                    stretch_at[slot] = stretch
                self.slot_of.update(keys, slots)
                return
        stretch = _Stretch()
        before = POSITION_MAX
        for key, parent, position, slot in zip(keys, parents, positions, slots, strict=True):
            follows = stretch.keys and stretch.keys[-1] == parent
            orphan = position > before and parent not in self.slot_of
            if not (follows or orphan) or len(stretch.keys) >= STRETCH_KEYS_MAX:
                stretch = self._ending_in(parent)
            before = position
            stretch.keys.append(key)
            stretch.slots.append(slot)
            stretch_at[slot] = stretch
            self.slot_of.assign((key,), slot)

    def remove(self, keys: Sequence[Key]) -> tuple[list[Key], list[int]]:
        """`keys` are absent from now on; those of them that were not, and the slots that they were in."""
        gone: list[Key] = []
        left: list[int] = []
        stretch_at = self._stretch_at
        for key, slot in zip(keys, self.slot_of.take(keys), strict=True):
            if slot is None:
                continue
            gone.append(key)
            left.append(slot)
            stretch = stretch_at[slot]
            stretch_at[slot] = _NO_STRETCH
            if stretch.keys[-1] == key:
                stretch.keys.pop()
                stretch.slots.pop()
            else:
                at = stretch.keys.index(key)
                del stretch.keys[at], stretch.slots[at]
        return gone, left

    def clear(self) -> None:
        self.slot_of.clear()
        self._stretch_at = [_NO_STRETCH] * len(self._stretch_at)

    def __contains__(self, key: Key) -> bool:
        return key in self.slot_of

    def items(self) -> Iterable[tuple[Key, int]]:
        """All keys with their slots; equal calls before give an equal order."""
        return self.slot_of.items()

    def __len__(self) -> int:
        return len(self.slot_of)

    def check(self) -> None:
        """Assert that stretches and keys agree. O(n)."""
        assert not _NO_STRETCH.keys
        seen = 0
        for stretch in {id(stretch): stretch for stretch in self._stretch_at if stretch is not _NO_STRETCH}.values():
            assert 1 <= len(stretch.keys) <= STRETCH_KEYS_MAX
            seen += len(stretch.keys)
            for key, slot in zip(stretch.keys, stretch.slots, strict=True):
                assert self._stretch_at[slot] is stretch
                assert self.slot_of[key] == slot
        assert seen == len(self.slot_of)
        assert seen == sum(stretch is not _NO_STRETCH for stretch in self._stretch_at)

    def _ending_in(self, parent: Key) -> _Stretch:
        """The stretch that a child of `parent` can go on, or a new one."""
        slot = self.slot_of.get(parent)
        stretch = _NO_STRETCH if slot is None else self._stretch_at[slot]
        if slot is None or stretch.keys[-1] != parent or len(stretch.keys) >= STRETCH_KEYS_MAX:
            return _Stretch()
        return stretch


class PinnedPositions:
    """The keys that have a pinned chunk, as a container that costs nothing to keep."""

    def __init__(self, groups: tuple[Residents, ...], table: SlotTable) -> None:
        self._shards = tuple(residents.slot_of.shards for residents in groups)
        self._pins = table.pins_of

    def __contains__(self, key: object) -> bool:
        key = cast("Key", key)
        for shards in self._shards:
            slot = shards[key[-1] & SHARD_MASK].get(key)
            if slot is not None and self._pins[slot]:
                return True
        return False
