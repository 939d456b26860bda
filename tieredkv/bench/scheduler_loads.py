"""What it costs the scheduler's thread to have a long prefix loaded that has left the warm tier.

Ours: one message asks; the sidecar's answer, and what it tells of loaded chunks, are taken in from then on.
vLLM's: each chunk is looked up, and room made for it in the primary tier, within one scheduler step.
"""

import select
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from tieredkv.bench.scheduler_engine import (
    CHUNKS,
    GEOMETRY,
    BenchRequest,
    Samples,
    attached_manager,
    context_of,
    fill_reserve,
    long_request,
    look_up,
    settle,
)
from tieredkv.bench.sidecar_process import rank, sidecar, status
from tieredkv.errors import Unreachable
from tieredkv.sidecar.warmtier import PAGE_METADATA_BYTES
from tieredkv.tiers.slots import slot_bytes
from tieredkv.vllm_client.compat import LookupResult, OffloadingManager, ScheduleEndContext
from tieredkv.vllm_client.manager import TieredKVManager

STARTING: Final = "load_cold"
PENDING: Final = "lookup_loading"
PREFIXES: Final = 5
WARM_CHUNKS: Final = 5 * CHUNKS
"""One prefix is leased ahead, room for another one is kept free, and two or three stay."""
SLOT_BYTES: Final = slot_bytes(GEOMETRY.body_bytes) + 64
TIERS: Final = {
    "cold": {
        "size": (PREFIXES + 1) * CHUNKS * (SLOT_BYTES + PAGE_METADATA_BYTES),
        "load_deadline": "60s",
        "low_free": 0.25,
        "high_free": 0.3,
    },
    "policy": {"name": "lru"},
}
DEADLINE_S: Final = 60.0


class ColdPrefixes:
    """Long prefixes that take turns: until one is asked again, the others have pushed it out of warm."""

    def __init__(self, manager: TieredKVManager, socket_path: Path) -> None:
        """Stores them. The sidecar has cold pages for all of them."""
        self._manager = manager
        self._socket_path = socket_path
        self._numbers = count()
        _wait_for_status(socket_path, lambda state: bool(state["mover"]["ready"]))
        self._turns = cycle([self._store(number) for number in range(PREFIXES)])

    def load(self, samples: Samples) -> None:
        """A request comes whose prefix lies in cold, and waits until it is loaded."""
        manager, prefix = self._manager, next(self._turns)
        request = BenchRequest(f"load-{next(self._numbers)}", prefix.block_hashes)
        context, keys = context_of(request)
        start = perf_counter()
        manager.arrive(request)
        taken_s = perf_counter() - start
        until_s = start + DEADLINE_S
        samples.time(PENDING, lambda: look_up(manager, keys, context, LookupResult.RETRY))
        while not manager.settled(request.request_id):
            if perf_counter() > until_s:
                raise Unreachable("the sidecar does not load what it found")
            manager.client.wait_readable(0.05)
            start = perf_counter()
            manager.poll()
            taken_s += perf_counter() - start
        samples.seconds.setdefault(STARTING, []).append(taken_s)
        look_up(manager, keys, context, LookupResult.HIT)
        manager.on_request_finished(context)
        _wait_for_status(self._socket_path, lambda state: not state["slots"]["demoting"])

    def _store(self, number: int) -> BenchRequest:
        manager, prefix = self._manager, long_request(f"prefix-{number}")
        context, keys = context_of(prefix)
        manager.arrive(prefix)
        settle(manager, prefix)
        fill_reserve(manager)
        output = manager.prepare_store(keys, context)
        assert output is not None
        assert len(output.keys_to_store) == CHUNKS, "the reserve was short"
        manager.complete_store(set(keys), context)
        manager.on_request_finished(context)
        # No faster than it is demoted: what finds no time to move would be lost.
        _wait_for_status(self._socket_path, lambda state: not state["slots"]["demoting"])
        return prefix


@contextmanager
def cold_prefixes() -> Generator[ColdPrefixes]:
    """With a sidecar and an engine of their own. Raises Unreachable."""
    with sidecar(WARM_CHUNKS * SLOT_BYTES, settings=TIERS) as socket_path, rank(socket_path, GEOMETRY):
        manager = attached_manager(socket_path)
        try:
            yield ColdPrefixes(manager, socket_path)
        finally:
            manager.shutdown()


def load_peer(manager: OffloadingManager, prefix: BenchRequest, samples: Samples) -> None:
    """The same, told to vLLM's tiering manager: `prefix` has left its primary tier."""
    context, keys = context_of(BenchRequest(f"{prefix.request_id}-cold", prefix.block_hashes))
    manager.on_new_request(context)
    start = perf_counter()
    look_up(manager, keys, context, LookupResult.HIT_PENDING)
    looked_s = perf_counter() - start
    samples.time(PENDING, lambda: look_up(manager, keys, context, LookupResult.HIT_PENDING))
    start = perf_counter()
    manager.on_schedule_end(ScheduleEndContext((), ()))
    samples.seconds.setdefault(STARTING, []).append(looked_s + perf_counter() - start)
    look_up(manager, keys, context, LookupResult.HIT)
    manager.on_schedule_end(ScheduleEndContext((), ()))
    manager.on_request_finished(context)


def _wait_for_status(socket_path: Path, condition: Callable[[dict[str, Any]], bool]) -> None:
    until_s = perf_counter() + DEADLINE_S
    while not condition(status(socket_path)):
        if perf_counter() > until_s:
            raise Unreachable(f"the sidecar is busy for more than {DEADLINE_S:.0f} s")
        select.select([], [], [], 0.05)
