"""From counted uses to indices: hazards of reuse by class and age, and what a slot-second is worth.

For each class and age bin two weights are counted: E, what was used again at that age, and N, what was
there to be used (actuarial: half a weight at each edge of a bin that is crossed). The hazard of a class
is shrunk towards that of its parent class, and that towards the pool of all, so that a rare class costs
little. The index of a class at an age is Gittins' (Gittins 1979; for caches: Jain & Lin's and others'
"hit density"): the best ratio, over all times to stop at, of expected hits to slot-seconds.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.policy.gix.ages import BINS, EDGES, WIDTHS
from tieredkv.policy.gix.classes import BASE, ENDED, HINTS, HIT_BUCKETS, KEEP, NEW_BUCKETS, NOTHING_SAID, PARENTS

Table = npt.NDArray[np.float64]

_HAZARD_MAX: Final = 0.98
_PRIOR_SCALE_S: Final = 60.0
_PRIOR_SHAPE: Final = 0.3
"""The prior's survival is ((age + scale) / scale) ** -shape: the longer unused, the longer to go."""

_FORGET: Final = 0.5
"""What a bin has to say of the next one, when that was not seen."""

_NEAR: Final = 0.85 ** np.abs(np.arange(BINS)[:, None] - np.arange(BINS)[None])
"""What bins have to say of each other's multiplier."""

_HITS_PRIOR: Final = (0.5, 1.0, 1.3, 1.6, 2.0, 2.5)
"""Before anything is known: what was used often is used again sooner."""

_HINT_PRIOR: Final = {ENDED: 0.2, KEEP: 2.0}
_RETURN_PRIOR: Final = 3.0
"""Before anything is known of this application's hints, they are half believed."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Weights of the learning. Results are flat around all of them, but for theta <= 0.5 (worse).

    `theta`: a new chunk enters when its index is at least so much of its victim's. `half_life_s`: old
    counts weigh half after it. `k_*`: weight of what is above a class in its hazard (per bin), `m_*`: in
    its multiplier; `_child` and `_hint`: of a class below its parent; `m_worth`: of the prior of a hint.
    """

    theta: float = 1.0
    half_life_s: float = 3600.0
    k_pool: float = 30.0
    k_class: float = 30.0
    m_class: float = 6.0
    k_child: float = 200.0
    m_child: float = 15.0
    k_hint: float = 1000.0
    m_hint: float = 100.0
    m_worth: float = 10.0


class Counts:
    """E and N of all classes (rows: hint * BASE + base class), and their decay."""

    def __init__(self) -> None:
        self.used: Table = np.zeros((HINTS * BASE, BINS))
        self.exposed: Table = np.zeros((HINTS * BASE, BINS))

    def add(self, used: Table, crossed: Table, born: Table) -> None:
        """Uses per class and bin; weights that crossed the upper edge of each bin; and new ones (per class).

        A use counts as a crossing of half a bin.
        """
        self.used += used
        self.exposed += 0.5 * (used + crossed)
        self.exposed[:, 1:] += 0.5 * crossed[:, :-1]
        self.exposed[:, 0] += 0.5 * born

    def decay(self, factor: float) -> None:
        """Weigh all that was counted by `factor`."""
        self.used *= factor
        self.exposed *= factor


def prior_hazard() -> Table:
    """Probability of reuse within each bin when nothing is known."""
    edges = np.array(EDGES) + _PRIOR_SCALE_S
    hazard: Table = 1 - (edges[:-1] / edges[1:]) ** _PRIOR_SHAPE
    return hazard


def indices(counts: Counts, tuning: Tuning) -> list[list[float] | None]:
    """Expected hits per slot-second at the start of each bin, per class; one more element repeats the last.

    None for the classes of hints that were never given.
    """
    used = counts.used.reshape(HINTS, BASE, BINS)
    exposed = counts.exposed.reshape(HINTS, BASE, BINS)
    base = _base_hazards(used.sum(0), exposed.sum(0), tuning)
    rows: list[list[float] | None] = []
    for hint in range(HINTS):
        if hint != NOTHING_SAID and not exposed[hint].any():
            rows += [None] * BASE
            continue
        hazard = base if hint == NOTHING_SAID and not exposed[1:].any() else None
        if hazard is None:
            hazard = _hinted(base, used[hint], exposed[hint], hint, tuning)
        index = gittins(hazard)
        rows += np.concatenate((index, index[:, -1:]), axis=1).tolist()
    return rows


