"""Simple, scalable FIFO queues.

J. Yang, Y. Zhang, Z. Qiu, Y. Yue and R. Vinayak, "FIFO queues are all you need for cache eviction",
SOSP 2023, algorithm 1. The names of the queues are the paper's.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import Final

from tieredkv.policy.queues import Entrance, Queue, QueuePolicy
from tieredkv.types import Key

SMALL_SHARE: Final = 0.1
"""The paper's size of S, of the whole cache."""

USES_MAX: Final = 3
"""The paper counts with two bits."""

USES_TO_STAY: Final = 2
"""A key that left S with as many uses since it came goes on to M."""

_UNKNOWN: Final = object()


class S3FIFO(QueuePolicy):
    """S: a small queue where keys prove themselves; M: the main queue; the ghosts: what S evicted.

    A ghost that comes back enters M. There are at most as many ghosts as M has room for. What waits aside
    in S would be a ghost if it had no resident children: it does not count there, and a use takes it to M.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: Final = Queue()
        self._main: Final = Queue()
        self._to_small: Final = Entrance(self._small)
        self._to_main: Final = Entrance(self._main)
        self._uses: Final[dict[Key, int]] = {}
        self._ghosts: Final[OrderedDict[Key, None]] = OrderedDict()

    def clear(self) -> None:
        """See EvictionPolicy."""
        super().clear()
        for part in (self._small, self._main, self._uses, self._ghosts):
            part.clear()

    def check(self) -> None:
        """See EvictionPolicy."""
        super().check()
        assert self._uses.keys() == self._queue_of.keys()
        assert all(0 <= uses <= USES_MAX for uses in self._uses.values())
        assert len(self._ghosts) <= self._capacity
        assert self._ghosts.keys().isdisjoint(self._queue_of)

    # --- of QueuePolicy -----------------------------------------------------------------------------

    def _use(self, chain: Sequence[Key]) -> None:
        counts = self._uses
        for key in chain:
            uses = counts.get(key, USES_MAX)
            if uses < USES_MAX:
                counts[key] = uses + 1
        if self._small.aside:
            for key in reversed(chain):
                if key in self._small.aside:
                    del self._small.aside[key]
                    self._enter_main(key)

    def _admit(self, keys: Sequence[Key]) -> Iterable[tuple[Entrance, Sequence[Key]]]:
        self._uses.update(dict.fromkeys(keys, 0))
        if self._ghosts.keys().isdisjoint(keys):
            return ((self._to_small, keys),)
        return ((self._to_main if self._ghosts.pop(key, _UNKNOWN) is None else self._to_small, (key,)) for key in keys)

    def _choose(self, protected: Container[Key]) -> Key | None:
        small = self._small
        if len(small.order) >= SMALL_SHARE * self._size:
            return self._from_small(protected) or self._from_main(protected)
        return self._from_main(protected) or self._from_small(protected)

    def _forget(self, key: Key) -> None:
        del self._uses[key]

    # --- parts --------------------------------------------------------------------------------------

    def _from_small(self, protected: Container[Key]) -> Key | None:
        """The oldest of S that was not used enough. What was goes on to M, and when M is full one leaves M."""
        small, main, uses, children = self._small, self._main, self._uses, self._children
        while small.order:
            key = small.order.popitem(last=False)[0]
            if uses[key] >= USES_TO_STAY:
                self._enter_main(key)
                if len(main) > (1 - SMALL_SHARE) * self._size and (victim := self._from_main(protected)):
                    return victim
            elif key in children or key in protected:
                self._set_aside(small, key)
            else:
                del uses[key]
                self._remember(key)
                return key
        return None

    def _from_main(self, protected: Container[Key]) -> Key | None:
        """The oldest of M without a use left; each that is met before has one use less, and starts again."""
        main, uses, children = self._main, self._uses, self._children
        while main.order:
            key = main.order.popitem(last=False)[0]
            if uses[key]:
                uses[key] -= 1
                main.order[key] = None
            elif key in children or key in protected:
                self._set_aside(main, key)
            else:
                del uses[key]
                return key
        return None

    def _enter_main(self, key: Key) -> None:
        self._uses[key] = 0
        self._main.order[key] = None
        self._queue_of[key] = self._main

    def _remember(self, key: Key) -> None:
        ghosts = self._ghosts
        ghosts[key] = None
        while len(ghosts) > (1 - SMALL_SHARE) * self._size:
            ghosts.popitem(last=False)
