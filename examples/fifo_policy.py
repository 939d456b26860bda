"""A policy of one's own: first in, first out, but never a chunk under a resident child.

`name: fifo_policy:Fifo` below `policy:` in tieredkv.yaml chooses it where this file is on the Python path.
Try it first: `tieredkv simulate TRACE --policies lru,fifo_policy:Fifo`.
"""

from collections import Counter
from collections.abc import Container, Sequence
from heapq import heappop, heappush

from tieredkv.policy import NO_HINTS, PlainPolicy, UseHints
from tieredkv.types import Key


class Fifo(PlainPolicy):
    """Of all chunks without resident children the one that is resident for the longest time leaves first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        self._inserted = 0
        self._number: dict[Key, int] = {}
        self._parent: dict[Key, Key] = {}
        self._children: Counter[Key] = Counter()
        # A heap of (number, key) with all that might leave, and some that may not any more.
        self._leaves: list[tuple[int, Key]] = []

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        pass

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        del now_s
        for key, parent in zip(keys, parents, strict=True):
            if key not in self._number:
                self._inserted += 1
                self._number[key] = self._inserted
                self._parent[key] = parent
                self._children[parent] += 1
                heappush(self._leaves, (self._inserted, key))

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        del now_s
        victims: list[Key] = []
        stay: list[tuple[int, Key]] = []
        while self._leaves and len(victims) < count:
            number, key = heappop(self._leaves)
            if self._number.get(key) != number or self._children[key]:
                continue
            if key in protected:
                stay.append((number, key))
                continue
            self.remove(key)
            victims.append(key)
        for leaf in stay:
            heappush(self._leaves, leaf)
        return victims

    def remove(self, key: Key) -> None:
        del self._number[key]
        parent = self._parent.pop(key)
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            if parent in self._number:
                heappush(self._leaves, (self._number[parent], parent))

    def __contains__(self, key: Key) -> bool:
        return key in self._number

    def __len__(self) -> int:
        return len(self._number)

    def check(self) -> None:
        assert len(self._number) <= self._capacity
        leaves = {key for key in self._number if not self._children[key]}
        assert leaves <= {key for number, key in self._leaves if self._number.get(key) == number}
