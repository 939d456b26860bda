"""Who is how old: the weights of chunks by class and time of last use, and what became of them.

A cohort holds the chunks that one request put into one class. Its weight falls as they are used again.
How ages advance is not followed: a sweep over all cohorts counts, at each rebuild of the tables, which
edges of age bins they crossed since the one before.
"""

from array import array
from typing import Final

import numpy as np

from tieredkv.policy.gix.ages import AGE_S_MAX, BINS, EDGES, age_bin
from tieredkv.policy.gix.classes import BASE, HINTS
from tieredkv.policy.gix.tables import Counts

COHORTS_MAX: Final = 65_536
"""Cohorts followed. When there are more, every second one is forgotten: ratios stay what they are."""

_CELLS: Final = HINTS * BASE * BINS


class Cohort:
    """Names a row of the log; -1 when it is followed no more."""

    __slots__ = ("row",)

    def __init__(self, row: int) -> None:
        self.row = row


NO_COHORT: Final = Cohort(-1)


class CohortLog:
    """All cohorts that may still be used again, oldest first."""

    def __init__(self) -> None:
        self._cohorts: list[Cohort] = []
        self._born_s = array("d")
        self._weight = array("d")
        self._class = array("i")
        self._swept_s = 0.0
        # Since the last sweep: uses, and edges crossed by what was used, by class and bin.
        self._used = [0.0] * _CELLS
        self._crossed = [0.0] * _CELLS
        self._born = [0.0] * (HINTS * BASE)

    def __len__(self) -> int:
        return len(self._cohorts)

    def start(self, class_: int, now_s: float) -> Cohort:
        """A new, empty cohort."""
        cohort = Cohort(len(self._cohorts))
        self._cohorts.append(cohort)
        self._born_s.append(now_s)
        self._weight.append(0.0)
        self._class.append(class_)
        return cohort

    def enter(self, cohort: Cohort, weight: float) -> None:
        """Chunks of this weight become members. They are as old as it is, or nearly."""
        if cohort.row >= 0:
            self._weight[cohort.row] += weight
            self._born[self._class[cohort.row]] += weight

    def use(self, cohort: Cohort, weight: float, now_s: float) -> None:
        """Members of this weight were used again: they leave."""
        row = cohort.row
        if row < 0:
            return
        self._weight[row] -= weight
        first = self._class[row] * BINS
        born_s = self._born_s[row]
        at = age_bin(now_s - born_s)
        self._used[first + at] += weight
        since = age_bin(self._swept_s - born_s) if self._swept_s > born_s else 0
        if at > since:
            self._crossed[first + since] += weight
            self._crossed[first + at] -= weight

    def leave(self, cohort: Cohort, weight: float) -> None:
        """Members of this weight are followed no more."""
        if cohort.row >= 0:
            self._weight[cohort.row] -= weight

    def abandon(self) -> None:
        """Follow none of the present cohorts any more."""
        for cohort in self._cohorts:
            cohort.row = -1
        self._cohorts = []
        self._born_s, self._weight, self._class = array("d"), array("d"), array("i")

    def sweep(self, counts: Counts, now_s: float) -> None:
        """Add to `counts` what happened since the last sweep."""
        shape = (HINTS * BASE, BINS)
        used = np.array(self._used).reshape(shape)
        crossed = np.array(self._crossed).reshape(shape)
        if self._cohorts:
            born = np.array(self._born_s)
            weight = np.maximum(np.array(self._weight), 0.0)
            class_ = np.array(self._class)
            inner = np.array(EDGES[1:-1])
            since = np.searchsorted(inner, np.maximum(self._swept_s - born, 0.0), side="right")
            at = np.searchsorted(inner, now_s - born, side="right")
            moved = at > since
            flat = np.bincount(class_[moved] * BINS + since[moved], weight[moved], _CELLS)
            flat -= np.bincount(class_[moved] * BINS + at[moved], weight[moved], _CELLS)
            crossed += flat.reshape(shape)
            self._prune(born, weight, now_s)
        counts.add(used, np.maximum(np.cumsum(crossed, axis=1), 0.0), np.array(self._born))
        self._used = [0.0] * _CELLS
        self._crossed = [0.0] * _CELLS
        self._born = [0.0] * (HINTS * BASE)
        self._swept_s = now_s

    def _prune(self, born: "np.ndarray[tuple[int], np.dtype[np.float64]]", weight: object, now_s: float) -> None:
        """Drop the cohorts that have nothing more to tell; every second one when there are too many."""
        if len(self._cohorts) <= COHORTS_MAX:
            return
        keep = (np.asarray(weight) > 1e-9) & (now_s - born < AGE_S_MAX)
        if np.count_nonzero(keep) > COHORTS_MAX // 2:
            keep[np.flatnonzero(keep)[::2]] = False
        for cohort, kept in zip(self._cohorts, keep.tolist(), strict=True):
            if not kept:
                cohort.row = -1
        self._cohorts = [cohort for cohort in self._cohorts if cohort.row >= 0]
        for row, cohort in enumerate(self._cohorts):
            cohort.row = row
        self._born_s = array("d", born[keep].tobytes())
        self._weight = array("d", np.asarray(weight)[keep].tobytes())
        self._class = array("i", np.array(self._class, np.int32)[keep].tobytes())
