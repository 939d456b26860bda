"""Multi-queue replacement.

Y. Zhou, J. F. Philbin and K. Li, "The Multi-Queue Replacement Algorithm for Second Level Buffer Caches",
USENIX ATC 2001, section 5. Time is counted in references.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import Final

from tieredkv.policy.queues import Entrance, Queue, QueuePolicy
from tieredkv.types import Key

QUEUES: Final = 8
HISTORY_SHARE: Final = 4
"""The paper's size of Qout, of the cache."""

REUSES_MIN: Final = 1000
"""Reuses that are counted between two estimates of the life time."""

NEVER: Final = 1 << 62


class _Use:
    """What is known of a key, resident or in Qout: how often and when it was used, how long it may stay."""

    __slots__ = ("at", "count", "expires")

    def __init__(self) -> None:
        self.count = 0
        self.at = -1
        self.expires = 0


class MQ(QueuePolicy):
    """A key used n times is in queue log2(n). One that is not used for a life time goes a queue down.

    `life_time` is a number of references. None: the paper's peak of the temporal distances (references
    between two uses of a key), which is estimated all the time; the capacity before there are enough.
    """

    def __init__(self, capacity: int, life_time: int | None = None) -> None:
        super().__init__(capacity)
        self._fixed_life: Final = life_time
        self._queues: Final = tuple(Queue() for _ in range(QUEUES))
        self._entrances: Final = tuple(Entrance(queue) for queue in self._queues)
        self._uses: Final[dict[Key, _Use]] = {}
        self._qout: Final[OrderedDict[Key, _Use]] = OrderedDict()
        self._start()

    def clear(self) -> None:
        """See EvictionPolicy."""
        super().clear()
        for queue in self._queues:
            queue.clear()
        self._uses.clear()
        self._qout.clear()
        self._start()

    def check(self) -> None:
        """See EvictionPolicy."""
        super().check()
        assert self._uses.keys() == self._queue_of.keys()
        assert all(use.count >= 1 for use in self._uses.values())
        assert len(self._qout) <= HISTORY_SHARE * self._capacity
        assert self._qout.keys().isdisjoint(self._queue_of)

    # --- of QueuePolicy -----------------------------------------------------------------------------

    def _use(self, chain: Sequence[Key]) -> None:
        uses, queue_of, queues = self._uses, self._queue_of, self._queues
        for key in reversed(chain):
            use = uses.get(key)
            if use is None:
                continue
            queue = queues[self._refer(use)]
            if queue_of[key] is queue and key in queue.order:
                queue.order.move_to_end(key)
            else:
                queue_of[key].take(key)
                queue.order[key] = None
                queue_of[key] = queue

    def _admit(self, keys: Sequence[Key]) -> Iterable[tuple[Entrance, Sequence[Key]]]:
        for key in keys:
            use = self._uses[key] = self._qout.pop(key) if key in self._qout else _Use()
            yield self._entrances[self._refer(use)], (key,)

    def _choose(self, protected: Container[Key]) -> Key | None:
        for queue in self._queues:
            key = self._take_oldest(queue, protected)
            if key is not None:
                qout = self._qout
                qout[key] = self._uses.pop(key)
                while len(qout) > HISTORY_SHARE * self._size:
                    qout.popitem(last=False)
                return key
        return None

    def _forget(self, key: Key) -> None:
        del self._uses[key]

    # --- parts --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._life = self._fixed_life or self._capacity
        self._time = 0
        # Nothing in a queue above the lowest expires before.
        self._due = NEVER
        # distances[n] counts those of 2**(n - 1) and more, below 2**n.
        self._distances = [0] * 64
        self._reuses = 0

    def _refer(self, use: _Use) -> int:
        """One reference. Returns the number of the queue for it."""
        now = self._time
        if self._due < now:
            self._adjust()
        if use.at >= 0 and not self._fixed_life:
            self._distances[(now - use.at).bit_length()] += 1
            self._reuses += 1
            if self._reuses >= REUSES_MIN:
                self._estimate()
        use.count += 1
        use.at = now
        use.expires = expires = now + self._life
        self._due = min(self._due, expires)
        self._time = now + 1
        level = use.count.bit_length() - 1
        return level if level < QUEUES else QUEUES - 1

    def _adjust(self) -> None:
        """The first of each queue goes down if it has expired; done before the reference that follows."""
        for below, queue in zip(self._queues, self._queues[1:], strict=False):
            key = next(iter(queue.order), None)
            if key is not None and self._uses[key].expires < self._time:
                queue.take(key)
                below.order[key] = None
                self._queue_of[key] = below
                self._uses[key].expires = self._time + self._life
        firsts = (next(iter(queue.order), None) for queue in self._queues[1:])
        self._due = min((self._uses[key].expires for key in firsts if key is not None), default=NEVER)

    def _estimate(self) -> None:
        """The life time is the most frequent distance; old distances count half at each estimate."""
        peak = max(range(len(self._distances)), key=self._distances.__getitem__)
        self._life = 1 << peak
        self._distances = [count // 2 for count in self._distances]
        self._reuses = 0
