"""Replay: the manager gives what the textbook gives, and counts what it did."""

import numpy as np
import pytest

from tests.sim.trees import BLOCK_TOKENS, chain_trace, lru_hits, tree_trace
from tieredkv.config import PolicyConfig
from tieredkv.policy import POLICIES
from tieredkv.sim.replay import replay

LRU = PolicyConfig(name="lru")


@pytest.mark.parametrize("reserve", [1, 2, 5, 64])
def test_lru_is_the_textbooks_whatever_the_reserve(reserve: int) -> None:
    for seed in range(25):
        trace = tree_trace(seed, requests=40, blocks=3 + seed % 40)
        for capacity in (1, 2, 5, 11, 40):
            outcome = replay(trace, LRU, capacity, reserve_chunks=reserve)
            assert outcome.request_hits.tolist() == lru_hits(trace, capacity), f"seed {seed}, capacity {capacity}"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_what_came_in_left_or_is_there_and_a_second_replay_is_the_same(name: str) -> None:
    trace = tree_trace(7, requests=200, blocks=120)
    first = replay(trace, PolicyConfig(name=name), 30)
    assert 0 <= first.stores - first.evictions <= 30
    assert first.stores + first.refusals <= first.block_refs - first.block_hits
    second = replay(trace, PolicyConfig(name=name), 30)
    assert (first.request_hits == second.request_hits).all()
    assert (first.stores, first.evictions, first.refusals) == (second.stores, second.evictions, second.refusals)


def test_rates() -> None:
    outcome = replay(chain_trace([[0, 1, 2], [0, 1, 5], []]), LRU, 10)
    assert outcome.request_hits.tolist() == [0, 2, 0]
    assert outcome.block_hit_rate == pytest.approx(2 / 6)
    assert outcome.token_hit_rate == pytest.approx(2 * BLOCK_TOKENS / (6 * BLOCK_TOKENS))
    assert outcome.us_per_block_ref > 0
    assert (outcome.stores, outcome.evictions, outcome.block_refs) == (4, 0, 6)


def test_progress_counts_requests() -> None:
    seen: list[int] = []
    replay(chain_trace([[0]] * 600), LRU, 4, on_progress=seen.append)
    assert seen == [0, 256, 512]
    assert np.all(np.diff(seen) > 0)
