"""Routing, and pools that engines share or have for themselves."""

import pytest

from tests.sim.trees import chain_trace, lru_hits, tree_trace
from tieredkv.config import PolicyConfig
from tieredkv.sim.generate import generate
from tieredkv.sim.replay import Fleet, replay
from tieredkv.sim.routing import Routing, route

LRU = PolicyConfig(name="lru")
# A trunk of two blocks that four sessions share, each with two turns.
SESSIONS = [[0, 1, 10 * each, 10 * each + 1] for each in range(1, 9)]
TURNS = chain_trace([*SESSIONS, *([*chain, chain[-1] + 1] for chain in SESSIONS)])


@pytest.mark.parametrize("routing", Routing)
def test_the_same_seed_routes_alike_and_another_does_not(routing: Routing) -> None:
    trace = tree_trace(3, requests=100, blocks=300)
    routed = route(trace, 4, routing, seed=5)
    assert set(routed) == {0, 1, 2, 3}
    assert route(trace, 4, routing, seed=5) == routed
    assert route(trace, 4, routing, seed=6) != routed


@pytest.mark.parametrize("routing", [Routing.SESSION, Routing.SKEWED])
def test_a_session_stays_and_a_trunk_does_not_hold_it(routing: Routing) -> None:
    routed = route(TURNS, 3, routing, seed=2)
    assert routed[:8] == routed[8:]
    # Until it is known that the first blocks are a trunk, they look like a session's.
    assert len(set(routed[:8])) > 1


def test_most_sessions_are_skewed_to_the_first_engine() -> None:
    trace = chain_trace([[each] for each in range(1000)])
    routed = route(trace, 4, Routing.SKEWED, seed=1)
    assert 650 <= routed.count(0) <= 750
    assert min(routed.count(each) for each in (1, 2, 3)) >= 50


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("routing", Routing)
def test_engines_on_a_shared_pool_hit_what_one_engine_hits(engines: int, routing: Routing) -> None:
    for seed in range(10):
        trace = tree_trace(seed, requests=60, blocks=40)
        outcome = replay(trace, LRU, 9, fleet=Fleet(engines, shared=True, routing=routing), seed=seed)
        assert outcome.request_hits.tolist() == lru_hits(trace, 9)


def test_a_private_pool_holds_its_part() -> None:
    trace = chain_trace([[0], [0], [1], [0], [1]])
    routed = route(trace, 2, Routing.RANDOM, seed=1)
    outcome = replay(trace, LRU, 3, fleet=Fleet(2, shared=False, routing=Routing.RANDOM), seed=1)
    seen: set[tuple[int, int]] = set()
    expected = []
    for engine, block in zip(routed, [0, 0, 1, 0, 1], strict=True):
        expected.append(int((engine, block) in seen))
        # The second engine's part is one chunk.
        seen = {pair for pair in seen if engine == 0 or pair[0] == 0} | {(engine, block)}
    assert outcome.request_hits.tolist() == expected


@pytest.mark.parametrize("policy", ["lru", "gix"])
@pytest.mark.parametrize("routing", Routing)
def test_one_shared_pool_is_worth_at_least_as_much_as_private_ones(policy: str, routing: Routing) -> None:
    trace = generate("chat", seed=4, requests=1500)
    capacity = trace.unique_blocks // 10
    shared, private = (
        replay(trace, PolicyConfig(name=policy), capacity, fleet=Fleet(4, shared=shared, routing=routing), seed=4)
        for shared in (True, False)
    )
    assert shared.block_hits >= private.block_hits
    if routing is Routing.RANDOM:
        assert shared.block_hits > 1.5 * private.block_hits
