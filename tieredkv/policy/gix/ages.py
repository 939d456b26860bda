"""The bins that ages are counted in: narrow when young, each a fifth wider than the one before later."""

from bisect import bisect_right
from typing import Final

import numpy as np

AGE_S_MAX: Final = 36_000.0
"""What has not been used for longer is counted no more."""

_GROWTH: Final = 1.2


def _edges() -> tuple[float, ...]:
    edges = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0]
    while edges[-1] * _GROWTH < AGE_S_MAX:
        edges.append(edges[-1] * _GROWTH)
    return (*edges, AGE_S_MAX)


EDGES: Final = _edges()
"""Bin b holds the ages from EDGES[b] on and below EDGES[b + 1], in seconds."""

BINS: Final = len(EDGES) - 1
WIDTHS: Final = np.diff(np.array(EDGES))

_INNER: Final = EDGES[1:-1]


def age_bin(age_s: float) -> int:
    """The bin of an age; the last one holds all that is older, too."""
    return bisect_right(_INNER, age_s)
