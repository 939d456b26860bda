"""Who leaves next: a queue of runs per class, the longest unused first, and the least index of their heads."""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace

from tieredkv.policy.gix.ages import EDGES, WIDTHS, age_bin
from tieredkv.policy.gix.classes import BASE
from tieredkv.policy.gix.runs import Run

HEAP_AGE_S_MAX = 0.25
"""How long indices of queue heads are believed; ages of seconds to hours change little meanwhile."""

_WIDTHS: list[float] = WIDTHS.tolist()

Tables = list[list[float] | None]


class Queues:
    """Runs with residents by class. `tables[class]` gives the index at the start of each age bin.

    The heap has an entry (index, number, class, time of last use, run) for the head of each queue; entries whose
    run is no head any more are found out when they come up.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._queues: dict[int, OrderedDict[Run, None]] = {}
        self._heap: list[tuple[float, int, int, float, Run]] = []
        self._heap_s = float("-inf")
        self._number = 0

    def index(self, class_: int, age_s: float) -> float:
        """Expected hits per slot-second at this age; linear within a bin."""
        # A hint that came after the tables were built: what its base class promises.
        table = self.tables[class_] or self.tables[class_ % BASE]
        assert table is not None
        at = age_bin(age_s)
        return table[at] + (table[at + 1] - table[at]) * min(1.0, (age_s - EDGES[at]) / _WIDTHS[at])

    def renew(self, tables: Tables) -> None:
        """New indices count from now on."""
        self.tables = tables
        self._heap_s = float("-inf")

    def push(self, run: Run, now_s: float, *, oldest: bool = False) -> None:
        """Put it at the young (or the old) end of its class."""
        assert not run.queued
        run.queued = True
        queue = self._queues.get(run.class_)
        if queue is None:
            queue = self._queues[run.class_] = OrderedDict()
        alone = not queue
        queue[run] = None
        if oldest:
            queue.move_to_end(run, last=False)
        if alone or oldest:
            heappush(self._heap, self._entry(run, now_s))

    def drop(self, run: Run) -> None:
        """Take it out, if it is in."""
        if run.queued:
            run.queued = False
            del self._queues[run.class_][run]

    def lowest(self, now_s: float) -> tuple[float, Run] | None:
        """Index and run of the head that leaves next; it stays where it is."""
        if now_s - self._heap_s > HEAP_AGE_S_MAX:
            self._heap = [self._entry(next(iter(queue)), now_s) for queue in self._queues.values() if queue]
            heapify(self._heap)
            self._heap_s = now_s
        heap = self._heap
        while heap:
            index, _, class_, used_s, run = heap[0]
            head = next(iter(self._queues[class_]), None)
            if head is run and used_s == run.used_s:
                return index, run
            if head is None:
                heappop(heap)
            else:
                heapreplace(heap, self._entry(head, now_s))
        return None

    def ascending(self, now_s: float) -> Iterator[tuple[float, Run]]:
        """All queued runs, by the index of those that are before them in their class.

        The first costs next to nothing: often it is enough.
        """
        lowest = self.lowest(now_s)
        if lowest is None:
            return
        yield lowest
        queues = [iter(queue) for queue in self._queues.values() if queue]
        heap = [(self.index(run.class_, now_s - run.used_s), at, run) for at, run in enumerate(map(next, queues))]
        heapify(heap)
        while heap:
            index, at, run = heap[0]
            if run is not lowest[1]:
                yield index, run
            following = next(queues[at], None)
            if following is None:
                heappop(heap)
            else:
                heapreplace(heap, (self.index(following.class_, now_s - following.used_s), at, following))

    def clear(self) -> None:
        """Drop all."""
        self._queues.clear()
        self._heap.clear()

    def check(self) -> None:
        """Assert that runs are in the queue of their class."""
        for class_, queue in self._queues.items():
            assert all(run.class_ == class_ and run.queued and run.resident for run in queue)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def _entry(self, run: Run, now_s: float) -> tuple[float, int, int, float, Run]:
        self._number += 1
        return self.index(run.class_, now_s - run.used_s), self._number, run.class_, run.used_s, run
