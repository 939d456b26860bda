"""The domain's values, shared by every layer. Nothing here does anything."""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NewType

Key = NewType("Key", bytes)
"""Hash of a whole prefix up to and including one position of a chain (16 to 64 bytes).

Keys are chained: equal keys mean equal tokens from the start of the prompt. A chunk is named by its
key and the index of its KV group.
"""

SlotId = NewType("SlotId", int)
"""Index of a slot in its pool, 0 to slots - 1."""

Generation = NewType("Generation", int)
"""Number of one tenancy of one slot; never used twice in a pool. 0 means never used."""

EngineId = NewType("EngineId", str)
RequestId = NewType("RequestId", str)

KEY_BYTES_MIN = 16
"""Shortest key: fewer bytes of a hash would collide."""

KEY_BYTES_MAX = 64
"""Longest key that a slot header can hold."""

KEY_SIZES: Final = frozenset(range(KEY_BYTES_MIN, KEY_BYTES_MAX + 1))
"""All sizes that a key can have: a whole chain is checked against them at once."""


class SlotState(IntEnum):
    """What a slot is used for. Only the brain changes it."""

    UNPOPULATED = 0  # its pages were not touched yet; not usable
    FREE = 1
    LEASED = 2  # an engine may write its body; invisible to look-ups
    READY = 3  # published: header and trailer agree
    LOADING = 4  # a mover writes it (promotion)
    DEMOTING = 5  # a mover reads it (demotion)
    QUARANTINED = 6  # a process that may still write it is not known to be gone


class MissReason(Enum):
    """Why prefix tokens were recomputed; label values of the metrics."""

    ABSENT = "absent"  # not known: never stored, or forgotten
    EVICTED = "evicted"
    SHORT = "short"  # not a whole chunk, or the last token, which is always computed
    LATE = "late"  # the answer did not come before the deadline
    DETACHED = "detached"  # no sidecar, or tiering refused
    FAILED = "failed"  # found, but the copy did not prove itself


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of the chunks of one namespace. Equal for all engines that share it.

    `chain_tokens` is the token distance between neighbouring keys of a chain; the chunk k of group g
    ends at chain index (k + 1) * group_strides[g] - 1.
    """

    body_bytes: int
    chain_tokens: int
    group_strides: tuple[int, ...]
