"""MIN and the infinite cache, against all choices there are and against every policy."""

import pytest

from tests.sim.trees import best_hits, chain_trace, chains_of, lru_hits, prefix_hits, tree_trace
from tieredkv.config import PolicyConfig
from tieredkv.policy import POLICIES
from tieredkv.sim.bounds import foresee, infinite_hits, min_hits
from tieredkv.sim.replay import replay


@pytest.mark.parametrize("part", range(4))
def test_min_equals_the_best_of_all_choices(part: int) -> None:
    for seed in range(part * 1000, (part + 1) * 1000):
        trace = tree_trace(seed, requests=3 + seed % 5, blocks=2 + seed % 6)
        future = foresee(trace)
        for capacity in (1, 2, 3, 4):
            assert min_hits(future, capacity).sum() == best_hits(trace, capacity), f"seed {seed}, capacity {capacity}"


@pytest.mark.parametrize("seed", range(20))
def test_min_by_its_definition(seed: int) -> None:
    trace = tree_trace(seed, requests=60, blocks=40)
    chains = chains_of(trace)
    for capacity in (1, 5, 12, 100):
        kept: set[int] = set()
        expected = []
        for number, chain in enumerate(chains):
            expected.append(prefix_hits(chain, kept))

            def worth(block: int, now: int = number) -> tuple[int, int]:
                later = [each for each in range(now + 1, len(chains)) if block in chains[each]]
                return (later[0], chains[later[0]].index(block)) if later else (len(chains), 0)

            wanted = sorted((block for block in kept | set(chain) if worth(block)[0] < len(chains)), key=worth)
            kept = set(wanted[:capacity])
        assert min_hits(foresee(trace), capacity).tolist() == expected


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_policy_is_above_min_and_min_is_never_above_infinite(name: str) -> None:
    for seed in range(15):
        trace = tree_trace(seed, requests=30, blocks=4 + seed % 30, gap_s=5.0)
        future = foresee(trace)
        for capacity in (1, 3, 7, 15):
            outcome = replay(trace, PolicyConfig(name=name), capacity, reserve_chunks=1 + seed % 5)
            bound = min_hits(future, capacity)
            assert outcome.block_hits <= bound.sum(), f"seed {seed}, capacity {capacity}"
            assert (bound <= infinite_hits(future)).all()
            assert (outcome.request_hits <= infinite_hits(future)).all()


def test_more_room_never_costs_min_a_hit() -> None:
    for seed in range(50):
        future = foresee(tree_trace(seed, requests=40, blocks=20))
        totals = [int(min_hits(future, capacity).sum()) for capacity in range(1, 22)]
        assert totals == sorted(totals)
        assert totals[-1] == infinite_hits(future).sum()


def test_a_trace_without_blocks_has_no_hits() -> None:
    future = foresee(chain_trace([[], []]))
    assert infinite_hits(future).tolist() == min_hits(future, 3).tolist() == [0, 0]


def test_min_beats_lru_where_it_should() -> None:
    # One block is asked for again and again between floods that LRU keeps instead.
    trace = chain_trace([[0], [10, 11], [0], [20, 21], [0], [30, 31], [0]])
    assert sum(lru_hits(trace, 1)) == 0
    assert min_hits(foresee(trace), 1).tolist() == [0, 0, 1, 0, 1, 0, 1]
