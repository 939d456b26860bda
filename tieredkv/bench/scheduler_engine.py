"""The scheduler's side of a benchmark's engine: its requests, as vLLM would tell of them, and its stopwatch."""

import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from tieredkv.bench.sidecar_process import greeting
from tieredkv.clock import SystemClock
from tieredkv.types import Geometry
from tieredkv.vllm_client.client import EngineClient
from tieredkv.vllm_client.compat import (
    LookupResult,
    OffloadingManager,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    group_suffix,
)
from tieredkv.vllm_client.ledger import EngineLedger
from tieredkv.vllm_client.manager import ManagerSettings, TieredKVManager

GEOMETRY: Final = Geometry(body_bytes=4096, chain_tokens=16, group_strides=(1,))
CHUNKS: Final = 8192
ANSWER_DEADLINE_S: Final = 5.0


@dataclass(slots=True)
class BenchRequest:
    """As much of vLLM's Request as the client reads."""

    request_id: str
    block_hashes: list[bytes]
    num_preemptions: int = 0
    kv_transfer_params: None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.block_hashes) * GEOMETRY.chain_tokens


@dataclass(slots=True)
class Samples:
    """Seconds of each round, by operation."""

    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def time(self, op: str, work: Callable[[], object]) -> None:
        """Run `work` once and add what it took to `op`."""
        start = perf_counter()
        work()
        self.seconds.setdefault(op, []).append(perf_counter() - start)

    def us_per_chunk(self, op: str) -> float | None:
        """Median over the rounds; None when it was not measured."""
        taken = self.seconds.get(op)
        return median(taken) * 1e6 / CHUNKS if taken else None


def attached_manager(socket_path: Path) -> TieredKVManager:
    """A manager that the sidecar serves."""
    clock = SystemClock()
    settings = ManagerSettings(
        lookup_deadline_s=ANSWER_DEADLINE_S, lease_chunks=CHUNKS, tokens_per_hash=GEOMETRY.chain_tokens, group_ids=(0,)
    )
    manager = TieredKVManager(
        GEOMETRY,
        settings,
        lambda: greeting("scheduler", GEOMETRY),
        lambda handlers: EngineClient(lambda: socket_path, handlers, clock),
        EngineLedger(),
        clock,
    )
    assert manager.attach(ANSWER_DEADLINE_S), manager.client.reason
    return manager


def long_request(name: str, chunks: int = CHUNKS) -> BenchRequest:
    """A prompt that nobody has asked before."""
    return BenchRequest(name, [os.urandom(32) for _ in range(chunks)])


def context_of(request: BenchRequest) -> tuple[ReqContext, list[OffloadKey]]:
    """What vLLM hands to a manager: the context with the keys' positions, and the keys."""
    context = ReqContext(request.request_id)
    suffix = group_suffix(0)
    keys = [OffloadKey(key + suffix) for key in request.block_hashes]
    for index, key in enumerate(keys):
        context.set_offload_key_position(key, (index + 1) * GEOMETRY.chain_tokens)
    return context, keys


def settle(manager: TieredKVManager, request: BenchRequest) -> None:
    """Wait for the answer, outside of any timing."""
    until_s = perf_counter() + ANSWER_DEADLINE_S
    while not manager.settled(request.request_id):
        assert perf_counter() < until_s, "no answer from the sidecar"
        select.select([], [], [], 0.0005)
        manager.poll()


def fill_reserve(manager: TieredKVManager) -> None:
    """Until a whole request can be stored."""
    until_s = perf_counter() + ANSWER_DEADLINE_S
    while manager.slots_ready < CHUNKS and perf_counter() < until_s:
        manager.on_schedule_end(ScheduleEndContext((), ()))
        select.select([], [], [], 0.001)


def look_up(manager: OffloadingManager, keys: Sequence[OffloadKey], context: ReqContext, want: LookupResult) -> None:
    """Look every key up, as vLLM does in each step; the last one must be `want`."""
    look_up = manager.lookup
    for key in keys:
        look_up(key, context)
    last = look_up(keys[-1], context)
    assert last is want, f"look-up gave {last}, not {want}"