def _base_hazards(used: Table, exposed: Table, tuning: Tuning) -> Table:
    """Hazards of the base classes: pool of all -> parents (turn x hits, trunk gaps) -> what was added."""
    pool = _smooth(_pooled(used.sum(0), exposed.sum(0), tuning.k_pool))
    chains = PARENTS * NEW_BUCKETS
    parent_used = np.concatenate((used[:chains].reshape(PARENTS, NEW_BUCKETS, BINS).sum(1), used[chains:]))
    parent_exposed = np.concatenate((exposed[:chains].reshape(PARENTS, NEW_BUCKETS, BINS).sum(1), exposed[chains:]))
    prior = np.concatenate((np.tile(_HITS_PRIOR, PARENTS // HIT_BUCKETS), np.ones(BASE - chains)))
    parents = _shrunk(parent_used, parent_exposed, pool[None], prior, tuning.k_class, tuning.m_class)
    above = np.repeat(parents[:PARENTS], NEW_BUCKETS, axis=0)
    children = _shrunk(used[:chains], exposed[:chains], above, np.ones(chains), tuning.k_child, tuning.m_child)
    return np.concatenate((children, parents[PARENTS:]))


def _pooled(used: Table, exposed: Table, k: float) -> Table:
    """Hazards of all classes together. Ages that were not seen yet go on as the ones before them.

    Without that a policy that never saw an age hopes there for the prior's hits, and keeps what is old
    to see them.
    """
    prior = prior_hazard()
    towards = np.empty_like(prior)
    seen = expected = 1.0
    for at in range(BINS):
        seen = _FORGET * seen + used[at]
        expected = _FORGET * expected + exposed[at] * prior[at]
        towards[at] = min(prior[at] * seen / expected, _HAZARD_MAX)
    pooled: Table = (used + k * towards) / (exposed + k)
    return pooled


def _hinted(base: Table, used: Table, exposed: Table, hint: int, tuning: Tuning) -> Table:
    """Hazards of the classes of one hint. What the hint is worth is learnt over all classes together."""
    prior = 1.0 if hint == NOTHING_SAID else _HINT_PRIOR.get(hint, _RETURN_PRIOR)
    worth = _multipliers(used.sum(0)[None], exposed * base, np.array([prior]), tuning.m_worth)
    believed = np.minimum(base * worth, _HAZARD_MAX)
    return _shrunk(used, exposed, believed, np.ones(BASE), tuning.k_hint, tuning.m_hint)


def _shrunk(
    used: Table,
    exposed: Table,
    above: Table,
    prior: Table,
    k: float,
    m: float,
) -> Table:
    """Hazards of classes (rows): their own counts, with `k` weights of `above` times their multiplier."""
    towards = np.minimum(_multipliers(used, exposed * above, prior, m) * above, _HAZARD_MAX)
    hazard: Table = np.minimum((used + k * towards) / (exposed + k), _HAZARD_MAX)
    return hazard


def _multipliers(used: Table, expected: Table, prior: Table, m: float) -> Table:
    """By what each class exceeds what was expected at an age and around it; a row per class.

    `prior` (per class) has the weight `m`.
    """
    if len(used) != len(expected):
        expected = expected.sum(0)[None]
    ratio: Table = (m * prior[:, None] + used @ _NEAR) / (m + expected @ _NEAR)
    return ratio


def _smooth(hazard: Table) -> Table:
    """A hazard per bin, smoothed as a rate with half the weight on each neighbour."""
    rate = -np.log1p(-np.minimum(hazard, _HAZARD_MAX)) / WIDTHS
    padded = np.concatenate((rate[:1], rate, rate[-1:]))
    smooth = (0.5 * padded[:-2] + padded[1:-1] + 0.5 * padded[2:]) / 2
    smoothed: Table = 1 - np.exp(-smooth * WIDTHS)
    return smoothed


def gittins(hazard: Table) -> Table:
    """Index of each row at the start of each bin: the best of hits / slot-seconds over all stopping bins."""
    survival = np.cumsum(np.log1p(-hazard), axis=1) - np.log1p(-hazard)
    cost = WIDTHS * (1 - hazard / 2)
    index = np.empty_like(hazard)
    for start in range(BINS):
        alive = np.exp(survival[:, start:] - survival[:, start : start + 1])
        hits = np.cumsum(alive * hazard[:, start:], axis=1)
        seconds = np.cumsum(alive * cost[:, start:], axis=1)
        index[:, start] = (hits / seconds).max(axis=1)
    return index
