"""Random traces over small prefix trees, and what they give in a model that is as plain as can be."""

from collections.abc import Sequence
from itertools import combinations
from random import Random

from tieredkv.sim.traces import Request, Trace
from tieredkv.types import Key

BLOCK_TOKENS = 16


def tree_trace(seed: int, *, requests: int, blocks: int, gap_s: float = 1.0) -> Trace:
    """Walks down a random tree of at most `blocks` blocks, some of them from its roots to a leaf."""
    random = Random(seed)
    parent = [random.randrange(-1, each) if each else -1 for each in range(blocks)]
    if random.random() < 0.5:
        # Long chains with few branches.
        parent = [each - 1 if random.random() < 0.7 else above for each, above in enumerate(parent)]
    chains = []
    for _ in range(requests):
        at, chain = random.randrange(blocks), []
        while at >= 0:
            chain.append(at)
            at = parent[at]
        chains.append(chain[::-1])
    return chain_trace(chains, gap_s=gap_s)


def chain_trace(chains: Sequence[Sequence[int]], *, gap_s: float = 1.0, sessions: Sequence[str] = ()) -> Trace:
    """A request for each chain of block numbers, `gap_s` apart."""
    keys = {each: Key(each.to_bytes(16, "big")) for chain in chains for each in chain}
    requests = [
        Request(
            number * gap_s,
            [keys[each] for each in chain],
            len(chain) * BLOCK_TOKENS,
            0,
            sessions[number] if sessions else "",
            {},
        )
        for number, chain in enumerate(chains)
    ]
    return Trace("tree", BLOCK_TOKENS, requests, sum(map(len, chains)), len(keys))


def chains_of(trace: Trace) -> list[list[int]]:
    return [[int.from_bytes(key, "big") for key in request.keys] for request in trace.requests]


def prefix_hits(chain: Sequence[int], resident: frozenset[int] | set[int]) -> int:
    for depth, block in enumerate(chain):
        if block not in resident:
            return depth
    return len(chain)


def lru_hits(trace: Trace, capacity: int) -> list[int]:
    """The textbook's: after each request the blocks used last stay, the shallower of those used together."""
    used: dict[int, tuple[int, int]] = {}
    hits = []
    for number, chain in enumerate(chains_of(trace)):
        hits.append(prefix_hits(chain, set(used)))
        used |= {block: (-number, depth) for depth, block in enumerate(chain)}
        used = dict(sorted(used.items(), key=lambda each: each[1])[:capacity])
    return hits


def best_hits(trace: Trace, capacity: int) -> int:
    """The most hits that any choice of what to keep gives, prefix-closed or not: all of them are tried."""
    total_of: dict[frozenset[int], int] = {frozenset(): 0}
    for chain in chains_of(trace):
        following: dict[frozenset[int], int] = {}
        for resident, total in total_of.items():
            hits = total + prefix_hits(chain, resident)
            for kept in _subsets(sorted(resident | set(chain)), capacity):
                if following.get(kept, -1) < hits:
                    following[kept] = hits
        total_of = following
    return max(total_of.values())


def _subsets(blocks: list[int], most: int) -> list[frozenset[int]]:
    """All choices of `most` of `blocks`: fewer are never better, since nothing is gained by room."""
    return [frozenset(each) for each in combinations(blocks, min(most, len(blocks)))]
