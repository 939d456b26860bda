"""Which engine each request of a trace goes to."""

from enum import StrEnum
from typing import Final

import numpy as np
from numpy.random import default_rng

from tieredkv.sim.traces import Trace
from tieredkv.types import Key

TRUNK_FANOUT_MIN: Final = 4
"""A block that so many different blocks followed is shared by sessions, and tells nothing of one."""

SKEW: Final = 0.6
"""Part of the new sessions that all go to the first engine; the rest is spread over all."""


class Routing(StrEnum):
    """How a load balancer spreads requests.

    SESSION: a session stays where it began, sessions are spread evenly. SKEWED: the same, but most of them
    begin at the first engine. RANDOM: each request by itself.
    """

    SESSION = "session"
    RANDOM = "random"
    SKEWED = "skewed"


def route(trace: Trace, engines: int, routing: Routing, seed: int) -> list[int]:
    """The engine, from 0, of each request. The same for the same seed.

    A request belongs to the session that used the deepest known block of its chain, unless that is a trunk.
    """
    assert engines >= 1
    drawn = default_rng(seed)
    spread: list[int] = drawn.integers(engines, size=len(trace.requests)).tolist()
    if engines == 1 or routing is Routing.RANDOM:
        return spread
    if routing is Routing.SKEWED:
        spread = np.where(drawn.random(len(spread)) < SKEW, 0, spread).tolist()
    affinity = _Affinity()
    routed: list[int] = []
    for request, new_session in zip(trace.requests, spread, strict=True):
        engine = affinity.engine_of(request.keys)
        if engine is None:
            engine = new_session
        affinity.used(request.keys, engine)
        routed.append(engine)
    return routed


class _Affinity:
    """Who used each block last, and how many different blocks followed it."""

    def __init__(self) -> None:
        self._engine_of: dict[Key, int] = {}
        self._fanout: dict[Key, int] = {}

    def engine_of(self, keys: list[Key]) -> int | None:
        """The engine of the session of `keys`; None for a new one."""
        known = self._known(keys)
        # Below a trunk the session has nothing of its own yet, and above it all is shared too.
        if not known or self._fanout.get(keys[known - 1], 0) >= TRUNK_FANOUT_MIN:
            return None
        return self._engine_of[keys[known - 1]]

    def used(self, keys: list[Key], engine: int) -> None:
        known = self._known(keys)
        for parent in keys[max(0, known - 1) : len(keys) - 1]:
            self._fanout[parent] = self._fanout.get(parent, 0) + 1
        self._engine_of.update(dict.fromkeys(keys, engine))

    def _known(self, keys: list[Key]) -> int:
        """How many blocks were used before: a head, since keys are chained, found by bisection."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in self._engine_of:
                low = middle + 1
            else:
                high = middle
        return low
