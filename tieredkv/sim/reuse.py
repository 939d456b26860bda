"""How far apart the uses of a block are, exactly, in time proportional to runs of blocks.

The reuse distance of a reference is the number of distinct blocks used since the block's last use: a
cache of so many blocks with plain LRU order hits every reference of a smaller distance (Mattson et al.,
1970). Chains make it cheap. A request that uses a block uses its whole prefix, so of one request's chain
the references whose last use lies in the same earlier request form one run, and all of a run have the same
distance; a Fenwick tree over requests counts the blocks last used in each (Bennett and Kruskal, 1975).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tieredkv.sim.traces import Trace

NEVER: Final = -1
_PROGRESS_REQUESTS: Final = 512

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of references with one last use: of `request`'s chain, `blocks` of them from position `start`.

    `last` is the request of their last use; `distance` is the distinct blocks since. Parallel arrays.
    """

    request: NDArray[np.int64]
    start: NDArray[np.int64]
    blocks: NDArray[np.int64]
    last: NDArray[np.int64]
    distance: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reuse:
    """All reuse of a trace. `uses` counts the references of each block, `known[r]` the blocks of request
    r that were used before, `parent` is the block before each block (NEVER at the start of a chain)."""

    runs: Runs
    uses: NDArray[np.int64]
    known: NDArray[np.int64]
    parent: NDArray[np.int64]


def dense_chains(trace: Trace) -> Iterator[Ids]:
    """The chain of every request, with the blocks numbered 0, 1, ... by first sight."""
    numbers = dict(zip(dict.fromkeys(chain.from_iterable(each.keys for each in trace.requests)), count()))
    for request in trace.requests:
        yield np.fromiter(map(numbers.__getitem__, request.keys), np.int32, len(request.keys))


def measure_reuse(trace: Trace, *, on_progress: Callable[[int, int], None] | None = None) -> Reuse:
    """Find every run of reuse in `trace`."""
    total = len(trace.requests)
    last = np.full(trace.unique_blocks, NEVER, np.int64)
    uses = np.zeros(trace.unique_blocks, np.int64)
    parent = np.full(trace.unique_blocks, NEVER, np.int64)
    known = np.zeros(total, np.int64)
    held = [0] * total  # blocks whose last use is that request
    tree = _Fenwick(total)
    rows: list[tuple[int, int, int, int, int]] = []
    for number, ids in enumerate(dense_chains(trace)):
        if on_progress is not None and number % _PROGRESS_REQUESTS == 0:
            on_progress(number, total)
        if not len(ids):
            continue
        before = last[ids]
        old = int(np.count_nonzero(before != NEVER))
        known[number] = old
        if old < len(ids):
            parent[ids[old:]] = np.concatenate((ids[old - 1 : old] if old else [NEVER], ids[old:-1]))
        if old:
            starts = [0, *(np.flatnonzero(np.diff(before[:old])) + 1).tolist(), old]
            for start, end in pairwise(starts):
                last_use = int(before[start])
                # Since then: all whose last use is later, the rest of that request's, and this request's own.
                distance = tree.sum_after(last_use) + held[last_use] - 1
                rows.append((number, start, end - start, last_use, distance + start))
                held[last_use] -= end - start
                tree.add(last_use, start - end)
        last[ids] = number
        uses[ids] += 1
        held[number] = len(ids)
        tree.add(number, len(ids))
    if on_progress is not None:
        on_progress(total, total)
    columns = np.array(rows, np.int64).reshape(-1, 5).T
    return Reuse(Runs(*columns), uses, known, parent)


class _Fenwick:
    """Sums over a growing range of requests (Fenwick, 1994)."""

    def __init__(self, size: int) -> None:
        self._sums = [0] * (size + 1)
        self._total = 0

    def add(self, index: int, value: int) -> None:
        self._total += value
        index += 1
        while index < len(self._sums):
            self._sums[index] += value
            index += index & -index

    def sum_after(self, index: int) -> int:
        """Sum of the values behind `index`."""
        index += 1
        before = 0
        while index:
            before += self._sums[index]
            index &= index - 1
        return self._total - before
