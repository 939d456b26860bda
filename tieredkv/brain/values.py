"""What the manager is told and what it answers."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tieredkv.brain.moves import Fetch, Promote
from tieredkv.types import EngineId, Generation, Key, RequestId, SlotId

Slots = npt.NDArray[np.int32]
Generations = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
POSITION_MAX = 2**31 - 1
"""Greatest index of a chain position (they travel as int32)."""


@dataclass(frozen=True, slots=True)
class AdoptedChunk:
    """A published chunk that a former sidecar left in the pool, as its header tells."""

    slot: SlotId
    generation: Generation
    group: int
    key: Key
    parent: Key
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Per group the slots of its chunks in chain order (-1 absent), all pinned, and their generations
    (0 absent); trailing absent ones are left out. `evicted` counts the chain positions past the last
    resident one (or past what is coming) that were known and evicted.

    `coming` tells how many positions of the chain will be ready if all goes well that a Progress will
    tell of; 0 if nothing is on its way for this request.
    """

    slots: tuple[Slots, ...]
    generations: tuple[Generations, ...]
    evicted: int
    coming: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Leased:
    """Slots that the engine may now write, and which chunks left for them (keys by group)."""

    slots: Slots
    generations: Generations
    evicted: dict[int, list[Key]]


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """Rows of the publication that are readable from now on, and the generations of their slots.

    The lease of every named slot of this engine has ended; slots of other rows are free.
    """

    rows: Rows
    generations: Generations


@dataclass(frozen=True, slots=True, eq=False)
class Forgotten:
    """What a reset made invisible: keys by group.

    `slots` are all whose headers a later sidecar must not believe: theirs (pinned ones included), and
    those of chunks that were evicted before and not overwritten yet.
    """

    slots: Slots
    evicted: dict[int, list[Key]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of a promotion that are readable from now on: their slots need headers."""

    job: Promote | Fetch
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What came for a request that waits: chunk numbers[i] of groups[i] is in slots[i], pinned; in the
    order of the chain. Its first `ready_to` positions have all the chunks that were found or announced for it.

    `over`: nothing more will come; what is not there is a miss for this request.
    """

    engine: EngineId
    request: RequestId
    groups: tuple[int, ...]
    numbers: tuple[int, ...]
    slots: Slots
    generations: Generations
    ready_to: int
    over: bool


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """The end of an offer that was begun under this `ticket`: which of its rows are in a page here now."""

    ticket: int
    stored: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What happened since the last step: chunks that were loaded, requests to be told, chunks that left
    warm (keys by group), offers of other nodes that ended.
    """

    loaded: tuple[Loaded, ...]
    progress: tuple[Progress, ...]
    evicted: dict[int, list[Key]]
    pulled: tuple[Pulled, ...] = ()


NOTHING_STEPPED = Stepped((), (), {})


def _no_counts() -> dict[str, int]:
    return {}


@dataclass(slots=True)
class Tallies:
    """Running counts since start. Results of a publication: stored; present (another engine was
    faster); refused (by admission); stale (leased before a reset); foreign (not leased by this
    engine); nonsense (a key, parent, position or group that cannot be).
    """

    publications: dict[str, int] = field(default_factory=_no_counts)
    evictions: dict[str, int] = field(default_factory=_no_counts)

    def published(self, result: str, count: int = 1) -> None:
        if count:
            self.publications[result] = self.publications.get(result, 0) + count

    def evicted(self, reason: str, count: int) -> None:
        if count:
            self.evictions[reason] = self.evictions.get(reason, 0) + count
