from pathlib import Path
from statistics import median

import pytest

from tieredkv.errors import ConfigError
from tieredkv.sim.generate import generate, generated_records
from tieredkv.sim.prompts import ChainIds, Prompt
from tieredkv.sim.records import as_trace, write_records
from tieredkv.sim.traces import Trace, read_trace
from tieredkv.sim.workload import KINDS, make_workload


def _gaps_s(trace: Trace) -> dict[str, list[float]]:
    """Times between the requests of each session."""
    last: dict[str, float] = {}
    gaps: dict[str, list[float]] = {}
    for request in trace.requests:
        if request.session in last:
            gaps.setdefault(request.session, []).append(request.time_s - last[request.session])
        last[request.session] = request.time_s
    return gaps


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_reads_as_what_was_generated(kind: str, name: str, tmp_path: Path) -> None:
    records = list(generated_records(make_workload(kind, {}), seed=3, requests=300, block_tokens=64))
    path = tmp_path / name
    assert write_records(path, records, 64) == 300
    read = read_trace(path)
    made = as_trace(records, "trace", 64)
    assert (read.requests, read.block_refs, read.unique_blocks) == (made.requests, made.block_refs, made.unique_blocks)
    assert read.block_tokens == 64
    assert read.requests == generate(kind, seed=3, requests=300, block_tokens=64).requests


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(kind: str, tmp_path: Path) -> None:
    texts: list[bytes] = []
    for number, seed in enumerate((5, 5, 6)):
        path = tmp_path / f"{number}.gz"
        write_records(path, generated_records(make_workload(kind, {}), seed=seed, requests=100), 512)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_a_prefix_of_a_workload_is_its_beginning() -> None:
    long = generate("chat", seed=1, requests=200).requests
    assert generate("chat", seed=1, requests=50).requests == long[:50]


def test_blocks_are_equal_exactly_as_far_as_the_texts_are() -> None:
    chain = ChainIds(4)
    texts = [chain.text() for _ in range(3)]
    shared = Prompt(chain)
    shared.append(texts[0], 6)
    left, right = shared.copy(), shared.copy()
    left.append(texts[1], 7)
    right.append(texts[2], 7)
    assert left.tokens == right.tokens == 13
    assert left.ids[:1] == right.ids[:1] == shared.ids  # only the first four tokens fill a shared block
    assert not set(left.ids[1:]) & set(right.ids[1:])
    assert left.snapshot()[:-1] == left.ids
    again = shared.copy()
    again.append(texts[1], 3)
    again.append(texts[1], 4, start=3)
    assert again.snapshot()[:3] == left.snapshot()[:3], "in one piece or in two"


def test_think_times_scale_and_nothing_else_changes() -> None:
    slow, fast = (generate("chat", seed=2, requests=2000, think_time=factor) for factor in (3.0, 0.3))
    slow_gaps, fast_gaps = _gaps_s(slow), _gaps_s(fast)
    both = [(slow_gaps[name][0], fast_gaps[name][0]) for name in slow_gaps if name in fast_gaps]
    assert len(both) > 100
    assert all(slower > faster for slower, faster in both)
    assert 4 < median(slower for slower, _ in both) / median(faster for _, faster in both) < 11
    slow_first, fast_first = (
        {request.session: request.tokens for request in reversed(trace.requests)} for trace in (slow, fast)
    )
    assert all(slow_first[name] == tokens for name, tokens in fast_first.items() if name in slow_first)


def test_a_shift_lengthens_think_times_halfway() -> None:
    calm = generate("chat", seed=4, requests=2000).requests
    shifted = generate("shift", seed=4, requests=2000).requests
    assert calm[:1000] == shifted[:1000]
    assert calm[1000:] != shifted[1000:]


def test_floods_come_in_their_time_and_never_return() -> None:
    changes = {"flood_every_s": 200.0, "flood_s": 50.0}
    trace = generate("flood", seed=1, requests=3000, changes=changes)
    flood = [request for request in trace.requests if request.session.startswith("flood")]
    start_s = trace.requests[0].time_s
    assert len({request.session for request in flood}) == len(flood) > 100
    # The trace starts a moment after the clock of the floods did.
    assert all((request.time_s - start_s) % 200 >= 140 for request in flood)
    seen: set[bytes] = set()
    for request in flood:
        assert seen.isdisjoint(request.keys)
        seen.update(request.keys)


def test_trunks_change_under_churn_and_keep_a_common_beginning() -> None:
    changes = {"trunks": 1, "trunk_tokens_sigma": 0.0, "first_tokens_median": 600.0, "trunk_life_s": 100.0}
    churn = generate("churn", seed=1, requests=1500, changes=changes)
    calm = generate("churn", seed=1, requests=1500, changes=changes | {"trunk_life_s": 0.0})

    def trunk_ends(trace: Trace) -> set[bytes]:
        return {request.keys[9] for request in trace.requests if len(request.keys) > 9}

    assert len(trunk_ends(calm)) == 1
    assert len(trunk_ends(churn)) > 5
    assert len({request.keys[0] for request in churn.requests if request.keys}) < len(trunk_ends(churn))


def test_popular_documents_are_used_again() -> None:
    few = generate("rag", seed=1, requests=500, changes={"documents": 10})
    many = generate("rag", seed=1, requests=500, changes={"documents": 100_000, "documents_zipf": 0.0})
    assert few.unique_blocks / few.block_refs < many.unique_blocks / many.block_refs


def test_no_prompt_is_longer_than_the_context() -> None:
    for kind in KINDS:
        trace = generate(kind, seed=1, requests=400, changes={"context_tokens_max": 5000, "output_tokens_sigma": 0.0})
        assert max(request.tokens for request in trace.requests) <= 5000, kind


def test_every_wrong_parameter_has_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        make_workload("chat", {"trunk": 3, "trunks": "x", "continue_first": 1.5, "sessions_per_s": 0.0})
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "trunk: no such parameter; did you mean trunks?" in lines[0]
    with pytest.raises(ConfigError, match="did you mean agentic"):
        make_workload("agentik", {})
