"""How much requests add to what was known of their chains: told apart by quantiles of their own.

Sizes differ between loads and with the size of a chunk, so no fixed borders would do.
"""

from bisect import bisect_left
from collections import deque
from typing import Final

from tieredkv.policy.gix.classes import NEW_BUCKETS

_QUANTILES: Final = (0.1, 0.25, 0.45, 0.65, 0.85)
_FIRST_BORDERS: Final = [4, 8, 16, 32, 64]
_SAMPLE_MIN: Final = 64
_SAMPLE_MAX: Final = 4096
assert len(_QUANTILES) == len(_FIRST_BORDERS) == NEW_BUCKETS - 1


class Additions:
    """The last requests' additions, in chunks, and the borders between their buckets."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=_SAMPLE_MAX)
        self._borders = _FIRST_BORDERS

    def bucket(self, chunks: int) -> int:
        """The bucket of an addition, below NEW_BUCKETS; the larger the addition, the higher."""
        return bisect_left(self._borders, chunks)

    def count(self, chunks: int) -> None:
        """A request added so much."""
        self._last.append(chunks)

    def renew(self) -> None:
        """Let the borders follow what was counted."""
        if len(self._last) >= _SAMPLE_MIN:
            ordered = sorted(self._last)
            self._borders = [ordered[int(quantile * len(ordered))] for quantile in _QUANTILES]
