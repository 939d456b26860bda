"""Comparisons: the same in one process and in several, and consistent in themselves."""

from dataclasses import replace

import pytest

from tests.sim.trees import chain_trace, tree_trace
from tieredkv.config import PolicyConfig
from tieredkv.sim import replays
from tieredkv.sim.capacities import Size
from tieredkv.sim.comparison import Comparison, Plan, compare
from tieredkv.sim.oracle_hints import Truth

POLICIES = (PolicyConfig(name="lru"), PolicyConfig(name="gix"))
PLAN = Plan(POLICIES, bounds=("min", "infinite"))
SIZES = (Size(5, 0.05), Size(20, 0.2))
TRACE = tree_trace(11, requests=300, blocks=100)


def timeless(comparison: Comparison) -> Comparison:
    return replace(comparison, results=[replace(result, us_per_block_ref=0.0) for result in comparison.results])


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "REFS_PER_PROCESS", 100)
    seen: list[tuple[int, int]] = []
    several = compare(TRACE, PLAN, SIZES, jobs=2, on_refs=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4 * TRACE.block_refs, 4 * TRACE.block_refs)
    assert timeless(several) == timeless(compare(TRACE, PLAN, SIZES, jobs=1))


def test_rows_and_their_bounds() -> None:
    comparison = compare(TRACE, PLAN, SIZES)
    rows = [(result.policy, result.capacity_fraction, result.capacity_blocks) for result in comparison.results]
    assert rows == [
        (policy, size.fraction, size.blocks) for policy in ("lru", "gix", "min", "infinite") for size in SIZES
    ]
    for result in comparison.results:
        assert result.block_hit_rate <= result.min_block_hit_rate or result.policy == "infinite"
        assert result.min_block_hit_rate <= result.infinite_block_hit_rate == comparison.infinite_block_hit_rate
        assert result.token_hit_rate == pytest.approx(result.block_hit_rate)  # all prompts are full blocks
        assert (result.stores is None) == (result.policy in {"min", "infinite"})
        if result.policy in {"lru", "min"}:
            assert result.lru_to_min_gap_percent == (0 if result.policy == "lru" else 100)


def test_no_gap_without_lru_or_without_a_difference() -> None:
    alone = compare(TRACE, Plan(POLICIES[1:]), SIZES)
    assert {result.lru_to_min_gap_percent for result in alone.results} == {None}
    (result,) = compare(chain_trace([[0], [0]]), Plan(POLICIES[:1]), [Size(3, 1.0)]).results
    assert result.lru_to_min_gap_percent is None


def test_a_trace_of_short_prompts_has_rates_of_zero() -> None:
    comparison = compare(chain_trace([[], []]), PLAN, [Size(1, 1.0)])
    assert {result.block_hit_rate for result in comparison.results} == {0.0}


def test_sizes_that_are_equal_in_blocks_are_both_told() -> None:
    comparison = compare(TRACE, Plan(POLICIES[:1]), [Size(5, 0.050), Size(5, 0.051)])
    assert [result.capacity_fraction for result in comparison.results] == [0.050, 0.051]


@pytest.mark.parametrize("truth", Truth)
def test_hints_are_told_and_change_nothing_for_lru(truth: Truth) -> None:
    plain = compare(TRACE, Plan(POLICIES[:1]), SIZES)
    hinted = compare(TRACE, Plan(POLICIES[:1], hints=truth), SIZES)
    assert {result.hints for result in hinted.results} == {truth.value}
    assert [r.block_hit_rate for r in plain.results] == [r.block_hit_rate for r in hinted.results]
