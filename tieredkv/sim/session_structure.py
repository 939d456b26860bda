"""Which requests belong together, and how sessions go on."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tieredkv.sim.reuse import Reuse, dense_chains
from tieredkv.sim.traces import Trace

_SHARED: Final = -2
_NOBODY: Final = -1


@dataclass(frozen=True, slots=True)
class Sessions:
    """The session of each request, numbered by first sight, and whether the trace named them."""

    of_request: NDArray[np.int64]
    named: bool

    @property
    def turns(self) -> NDArray[np.int64]:
        """Requests of each session."""
        return np.bincount(self.of_request)

    def gaps_s(self, trace: Trace) -> NDArray[np.float64]:
        """Times between neighbouring requests of a session, from arrival to arrival."""
        times_s = np.array([request.time_s for request in trace.requests])
        order = np.argsort(self.of_request, kind="stable")
        same = np.diff(self.of_request[order]) == 0
        gaps: NDArray[np.float64] = np.diff(times_s[order])[same]
        return gaps


def find_sessions(trace: Trace, reuse: Reuse) -> Sessions:
    """The sessions that the trace names; of one that names none, those that the chains suggest.

    A prompt that begins with all full blocks of an earlier prompt continues its session, unless the
    deepest block that it knows is in the prompts of two sessions: that one is a trunk.
    """
    if any(request.session for request in trace.requests):
        numbers: dict[object, int] = {}
        named = [
            numbers.setdefault(request.session or index, len(numbers)) for index, request in enumerate(trace.requests)
        ]
        return Sessions(np.array(named, np.int64), named=True)
    owner = np.full(trace.unique_blocks, _NOBODY, np.int64)
    length: list[int] = []
    found = np.zeros(len(trace.requests), np.int64)
    for number, ids in enumerate(dense_chains(trace)):
        known = int(reuse.known[number])
        session = int(owner[ids[known - 1]]) if known else _NOBODY
        if session < 0 or known < length[session]:
            session = len(length)
            length.append(len(ids))
            owner[ids[:known]] = _SHARED
        length[session] = len(ids)
        owner[ids[known:]] = session
        found[number] = session
    return Sessions(found, named=False)
