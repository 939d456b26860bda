from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.sim.generate import generate
from tieredkv.sim.records import Record, as_trace
from tieredkv.sim.reuse import measure_reuse
from tieredkv.sim.stats import spread, study
from tieredkv.sim.stats_plot import plot_stats
from tieredkv.sim.traces import Trace
from tieredkv.sim.workload import KINDS

from .brute_reuse import brute_reuse


def _trace(paths: list[list[int]], times_ms: list[int] | None = None) -> Trace:
    """A trace of prompts that are walks down a tree: ids number the distinct prefixes."""
    ids: dict[tuple[int, ...], int] = {}
    records = [
        Record(
            times_ms[number] if times_ms else number * 1000,
            len(path) * 4,
            1,
            [ids.setdefault(tuple(path[: depth + 1]), len(ids)) for depth in range(len(path))],
        )
        for number, path in enumerate(paths)
    ]
    return as_trace(records, "tree", 4)


PATHS = st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=25)


@given(PATHS)
def test_distances_are_those_of_a_stack(paths: list[list[int]]) -> None:
    trace = _trace(paths)
    reuse = measure_reuse(trace)
    runs = reuse.runs
    fast = [
        (int(number), int(start) + step, int(distance))
        for number, start, blocks, distance in zip(runs.request, runs.start, runs.blocks, runs.distance, strict=True)
        for step in range(blocks)
    ]
    assert sorted(fast) == sorted(brute_reuse(trace))
    assert reuse.uses.sum() == trace.block_refs
    assert int(runs.blocks.sum()) == trace.block_refs - trace.unique_blocks == int(reuse.known.sum())


@given(PATHS)
def test_figures_of_any_trace_hang_together(paths: list[list[int]]) -> None:
    stats = study(_trace(paths)).stats
    assert 0 <= stats.one_hit_share_of_blocks <= 1
    assert 0 <= stats.infinite_hit_rate < 1
    assert 0 <= stats.branched_share <= 1
    assert 1 <= stats.sessions <= stats.requests == len(paths)


def test_figures_of_a_small_trace() -> None:
    # Two sessions on a trunk of two blocks; the first comes back, and so does its copy.
    stats = study(_trace([[0, 0, 1], [0, 0, 2], [0, 0, 1, 5], [0, 0, 2, 5, 6], [9]], [0, 1000, 3000, 7000, 8000])).stats
    assert (stats.requests, stats.block_refs, stats.unique_blocks, stats.duration_s) == (5, 16, 8, 8.0)
    assert stats.infinite_hit_rate == 0.5
    assert stats.one_hit_share_of_blocks == 4 / 8
    assert stats.branched_share == 8 / 16, "the two blocks of the trunk, used by four prompts"
    assert stats.trunks == 0
    assert not stats.sessions_named
    assert stats.sessions == 3
    assert stats.think_time_s.max == 6.0
    assert stats.think_time_s.p10 == 3.0
    assert stats.reuse_distance_blocks.max == 4


def test_trunks_are_where_prompts_part() -> None:
    stats = study(_trace([[0, 1, number] for number in range(7)])).stats
    assert [(trunk.depth_blocks, trunk.children, trunk.uses) for trunk in stats.largest_trunks] == [(2, 7, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_inferred_sessions_are_near_the_true_ones(kind: str) -> None:
    trace = generate(kind, seed=1, requests=2000)
    nameless = replace(trace, requests=[replace(request, session="") for request in trace.requests])
    true, inferred = study(trace).stats, study(nameless).stats
    assert true.sessions_named
    assert not inferred.sessions_named
    assert abs(inferred.sessions / true.sessions - 1) < 0.12
    assert abs(inferred.continues[0] - true.continues[0]) < 0.1
    assert inferred.reuse_distance_blocks == true.reuse_distance_blocks


def test_quantiles_are_values_with_enough_at_or_below() -> None:
    weighted = spread(np.array([5, 1, 3]), np.array([1, 8, 1]))
    assert (weighted.p10, weighted.p75, weighted.p90, weighted.p99, weighted.max) == (1, 1, 3, 5, 5)
    assert spread(np.array([])).max is None


def test_the_picture_is_drawn_for_any_trace(tmp_path: Path) -> None:
    for name, trace in (
        ("many", generate("chat", seed=1, requests=300)),
        ("one", _trace([[]])),
        ("two", _trace([[1]] * 2)),
    ):
        path = tmp_path / f"{name}.png"
        plot_stats(study(trace), path)
        assert path.read_bytes().startswith(b"\x89PNG")
