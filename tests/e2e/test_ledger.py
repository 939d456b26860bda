"""The same numbers everywhere: our ledger, vLLM's own counters, the sidecar's; and vLLM's KV events."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import ask, engine, prompts, transfer_config
from tests.e2e.sidecars import Sidecar, wait_until

pytestmark = pytest.mark.e2e


def test_numbers_reconcile(llama: Path, sidecar: Sidecar) -> None:
    from prometheus_client import REGISTRY

    questions = prompts(6, 617, seed=7, shared=224)
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 32})
    with engine(llama, transfer) as ours:
        before = _ours(REGISTRY)
        theirs_before = _theirs(ours)
        for _ in range(2):
            ask(ours, questions)
        ask(ours, prompts(1, 20, seed=8))
        theirs = {name: value - theirs_before[name] for name, value in _theirs(ours).items()}
        tokens = {label: value - before.get(label, 0) for label, value in _ours(REGISTRY).items()}
        assert tokens["asked"] == 2 * 6 * 617 + 20
        assert tokens["asked"] == tokens["hot"] + tokens["warm"] + tokens["miss"]
        assert tokens["warm"] > 0
        assert tokens["asked"] == theirs["vllm:prefix_cache_queries"]
        assert tokens["hot"] == theirs["vllm:prefix_cache_hits"]
        assert tokens["warm"] == theirs["vllm:external_prefix_cache_hits"]
        by_reason = {s.labels["reason"]: s.value for s in _samples(REGISTRY, "tieredkv_miss_tokens_total")}
        assert by_reason["short"] >= 20

        def reported() -> bool:
            ask(ours, prompts(1, 20, seed=9), tokens=1)  # reports go out with the engine's steps
            status = sidecar.status()
            assert status is not None
            prefix = status["counters"]["tieredkv_prefix_tokens_total"]
            (pool,) = status["pools"]
            # The engine's own gauges are of the answer to its last report: they follow a step later.
            followed = _gauges(REGISTRY).get("ready") == pool["slots"]["ready"]
            return prefix.get("asked", 0) >= tokens["asked"] and followed

        wait_until(reported, 20.0)
    status = sidecar.status()
    assert status is not None
    counted = status["counters"]["tieredkv_prefix_tokens_total"]
    assert counted["asked"] == counted["hot"] + counted["warm"] + counted["miss"]
    assert counted["warm"] == tokens["warm"]
    prefill = status["counters"]["tieredkv_prefill_total"]
    assert 617 < prefill["tokens"] < counted["miss"], "what it computed in large steps, but for the first"
    assert prefill["seconds"] > 0
    (pool,) = status["pools"]
    gauges = _gauges(REGISTRY)
    assert sum(gauges.values()) == sum(pool["slots"].values())
    assert gauges["ready"] == pool["slots"]["ready"]
    moved = status["counters"]["tieredkv_moved_bytes_total"]
    assert moved["store"] > 0
    assert moved["load"] > 0


def test_events_tell_what_was_stored(llama: Path, sidecar: Sidecar) -> None:
    from vllm.config import KVEventsConfig
    from vllm.distributed.kv_events import BlockStored

    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 32})
    events: list[Any] = []
    options = {"kv_events_config": KVEventsConfig(enable_kv_cache_events=True, publisher="null")}
    with engine(llama, transfer, **options) as ours:
        scheduler = ours.llm_engine.engine_core.engine_core.scheduler
        take = scheduler.connector.take_events

        def recording() -> list[Any]:
            taken = list(take())
            events.extend(taken)
            return taken

        scheduler.connector.take_events = recording
        ask(ours, prompts(1, 320, seed=10))
        ask(ours, prompts(1, 40, seed=11))
    stored = [event for event in events if isinstance(event, BlockStored) and event.medium == "CPU"]
    assert sum(len(event.block_hashes) for event in stored) >= 10
    assert all(event.block_size == 32 for event in stored)


def _samples(registry: Any, name: str) -> list[Any]:
    return [s for metric in registry.collect() for s in metric.samples if s.name == name]


def _ours(registry: Any) -> dict[str, float]:
    return {s.labels["result"]: s.value for s in _samples(registry, "tieredkv_prefix_tokens_total")}


def _gauges(registry: Any) -> dict[str, float]:
    return {s.labels["state"]: s.value for s in _samples(registry, "tieredkv_slots")}


def _theirs(llm: Any) -> dict[str, float]:
    names = ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits", "vllm:external_prefix_cache_hits")
    values = dict.fromkeys(names, 0.0)
    for metric in llm.get_metrics():
        if metric.name in values:
            values[metric.name] += metric.value
    return values
