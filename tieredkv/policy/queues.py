"""What policies share that keep every position in one of several queues.

A queue's old end leaves first. A position with resident children may not leave: met at the old end it waits
aside, and returns there when its last child has left. So no eviction looks at it twice, and nobody has to
refresh thousands of ancestors when a child of them is stored.

The published algorithms make room for a key before it enters. Here keys enter first, several at a time, and
room is made afterwards. So that the outcome is the published one, a newcomer enters its queue only when room
has been made for it, or is not needed.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Sequence
from itertools import repeat

from tieredkv.policy.base import PlainPolicy
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key


class Queue:
    """Positions, the next to leave first. Those that wait `aside` would leave before all in `order`."""

    __slots__ = ("aside", "order")

    def __init__(self) -> None:
        self.order: OrderedDict[Key, None] = OrderedDict()
        self.aside: dict[Key, None] = {}

    def __len__(self) -> int:
        return len(self.order) + len(self.aside)

    def take(self, key: Key) -> None:
        """Take out a key that is there."""
        if key in self.aside:
            del self.aside[key]
        else:
            del self.order[key]

    def bring_back(self, key: Key) -> None:
        """A key that was set aside is the next to leave."""
        del self.aside[key]
        self.order[key] = None
        self.order.move_to_end(key, last=False)

    def clear(self) -> None:
        """Take all out."""
        self.order.clear()
        self.aside.clear()


class Entrance:
    """A way into `queue`. A policy that decides by what it knew of a newcomer has several to one queue."""

    __slots__ = ("queue",)

    def __init__(self, queue: Queue) -> None:
        self.queue = queue


class QueuePolicy(PlainPolicy, ABC):
    """Bookkeeping of the residents. A subclass says which queue a key is in and who leaves next.

    It hears of a chain's deepest key first, so that of one request the tail is the oldest. `_size` is the
    size of the cache in the published sense: what the last eviction was to leave, that is the slots that
    are not leased to be written.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self._capacity = capacity
        self._size = capacity
        self._queue_of: dict[Key, Queue] = {}
        self._parent: dict[Key, Key] = {}
        # Number of resident children, also of parents that are not resident.
        self._children: dict[Key, int] = {}
        # Residents in no queue yet, with their ways into one; they enter in this order.
        self._newcomers: deque[tuple[Key, Entrance]] = deque()
        # Set aside during one eviction, because they are protected.
        self._passed: list[tuple[Queue, Key]] = []

    # --- of the subclass ----------------------------------------------------------------------------

    @abstractmethod
    def _use(self, chain: Sequence[Key]) -> None:
        """A request used these, head first, resident or not."""

    @abstractmethod
    def _admit(self, keys: Sequence[Key]) -> Iterable[tuple[Entrance, Sequence[Key]]]:
        """The ways by which `keys` shall enter the young ends of queues, now that they are resident, in their order."""

    @abstractmethod
    def _choose(self, protected: Container[Key]) -> Key | None:
        """Take the next victim out of its queue, and remember of it what is to be remembered.

        The first newcomer, if any, is the one to make room for.
        """

    @abstractmethod
    def _forget(self, key: Key) -> None:
        """A resident key is gone without an eviction; it is out of its queue already."""

    # --- EvictionPolicy -----------------------------------------------------------------------------

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        """See EvictionPolicy."""
        del now_s, hints
        self._settle(len(self._newcomers))
        self._use(chain)

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        """See EvictionPolicy. A key that is resident stays where it is: a store is not a use."""
        del now_s
        queue_of, children = self._queue_of, self._children
        if not queue_of.keys().isdisjoint(keys) or len(set(keys)) < len(keys):
            fresh = {key: parent for key, parent in zip(keys, parents, strict=True) if key not in queue_of}
            keys, parents = list(fresh), list(fresh.values())
        for entrance, group in self._admit(keys[::-1]):
            queue_of.update(dict.fromkeys(group, entrance.queue))
            self._newcomers.extend(zip(group, repeat(entrance)))
        self._parent.update(zip(keys, parents, strict=True))
        if parents[1:] == keys[:-1] and children.keys().isdisjoint(keys):
            children.update(dict.fromkeys(keys[:-1], 1))
            parents = parents[:1]
        for parent in filter(None, parents):
            children[parent] = children.get(parent, 0) + 1
        assert len(queue_of) <= self._capacity

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        """See EvictionPolicy."""
        del now_s
        if count <= 0:
            return []
        self._size = max(1, len(self._queue_of) - count)
        # For those before the last `count` no room is needed.
        self._settle(len(self._newcomers) - count)
        victims: list[Key] = []
        while len(victims) < count:
            victim = self._choose(protected)
            if victim is None and self._newcomers:
                self._settle(len(self._newcomers))
                victim = self._choose(protected)
            if victim is None:
                break
            self._settle(1)
            self._leave(victim)
            victims.append(victim)
        for queue, key in reversed(self._passed):
            queue.bring_back(key)
        self._passed.clear()
        return victims

    def remove(self, key: Key) -> None:
        """See EvictionPolicy."""
        self._settle(len(self._newcomers))
        self._queue_of[key].take(key)
        self._leave(key)
        self._forget(key)

    def clear(self) -> None:
        """See EvictionPolicy."""
        self._size = self._capacity
        self._queue_of.clear()
        self._parent.clear()
        self._children.clear()
        self._newcomers.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._queue_of

    def __len__(self) -> int:
        return len(self._queue_of)

    def check(self) -> None:
        """See EvictionPolicy."""
        assert 1 <= self._size <= self._capacity
        assert len(self._queue_of) <= self._capacity
        assert not self._passed
        queues = {id(queue): queue for queue in self._queue_of.values()}.values()
        assert sum(map(len, queues)) + len(self._newcomers) == len(self._queue_of)
        for queue in queues:
            assert queue.order.keys().isdisjoint(queue.aside)
            assert all(self._queue_of[key] is queue for key in (*queue.order, *queue.aside))
            assert all(key in self._children for key in queue.aside), "aside without a resident child"
        assert all(self._queue_of[key] is entrance.queue for key, entrance in self._newcomers)
        assert self._parent.keys() == self._queue_of.keys()
        children: dict[Key, int] = {}
        for parent in filter(None, self._parent.values()):
            children[parent] = children.get(parent, 0) + 1
        assert children == self._children

    # --- for the subclass ---------------------------------------------------------------------------

    def _take_oldest(self, queue: Queue, protected: Container[Key]) -> Key | None:
        """Take out the first key of `queue` that may leave. Those before it are set aside."""
        order, children = queue.order, self._children
        while order:
            key = order.popitem(last=False)[0]
            if key not in children and key not in protected:
                return key
            self._set_aside(queue, key)
        return None

    def _set_aside(self, queue: Queue, key: Key) -> None:
        """`key`, taken out of `queue`, has resident children or is protected."""
        queue.aside[key] = None
        if key not in self._children:
            self._passed.append((queue, key))

    # --- parts --------------------------------------------------------------------------------------

    def _settle(self, count: int) -> None:
        """Up to `count` newcomers enter their queues."""
        for _ in range(min(count, len(self._newcomers))):
            key, entrance = self._newcomers.popleft()
            entrance.queue.order[key] = None

    def _leave(self, key: Key) -> None:
        """`key` is not resident any more; it is out of its queue already."""
        del self._queue_of[key]
        parent = self._parent.pop(key)
        if not parent:
            return
        children = self._children
        if children[parent] > 1:
            children[parent] -= 1
            return
        del children[parent]
        queue = self._queue_of.get(parent)
        if queue is not None and parent in queue.aside:
            queue.bring_back(parent)
