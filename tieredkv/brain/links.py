"""Parents and positions of the cold keys: what a chunk needs to come back, and proof against circles."""

from tieredkv.types import Key


class Links:
    """Key -> its parent and position. A parent's position is smaller than its children's.

    Unlike in the forest of warm, a key may leave before its children do.
    """

    def __init__(self) -> None:
        self._link: dict[Key, tuple[Key, int]] = {}
        # Parents, there or not: how many children they have, and the position that they must be above.
        # Not eased when one of several children leaves: that only refuses more.
        self._below: dict[Key, tuple[int, int]] = {}

    def add(self, key: Key, parent: Key, position: int) -> bool:
        """False, and nothing changed, when `key` cannot stand there. One that is there stays there."""
        known = self._link.get(key)
        if known is not None:
            return known[1] == position
        above = self._link.get(parent)
        if above is not None and above[1] >= position:
            return False
        if key in self._below and self._below[key][1] <= position:
            return False
        self._link[key] = (parent, position)
        if parent:
            children, least = self._below.get(parent, (0, position))
            self._below[parent] = (children + 1, min(least, position))
        return True

    def remove(self, key: Key) -> None:
        """`key` is there no more."""
        parent, _ = self._link.pop(key)
        if parent:
            children, least = self._below.pop(parent)
            if children > 1:
                self._below[parent] = (children - 1, least)

    def __getitem__(self, key: Key) -> tuple[Key, int]:
        return self._link[key]

    def __contains__(self, key: object) -> bool:
        return key in self._link

    def __len__(self) -> int:
        return len(self._link)

    def clear(self) -> None:
        self._link.clear()
        self._below.clear()

    def check(self) -> None:
        """Assert that every known link goes up. O(n)."""
        children: dict[Key, int] = {}
        for parent, position in self._link.values():
            above = self._link.get(parent)
            assert above is None or above[1] < position
            if parent:
                children[parent] = children.get(parent, 0) + 1
                assert self._below[parent][1] <= position
        assert children == {key: count for key, (count, _) in self._below.items()}
