"""What no policy can beat: Belady's MIN for prefix chains, and a cache without an end.

MIN keeps, after each request, of the residents and that request's blocks the `capacity` ones that are
used again soonest (Belady, IBM Systems Journal 1966), with bypass: a block need not enter. A parent is used
whenever its child is, so of two blocks with the same next use the shallower is kept, and what is kept is
always prefix-closed: no hit is lost to the prefix rule. Block costs are equal, so nothing beats it, a
policy that knows the future included.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from tieredkv.sim.reuse import dense_chains
from tieredkv.sim.traces import Trace

Hits = npt.NDArray[np.int32]
"""Blocks of the longest resident prefix at arrival, per request of the trace."""


@dataclass(frozen=True, slots=True, eq=False)
class Future:
    """When each block of a trace is used again.

    Block refs in the order of the trace; `request` is the number of the request of each, `following` that
    of the request which uses the same block next, or the number of all requests if none does. `start` has
    the first ref of each request, and the number of all refs at its end.
    """

    start: npt.NDArray[np.int64]
    request: npt.NDArray[np.int32]
    following: npt.NDArray[np.int32]
    seen: npt.NDArray[np.bool_]


def foresee(trace: Trace) -> Future:
    """The future of every block ref. O(refs log refs); some 30 bytes for each."""
    lengths = np.array([len(request.keys) for request in trace.requests], np.int64)
    start = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    request = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    block = np.concatenate(list(dense_chains(trace)))
    # Refs of the same block side by side, in order of time: the next one is the neighbour.
    order = np.argsort(block, kind="stable")
    again = block[order[:-1]] == block[order[1:]]
    following = np.full(len(request), len(lengths), np.int32)
    following[order[:-1][again]] = request[order[1:][again]]
    seen = np.zeros(len(request), np.bool_)
    seen[order[1:][again]] = True
    return Future(start, request, following, seen)


def infinite_hits(future: Future) -> Hits:
    """Hits when nothing is ever evicted."""
    hits = np.bincount(future.request[future.seen], minlength=len(future.start) - 1)
    return hits.astype(np.int32)


def min_hits(future: Future, capacity_chunks: int) -> Hits:
    """Hits of MIN with room for `capacity_chunks`.

    The residents that request t uses next are the head of its chain, so their number says which they
    are: the state is that number for each request to come, and an eviction lowers the latest.
    """
    assert capacity_chunks >= 1
    requests = len(future.start) - 1
    waiting = [0] * (requests + 1)
    farthest: list[int] = []
    resident = 0
    hits = np.zeros(requests, np.int32)
    for number, stretches in enumerate(_stretches(future)):
        hits[number] = waiting[number]
        resident -= waiting[number]
        for following, blocks in stretches:
            if following < requests:
                if not waiting[following]:
                    heappush(farthest, -following)
                waiting[following] += blocks
                resident += blocks
        while resident > capacity_chunks:
            latest = -farthest[0]
            leaving = min(waiting[latest], resident - capacity_chunks)
            waiting[latest] -= leaving
            resident -= leaving
            if not waiting[latest]:
                heappop(farthest)
    return hits


def _stretches(future: Future) -> list[list[tuple[int, int]]]:
    """Per request its next uses, each with the number of blocks that have it."""
    refs = len(future.request)
    requests = len(future.start) - 1
    result: list[list[tuple[int, int]]] = [[] for _ in range(requests)]
    if not refs:
        return result
    new = np.ones(refs, np.bool_)
    new[1:] = (future.following[1:] != future.following[:-1]) | (future.request[1:] != future.request[:-1])
    first = np.flatnonzero(new)
    lengths = np.diff(np.append(first, refs))
    numbers: list[int] = future.request[first].tolist()
    followings: list[int] = future.following[first].tolist()
    for number, following, blocks in zip(numbers, followings, lengths.tolist(), strict=True):
        result[number].append((following, blocks))
    return result
