"""Adaptive replacement cache.

N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", USENIX FAST 2003, figure 4.
The names of the lists, of the target size `p` and of REPLACE are the paper's.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import Final

from tieredkv.policy.queues import Entrance, Queue, QueuePolicy
from tieredkv.types import Key


class ARC(QueuePolicy):
    """T1: used once, T2: used again; B1, B2: what was evicted from them. `p` is the wanted size of T1."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._t1: Final = Queue()
        self._t2: Final = Queue()
        self._b1: Final[OrderedDict[Key, None]] = OrderedDict()
        self._b2: Final[OrderedDict[Key, None]] = OrderedDict()
        self._p = 0.0
        self._unknown: Final = Entrance(self._t1)
        self._from_b1: Final = Entrance(self._t2)
        self._from_b2: Final = Entrance(self._t2)

    def clear(self) -> None:
        """See EvictionPolicy."""
        super().clear()
        for part in (self._t1, self._t2, self._b1, self._b2):
            part.clear()
        self._p = 0.0

    def check(self) -> None:
        """See EvictionPolicy."""
        super().check()
        assert 0 <= self._p <= self._capacity
        assert len(self._b1) + len(self._b2) <= 2 * self._capacity
        assert self._b1.keys().isdisjoint(self._b2)
        assert self._queue_of.keys().isdisjoint(self._b1)
        assert self._queue_of.keys().isdisjoint(self._b2)

    # --- of QueuePolicy -----------------------------------------------------------------------------

    def _use(self, chain: Sequence[Key]) -> None:
        queue_of, t2 = self._queue_of, self._t2
        order = t2.order
        for key in reversed(chain):
            queue = queue_of.get(key)
            if queue is None:
                continue
            if key in order:
                order.move_to_end(key)
            else:
                queue.take(key)
                order[key] = None
                queue_of[key] = t2

    def _admit(self, keys: Sequence[Key]) -> Iterable[tuple[Entrance, Sequence[Key]]]:
        if self._b1.keys().isdisjoint(keys) and self._b2.keys().isdisjoint(keys):
            return ((self._unknown, keys),)
        return ((self._entrance(key), (key,)) for key in keys)

    def _choose(self, protected: Container[Key]) -> Key | None:
        """REPLACE, and before it what case IV does for a newcomer that no list remembered."""
        t1, t2, b1, b2, size = self._t1, self._t2, self._b1, self._b2, self._size
        newcomer = self._newcomers[0][1] if self._newcomers else self._unknown
        in_t1 = len(t1.order) + len(t1.aside)
        in_t2 = len(t2.order) + len(t2.aside)
        surplus: OrderedDict[Key, None] | None = None
        remember = True
        if newcomer is self._unknown:
            if in_t1 + len(b1) >= size:
                surplus = b1
                remember = bool(b1)
            elif in_t1 + in_t2 + len(b1) + len(b2) >= 2 * size:
                surplus = b2
        wide = in_t1 > self._p or (in_t1 == self._p and newcomer is self._from_b2)
        queue = t1 if (wide and in_t1 > 0) or in_t2 <= 0 or not remember else t2
        victim = self._take_oldest(queue, protected)
        if victim is None:
            queue = t2 if queue is t1 else t1
            victim = self._take_oldest(queue, protected)
            if victim is None:
                return None
        if surplus:
            surplus.popitem(last=False)
        if remember:
            (b1 if queue is t1 else b2)[victim] = None
        return victim

    def _forget(self, key: Key) -> None:
        del key

    # --- parts --------------------------------------------------------------------------------------

    def _entrance(self, key: Key) -> Entrance:
        """Cases II to IV: a ghost adapts the target, by how much longer the other list of ghosts is."""
        b1, b2 = self._b1, self._b2
        if key in b1:
            self._p = min(self._p + max(len(b2) / len(b1), 1.0), float(self._size))
            del b1[key]
            return self._from_b1
        if key in b2:
            self._p = max(self._p - max(len(b1) / len(b2), 1.0), 0.0)
            del b2[key]
            return self._from_b2
        return self._unknown
