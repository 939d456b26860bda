"""Keys that were resident once: they tell an evicted chunk from one that was never stored."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from tieredkv.types import Key

_SHARDS_MAX: Final = 64
_SHARD_KEYS_MIN: Final = 1024


class Ghosts:
    """The last evicted keys, at most `ghosts_max`, the longest gone forgotten first.

    Sharded by the last byte of the key, because one ordered dictionary of a million keys stalls for
    150 ms when it grows. Each shard forgets for itself: the order is exact within each, and nearly so over all.
    """

    def __init__(self, ghosts_max: int) -> None:
        assert ghosts_max >= 0
        shards = _SHARDS_MAX
        while shards > 1 and shards * _SHARD_KEYS_MIN > ghosts_max:
            shards //= 2
        self._mask = shards - 1
        self._shard_max = ghosts_max // shards
        self._shards: tuple[OrderedDict[Key, None], ...] = tuple(OrderedDict() for _ in range(shards))

    def add(self, keys: Iterable[Key]) -> None:
        """`keys` were evicted, in this order. They are no ghosts."""
        shards, mask, most = self._shards, self._mask, self._shard_max
        for key in keys:
            shard = shards[key[-1] & mask]
            assert key not in shard
            shard[key] = None
            if len(shard) > most:
                shard.popitem(last=False)

    def remove(self, keys: Iterable[Key]) -> None:
        """`keys` are resident again, or were no ghosts."""
        shards, mask = self._shards, self._mask
        for key in keys:
            shard = shards[key[-1] & mask]
            if key in shard:
                del shard[key]

    def known(self, chain: Sequence[Key], start: int, stride: int) -> int:
        """How many positions of `chain` from `start` on were evicted; every `stride`-th can be resident.

        A bisection: tails leave first and are forgotten first, so what is known of a chain is a head.
        """
        ends = range(start + stride - 1, len(chain), stride)
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if chain[ends[middle]] in self:
                low = middle + 1
            else:
                high = middle
        return low * stride

    def clear(self) -> None:
        for shard in self._shards:
            shard.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._shards[key[-1] & self._mask]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def check(self) -> None:
        """Assert the bound."""
        assert all(len(shard) <= self._shard_max for shard in self._shards)
