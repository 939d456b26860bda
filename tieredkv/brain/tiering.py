"""The cold side of a pool: demotions, promotions and the cold table, as the manager uses them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from tieredkv.brain.cold import ColdTable, Copies
from tieredkv.brain.demotion import Demotions
from tieredkv.brain.elsewhere import Elsewhere, Nowhere
from tieredkv.brain.intake import Intake
from tieredkv.brain.moves import JOB_ROWS_MAX, JobId, Mover
from tieredkv.brain.promotion import Promotions
from tieredkv.brain.values import POSITION_MAX, AdoptedChunk, Stepped
from tieredkv.brain.warm import Warm
from tieredkv.policy.admission import Admission
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.placement import Placement
from tieredkv.types import Key

STEP_RESULTS_MAX = 256
"""Results of the mover that one step takes."""


@dataclass(frozen=True, slots=True)
class ColdTier:
    """What a manager is given to have a cold tier: `pages` chunks fit into it, and `elsewhere` are the others'.

    `policy` (empty) and `admission` are cold's own. Warm keeps between `low_free` and `high_free` slots
    FREE. A request waits `deadline_s` at most for what is loaded for it. A job has `job_rows` chunks at most.
    `next_generation` is greater than every generation that pages hold. What nobody used for `ttl_s`
    seconds leaves the pages.
    """

    pages: int
    policy: EvictionPolicy
    admission: Admission
    mover: Mover
    placement: Placement
    low_free: int
    high_free: int
    copies: Copies = Copies.CLEAN
    deadline_s: float = 1.0
    job_rows: int = JOB_ROWS_MAX
    next_generation: int = 1
    ttl_s: float | None = None
    elsewhere: Elsewhere = field(default_factory=Nowhere)


class Tiering:
    """Cold and the ways to and from it. Its calls keep warm and cold in step."""

    def __init__(self, warm: Warm, cold: ColdTier) -> None:
        numbers = map(JobId, count(1))
        self._warm = warm
        self._mover = cold.mover
        self._copies = cold.copies
        self.table = ColdTable(
            pages=cold.pages,
            groups=len(warm.residents),
            policy=cold.policy,
            admission=cold.admission,
            copies=cold.copies,
            clock=warm.clock,
            next_generation=cold.next_generation,
            ttl_s=cold.ttl_s,
        )
        self.demotions = Demotions(
            warm,
            self.table,
            cold.elsewhere,
            cold.mover,
            cold.placement,
            numbers,
            low_free=cold.low_free,
            high_free=cold.high_free,
            job_rows=cold.job_rows,
        )
        self.promotions = Promotions(
            warm, self.table, cold.elsewhere, self.demotions, cold.mover, cold.placement, numbers,
            deadline_s=cold.deadline_s, reserve=cold.low_free, job_rows=cold.job_rows,
        )  # fmt: skip
        self.intake = Intake(self.table, self.demotions, cold.mover, numbers)

    def entered(self, keys: Sequence[Key], parents: Sequence[Key]) -> None:
        """Engines stored chunks of these positions (or a restart found them)."""
        self.demotions.entered(keys, parents)
        self.table.entered_warm(keys)
        if self._copies is Copies.ALL:
            self.demotions.copy(keys)

    def chain(self, key: Key) -> list[Key]:
        """The chain that ends in `key`, from its head on; empty when warm and cold do not know all of it."""
        keys: list[Key] = []
        below = POSITION_MAX + 1
        while key:
            link = self._link(key)
            # Each tier refuses circles, but one may have been told another parent than the other.
            if link is None or link[1] >= below:
                return []
            keys.append(key)
            key, below = link
        keys.reverse()
        return keys

    def adopt(self, chunks: Sequence[AdoptedChunk]) -> None:
        """Pages that a former sidecar left, after the slots."""
        self.table.adopt(chunks)
        self.demotions.copied([chunk.key for chunk in chunks])

    def step(self, *, idle: bool) -> Stepped:
        """Take the mover's results, and give it work. `idle` as the manager's."""
        for moved in self._mover.poll(STEP_RESULTS_MAX):
            if moved.number in self.promotions:
                self.promotions.finish(moved)
            elif moved.number in self.intake:
                self.intake.finish(moved)
            else:
                self.demotions.finish(moved)
        now_s = self._warm.clock.now_s()
        self.promotions.expire(now_s)
        lacking = self.promotions.start()
        self.demotions.make_room(lacking)
        if lacking:
            self.demotions.hurry(self.promotions.start())
        self.demotions.copy_some()
        self.table.expire()
        if idle:
            self.table.policy.maintain(now_s)
        return Stepped(
            tuple(self.promotions.take_loaded()), tuple(self.promotions.take_progress()), self._warm.gone(),
            tuple(self.intake.take_pulled()),
        )  # fmt: skip

    def clear(self) -> None:
        """The weights changed: what cold holds is worthless, and what is on its way as well."""
        self.promotions.clear()
        self.demotions.clear()
        self.intake.clear()
        self.table.clear()

    def check(self) -> npt.NDArray[np.int32]:
        """Assert every invariant; returns the mover's pins per slot. O(slots + pages)."""
        pins = self.demotions.check()
        self.promotions.check()
        filling = [*self.demotions.filling(), *self.intake.filling()]
        self.table.check(self.demotions.in_warm_for_good(), filling, self.promotions.reads())
        return pins

    def _link(self, key: Key) -> tuple[Key, int] | None:
        """Parent and position of a key; None when neither tier has it."""
        parent = self.demotions.parent(key)
        if parent is not None:
            return parent, self._warm.forest.position(key)
        return self.table.link(key) if self.table.knows(key) else None
