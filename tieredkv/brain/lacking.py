"""What a request lacks in warm, and where that is: in cold, on its way, or on other nodes.

Of several KV groups one may have holes on purpose: vLLM stores of a sliding window only the blocks that are in
it, and asks only for those. Which group is like that the brain does not know, so a chunk that is nowhere is a
hole, and the end is a position that no group has. The price: where the hole is in a group that needs every
chunk, what is loaded past it is of no use, and the request waits for it, `deadline_s` at most. It is seldom
paid, because the chunks of a position come and leave together.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import ColdTable
from tieredkv.brain.elsewhere import Copy, Elsewhere
from tieredkv.brain.values import Slots
from tieredkv.types import Key

SEARCH_KEYS = 256
"""Positions that are looked for at once: a chain ends somewhere, most often early."""


@dataclass(frozen=True, slots=True)
class Row:
    """A chunk that a request lacks: where it ends in the chain, number within the group.

    `copy` is where another node has it, if cold had not when the request came.
    """

    end: int
    group: int
    number: int
    key: Key
    parent: Key
    copy: Copy | None


class Search:
    """Looks for what is not in warm. `loading` are the chunks (group, key) that are on their way."""

    def __init__(self, cold: ColdTable, elsewhere: Elsewhere, loading: Container[tuple[int, Key]]) -> None:
        self._cold = cold
        self._elsewhere = elsewhere
        self._loading = loading

    def lacking(self, chain: Sequence[Key], found: list[Slots], strides: tuple[int, ...]) -> tuple[list[Row], int]:
        """What must be loaded, in the order of the chain, for the longest head of it whose every position is in some
        group's chunk; and where that head ends. `found` is what is in warm.
        """
        # By position: whether a chunk of some group holds it.
        covered = np.zeros(len(chain), np.bool_)
        absent: list[npt.NDArray[np.int64]] = []
        for slots, stride in zip(found, strides, strict=True):
            here = np.zeros(len(chain) // stride, np.bool_)
            here[: len(slots)] = slots >= 0
            covered[: len(here) * stride].reshape(-1, stride)[here] = True
            absent.append(np.flatnonzero(~here))
        starts = [int(numbers[0]) * stride for numbers, stride in zip(absent, strides, strict=True) if len(numbers)]
        rows: list[Row] = []
        reach = 0
        for start in range(min(starts, default=len(chain)), len(chain), SEARCH_KEYS):
            stop = min(start + SEARCH_KEYS, len(chain))
            for group, (numbers, stride) in enumerate(zip(absent, strides, strict=True)):
                first, end = np.searchsorted(numbers, (start // stride, stop // stride)).tolist()
                for row in self._there(group, numbers[first:end].tolist(), chain, stride):
                    rows.append(row)
                    covered[row.end - stride : row.end] = True
            holes = np.flatnonzero(~covered[reach:stop])
            reach = reach + int(holes[0]) if len(holes) else stop
            if reach + max(strides) <= stop:
                break  # no chunk that ends further on begins so early
        rows = [row for row in rows if row.end <= reach]
        rows.sort(key=lambda row: (row.end, row.group))
        return rows, reach

    def _there(self, group: int, numbers: Sequence[int], chain: Sequence[Key], stride: int) -> Iterator[Row]:
        """Of these chunks those that can be had from somewhere."""
        keys = [chain[(number + 1) * stride - 1] for number in numbers]
        cold = self._cold.held(group)
        near = [key in cold or (group, key) in self._loading for key in keys]
        copies = iter(self._elsewhere.find(group, [key for key, here in zip(keys, near, strict=True) if not here]))
        for number, key, here in zip(numbers, keys, near, strict=True):
            copy = None if here else next(copies)
            if here or copy is not None:
                end = (number + 1) * stride
                yield Row(end, group, number, key, chain[end - 2] if end > 1 else Key(b""), copy)
