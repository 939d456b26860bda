"""What is told apart when reuse is learnt: chunks of one class share a table of hazards.

A chunk is of a *trunk* when many chains branch off after it (a system prompt); then the time between its
last two uses counts. Else its class is: how often it was used again, whether its chain had been used
before (a later turn of a session), and how much the last use added to the chain. On top of that comes
what the application said of its future.
"""

from bisect import bisect_right
from typing import Final

from tieredkv.policy.hints import UseHints

HITS_MAX: Final = 9
_HIT_BUCKET: Final = (0, 1, 2, 3, 3, 4, 4, 4, 4, 5)
HIT_BUCKETS: Final = 6
NEW_BUCKETS: Final = 6
PARENTS: Final = 2 * HIT_BUCKETS
"""Classes without what was added: (first turn or later) x hits."""

_TRUNK_GAPS_S: Final = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_TRUNK: Final = PARENTS * NEW_BUCKETS
BASE: Final = _TRUNK + len(_TRUNK_GAPS_S) + 1
"""Number of classes without hints."""

_RETURN_S: Final = (30.0, 300.0)
HINTS: Final = 1 + 1 + 1 + len(_RETURN_S) + 1
"""Nothing said; ended; keep; returns within a short, a medium, a long or untold time."""

NOTHING_SAID: Final = 0
ENDED: Final = 1
KEEP: Final = 2
RETURNS: Final = 3


def trunk_class(gap_s: float) -> int:
    """Base class of a trunk that was used `gap_s` seconds before."""
    return _TRUNK + bisect_right(_TRUNK_GAPS_S, gap_s)


def chain_class(hits: int, later_turn: bool, new_bucket: int) -> int:
    """Base class of a chunk that was used `hits` (at most HITS_MAX) times after the first."""
    return ((HIT_BUCKETS if later_turn else 0) + _HIT_BUCKET[hits]) * NEW_BUCKETS + new_bucket


def hint_class(hints: UseHints) -> int:
    """What was said, as a number below HINTS. Of contradictions the one that frees memory counts."""
    if hints.closed or hints.one_shot:
        return ENDED
    if hints.return_within_s is not None:
        return RETURNS + bisect_right(_RETURN_S, hints.return_within_s)
    return KEEP if hints.keep else NOTHING_SAID
