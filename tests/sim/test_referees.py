"""Our LRU, ARC and MQ against those of libcachesim, S3-FIFO against its paper, and our LRU against vLLM's own.

Two kinds of equality. *In production*: the replay (a whole chain arrives, what misses is stored in batches,
room is made after each) gives the same hits for each request. That holds for LRU. *Reference by reference*:
the policy is asked one key at a time, keys have no parents, and each single hit or miss is the same. That
holds for all four: the algorithms are the published ones.

In production ARC, MQ and S3-FIFO differ a little from that, and should: no position leaves before its children (the
referee leaves children without a head behind, which nobody can use), a chain's hits count before its misses
are stored, and of a long chain the head is stored before the tail.

Real traces are read from the directory that TIEREDKV_TRACES names.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sim.referees import LibCacheSim, PaperS3FIFO, Referee, libcachesim_hits, references, vllm_lru_hits
from tests.sim.trees import tree_trace
from tieredkv.config import PolicyConfig
from tieredkv.policy import ARC, LRU, MQ, S3FIFO, EvictionPolicy
from tieredkv.sim.generate import generate
from tieredkv.sim.replay import replay
from tieredkv.sim.traces import Trace, read_trace
from tieredkv.types import Key

libcachesim: Any = pytest.importorskip("libcachesim", reason="libcachesim is not installed")

FRACTIONS = (0.003, 0.01, 0.03, 0.1, 0.2)
LIFE_TIME = 1000
START = Key(b"")

PAIRS: dict[str, tuple[Callable[[int], EvictionPolicy], Callable[[int], Referee]]] = {
    "lru": (LRU, lambda capacity: LibCacheSim(libcachesim.LRU, capacity)),
    "arc": (ARC, lambda capacity: LibCacheSim(libcachesim.ARC, capacity)),
    "mq": (
        lambda capacity: MQ(capacity, LIFE_TIME),
        lambda capacity: LibCacheSim(libcachesim.MQ, capacity, lifetime=LIFE_TIME),
    ),
    "s3fifo": (S3FIFO, PaperS3FIFO),
}


def assert_equal_by_reference(name: str, trace: Trace, capacity: int) -> int:
    """Both caches hit and miss at the same references. Returns how many hits there were."""
    make, make_referee = PAIRS[name]
    # One slot more: room is made after a key has entered.
    policy, referee = make(capacity + 1), make_referee(capacity)
    hits = 0
    for number, key in references(trace):
        hit = key in policy
        assert referee.refer(key) == hit, f"{name}, capacity {capacity}: request {number} of {trace.name}"
        hits += hit
        policy.access([key], float(number))
        if not hit:
            policy.insert([key], [START], float(number))
            if len(policy) > capacity:
                policy.evict(1, frozenset(), float(number))
    policy.check()
    return hits


def generated() -> list[Trace]:
    return [generate(kind, seed=11, requests=250) for kind in ("chat", "agentic", "churn")]


@pytest.mark.parametrize("name", sorted(PAIRS))
class TestReferenceByReference:
    def test_random_trees(self, name: str) -> None:
        hits = 0
        for seed in range(30):
            trace = tree_trace(seed, requests=120, blocks=10 + seed * 3)
            for capacity in (1, 2, 5, 13, 40):
                hits += assert_equal_by_reference(name, trace, capacity)
        assert hits

    def test_generated_workloads(self, name: str) -> None:
        for trace in generated():
            for fraction in FRACTIONS:
                assert_equal_by_reference(name, trace, max(2, int(fraction * trace.unique_blocks)))


class TestInProduction:
    def test_lru_is_libcachesims(self) -> None:
        for trace in generated():
            for fraction in FRACTIONS:
                capacity = max(2, int(fraction * trace.unique_blocks))
                ours = replay(trace, PolicyConfig(name="lru"), capacity).request_hits.tolist()
                assert ours == libcachesim_hits(trace, LibCacheSim(libcachesim.LRU, capacity)), trace.name

    @pytest.mark.slow
    def test_lru_is_vllms(self) -> None:
        pytest.importorskip("vllm", reason="vLLM is not installed")
        for trace in generated():
            for fraction in FRACTIONS:
                capacity = max(2, int(fraction * trace.unique_blocks))
                ours = replay(trace, PolicyConfig(name="lru"), capacity).request_hits.tolist()
                assert ours == vllm_lru_hits(trace, capacity), trace.name


@pytest.fixture(scope="module", params=["conversation_first60", "synthetic"])
def real_trace(request: pytest.FixtureRequest) -> Trace:
    folder = os.environ.get("TIEREDKV_TRACES")
    if not folder:
        pytest.skip("TIEREDKV_TRACES names no directory with traces")
    path = Path(folder, f"{request.param}.jsonl.gz")
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return read_trace(path)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS)
class TestRealTraces:
    # Not S3-FIFO: its referee is a textbook and takes hours.
    @pytest.mark.parametrize("name", ["arc", "lru", "mq"])
    def test_reference_by_reference(self, name: str, fraction: float, real_trace: Trace) -> None:
        assert assert_equal_by_reference(name, real_trace, int(fraction * real_trace.unique_blocks))

    def test_lru_in_production(self, fraction: float, real_trace: Trace) -> None:
        pytest.importorskip("vllm", reason="vLLM is not installed")
        capacity = int(fraction * real_trace.unique_blocks)
        ours = replay(real_trace, PolicyConfig(name="lru"), capacity).request_hits.tolist()
        assert ours == libcachesim_hits(real_trace, LibCacheSim(libcachesim.LRU, capacity))
        assert ours == vllm_lru_hits(real_trace, capacity)

    @pytest.mark.parametrize("name", ["arc"])
    def test_others_in_production_are_close(self, name: str, fraction: float, real_trace: Trace) -> None:
        capacity = int(fraction * real_trace.unique_blocks)
        ours = replay(real_trace, PolicyConfig(name=name), capacity).block_hits
        theirs = sum(libcachesim_hits(real_trace, PAIRS[name][1](capacity)))
        assert abs(ours - theirs) / real_trace.block_refs < 0.005
