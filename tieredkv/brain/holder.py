"""What one engine holds: pins of its requests and leases, bounded by its allowance of slots."""

import numpy as np
import numpy.typing as npt

from tieredkv.brain.moves import JOB_ROWS_MAX
from tieredkv.brain.slots import Index, SlotTable
from tieredkv.brain.values import Slots
from tieredkv.types import RequestId

REQUESTS_MAX = 65_536
"""Requests of one engine that may hold pins at a time."""

PINS_MAX = 1 << 24
"""Pins of one engine, counted once per request (4 bytes each)."""


class Holder:
    """One attached engine. A slot counts once against the allowance, however many requests pin it."""

    def __init__(self, number: int, table: SlotTable, allowance: int) -> None:
        self.number = number
        self.allowance = allowance
        self.leased = 0
        self._table = table
        self._pinned = 0
        self._pins: npt.NDArray[np.int32] = np.zeros(table.slots, np.int32)
        self._requests: dict[RequestId, npt.NDArray[np.int32]] = {}
        self._entries = 0

    @property
    def held(self) -> int:
        """Slots leased or pinned."""
        return self.leased + self._pinned

    @property
    def room(self) -> int:
        """How many more slots it may hold."""
        return max(0, self.allowance - self.held)

    @property
    def requests(self) -> tuple[RequestId, ...]:
        """Requests that have pins, in the order of their first: equal calls must free equal slots."""
        return tuple(self._requests)

    def pin(self, request: RequestId, found: list[Slots], strides: tuple[int, ...]) -> list[Slots]:
        """Pin what was found for `request`, beside what it has pinned already.

        `found` holds slots per group in chain order, -1 where absent. Returns the head of it that
        the allowance has room for; nothing at all when a bound of the bookkeeping is reached.
        """
        slots = self._named(found)
        if not len(slots):
            return found
        if self.full(request, len(slots)):
            return [part[:0] for part in found]
        room = self.room
        if len(slots) > room and len(slots) - np.count_nonzero(self._pins[slots]) > room:
            found = self._cut(found, strides)
            slots = self._named(found)
        self.add(request, slots)
        return found

    def full(self, request: RequestId, pins: int = JOB_ROWS_MAX) -> bool:
        """Whether the bookkeeping has no place for so many more pins of `request`."""
        many = len(self._requests) >= REQUESTS_MAX and request not in self._requests
        return many or self._entries + pins > PINS_MAX

    def holds(self, slot: int) -> bool:
        """Whether a request of this engine has the slot pinned."""
        return bool(self._pins[slot])

    def add(self, request: RequestId, slots: Slots | Index) -> None:
        """Pin `slots`, each named once, for `request`; those that it has pinned stay as they are.

        The caller knows that there is room for them.
        """
        before = self._requests.get(request)
        if before is not None:
            slots = slots[~np.isin(slots, before)]
        if len(slots):
            own = self._pins[slots]
            self._pinned += len(slots) - int(np.count_nonzero(own))
            self._pins[slots] = own + 1
            self._table.pins[slots] += 1
            self._entries += len(slots)
            added = slots.astype(np.int32, copy=False)
            self._requests[request] = added if before is None else np.concatenate((before, added))

    def drop(self, request: RequestId, slots: Index) -> Index:
        """Drop the pins of `request` on `slots`, which it has; returns the slots that nobody pins any more."""
        if not len(slots):
            return slots
        kept = self._requests.pop(request)
        left = kept[~np.isin(kept, slots)]
        assert len(kept) - len(left) == len(slots)
        if len(left):
            self._requests[request] = left
        return self._end_pins(slots.astype(np.int32))

    def unpin(self, request: RequestId) -> Index:
        """Drop the pins of `request`; returns the slots that nobody pins any more."""
        slots = self._requests.pop(request, None)
        if slots is None:
            return np.zeros(0, np.int64)
        return self._end_pins(slots)

    def pinned(self, request: RequestId) -> npt.NDArray[np.int32]:
        """Slots that `request` has pinned."""
        return self._requests.get(request, np.zeros(0, np.int32))

    def check(self) -> npt.NDArray[np.int32]:
        """Assert the sums; returns the pins of this engine per slot. O(slots + pins)."""
        pins = np.zeros(self._table.slots, np.int32)
        for slots in self._requests.values():
            assert len(slots)
            assert len(np.unique(slots)) == len(slots)
            pins[slots] += 1
        assert (pins == self._pins).all()
        assert self._pinned == np.count_nonzero(pins)
        assert self._entries == pins.sum()
        assert self.leased == len(self._table.leases(self.number))
        assert self.held <= self.allowance
        return pins

    def _end_pins(self, slots: npt.NDArray[np.int32]) -> Index:
        self._entries -= len(slots)
        own = self._pins[slots] - 1
        self._pins[slots] = own
        self._pinned -= len(slots) - int(np.count_nonzero(own))
        left = self._table.pins[slots] - 1
        self._table.pins[slots] = left
        unpinned: Index = (slots[left == 0] if np.count_nonzero(left) else slots).astype(np.int64)
        return unpinned

    def _named(self, found: list[Slots]) -> Slots:
        """The slots in `found`, each once."""
        slots = found[0] if len(found) == 1 else np.concatenate(found)
        named = set(slots.tolist())
        if len(named) == len(slots) and -1 not in named:
            return slots
        slots = slots[slots >= 0]
        return slots[self._table.first_of_each(slots)]

    def _unheld(self, slots: Slots | Index) -> npt.NDArray[np.bool_]:
        """Which elements of `slots` would add to what is held: first of its value, and not pinned."""
        unheld: npt.NDArray[np.bool_] = self._table.first_of_each(slots) & (self._pins[slots] == 0)
        return unheld

    def _cut(self, found: list[Slots], strides: tuple[int, ...]) -> list[Slots]:
        """The longest head of the chain, all groups alike, that there is room for."""
        ends = [(np.arange(len(part)) + 1) * stride for part, stride in zip(found, strides, strict=True)]
        end = np.concatenate(ends)
        slots: Index = np.concatenate(found).astype(np.int64)
        order = np.argsort(end, kind="stable")
        order = order[slots[order] >= 0]
        over = np.flatnonzero(np.cumsum(self._unheld(slots[order])) > self.room)
        limit = int(end[order[over[0]]])
        cut: list[Slots] = []
        for part, stride in zip(found, strides, strict=True):
            head = part[: (limit - 1) // stride]
            hits = np.flatnonzero(head >= 0)
            cut.append(head[: hits[-1] + 1 if len(hits) else 0])
        return cut
