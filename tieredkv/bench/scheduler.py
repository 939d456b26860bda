"""`tieredkv bench scheduler`: what the warm tier costs vLLM's scheduler thread, beside vLLM's own managers.

Every operation is timed over one long request of `chunks` chunks, `rounds` times, and the median is
told. The sidecar is a real process whose pool is full, so that it evicts for every store. Our arrival
has no peer: vLLM's managers learn of a request's keys only one by one, at look-up. What the sidecar's
brain does meanwhile, in its own process, is measured apart: see `bench.brain`.
"""

import os
import select
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from statistics import median, quantiles
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tieredkv.bench.brain import POLICIES, BrainCost, brain_costs, bytes_per_tracked_chunk
from tieredkv.bench.echo import Echo
from tieredkv.bench.machine import describe_machine
from tieredkv.bench.scheduler_engine import (
    ANSWER_DEADLINE_S,
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
from tieredkv.bench.scheduler_loads import cold_prefixes, load_peer
from tieredkv.bench.scheduler_peers import cpu_peer, tiering_peer
from tieredkv.bench.sidecar_process import rank, sidecar
from tieredkv.tiers.slots import slot_bytes
from tieredkv.vllm_client.compat import (
    LookupResult,
    OffloadingManager,
    PrepareStoreOutput,
    ReqContext,
    ScheduleEndContext,
)
from tieredkv.vllm_client.manager import TieredKVManager

POOL_CHUNKS: Final = 3 * CHUNKS
WARM_UP_ROUNDS: Final = 3
LEFT_AFTER_ROUNDS: Final = 3
"""What was stored so many rounds before has left the pool."""
ROUNDS: Final = 9
ROUND_TRIPS: Final = 400
TIERING: Final = "TieringOffloadingManager"
PEERS: Final = (("CPUOffloadingManager", cpu_peer), (TIERING, tiering_peer))


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the result; times in microseconds per chunk, `ratio` = ours / peer's."""

    op: str
    chunks: int
    us_per_chunk: float
    peer: str
    peer_us_per_chunk: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """From the arrival of a request to the sidecar's answer, in milliseconds.

    The floor is a bare echo of as many bytes by another process, taken in turn with it: what the machine
    needs to wake two processes and carry the bytes.
    """

    keys: int
    movers_busy: bool
    p50_ms: float
    p99_ms: float
    floor_p50_ms: float
    floor_p99_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes."""

    machine: dict[str, str]
    results: list[Operation]
    round_trip: list[RoundTrip]
    brain: list[BrainCost]
    bytes_per_tracked_chunk: dict[str, float]


def measure(console: Console) -> Result:
    """Run everything; a minute or two."""
    ours = Samples()
    theirs = {name: Samples() for name, _ in PEERS}
    stored: dict[str, list[BenchRequest]] = {name: [] for name, _ in PEERS}
    round_trips: list[RoundTrip] = []
    with ExitStack() as stack:
        warm_bytes = POOL_CHUNKS * (slot_bytes(GEOMETRY.body_bytes) + 64)
        socket_path = stack.enter_context(sidecar(warm_bytes))
        stack.enter_context(rank(socket_path, GEOMETRY))
        echo = stack.enter_context(Echo())
        manager = attached_manager(socket_path)
        stack.callback(manager.shutdown)
        cold = stack.enter_context(cold_prefixes())
        peers = {name: stack.enter_context(peer(POOL_CHUNKS)) for name, peer in PEERS}
        for number in track(range(WARM_UP_ROUNDS + ROUNDS), "operations", console=console):
            # The first rounds fill the pools: from then on, every store evicts. Ours and theirs alternate,
            # so that whatever else the machine does meets all of them.
            counted = number >= WARM_UP_ROUNDS
            _one_round(manager, ours if counted else Samples(), f"request-{number}")
            cold.load(ours if counted else Samples())
            for name, peer_manager in peers.items():
                of_peer = theirs[name] if counted else Samples()
                stored[name].append(_peer_round(peer_manager, of_peer, f"request-{number}"))
                if counted and name == TIERING:
                    load_peer(peer_manager, stored[name][number - LEFT_AFTER_ROUNDS], of_peer)
        round_trips += _round_trips(manager, echo, console, movers_busy=False)
        stop = _start_movers(stack)
        round_trips += _round_trips(manager, echo, console, movers_busy=True)
        stop.set()
    results = [_compare(op, ours, name, samples) for name, samples in theirs.items() for op in ours.seconds]
    with console.status("the brain"):
        brain = brain_costs()
        memory = {policy: bytes_per_tracked_chunk(policy) for policy in POLICIES}
    return Result(describe_machine(), results, round_trips, brain, memory)


def report(result: Result, console: Console) -> None:
    """Two tables for people."""
    table = Table(title=f"scheduler thread, us per chunk at {CHUNKS} chunks, median of {ROUNDS} rounds")
    for heading in ("operation", "tieredkv", "peer", "vLLM's", "ratio"):
        table.add_column(heading, justify="left" if heading in ("operation", "peer") else "right", no_wrap=True)
    for row in result.results:
        theirs = "-" if row.peer_us_per_chunk is None else f"{row.peer_us_per_chunk:.3f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        table.add_row(row.op, f"{row.us_per_chunk:.3f}", row.peer, theirs, ratio)
    console.print(table)
    trips = Table(title="arrival to answer")
    for heading in ("keys", "movers", "p50 ms", "p99 ms", "echo p50 ms", "echo p99 ms"):
        trips.add_column(heading, justify="right")
    for trip in result.round_trip:
        movers = "busy" if trip.movers_busy else "idle"
        times = (trip.p50_ms, trip.p99_ms, trip.floor_p50_ms, trip.floor_p99_ms)
        trips.add_row(str(trip.keys), movers, *(f"{value:.3f}" for value in times))
    console.print(trips)
    brain = Table(
        title="the sidecar's brain: arrive, publish, evict, release",
        caption="mean and p99 of a request; the longest call and pause",
    )
    for heading in ("policy", "chunks", "new", "mean us", "p99 us", "us/chunk", "call ms", "pause ms"):
        brain.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for cost in result.brain:
        brain.add_row(
            cost.policy,
            str(cost.chunks),
            str(cost.new_chunks),
            f"{cost.us_per_request:.0f}",
            f"{cost.us_per_request_p99:.0f}",
            f"{cost.us_per_chunk:.2f}",
            f"{cost.longest_call_ms:.1f}",
            f"{cost.pause_ms_max:.1f}",
        )
    console.print(brain)
    for policy, size_bytes in result.bytes_per_tracked_chunk.items():
        console.print(f"{policy}: {size_bytes:.0f} bytes per tracked chunk, key included")


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    return {
        "machine": result.machine,
        "results": [asdict(row) for row in result.results],
        "round_trip": [asdict(row) for row in result.round_trip],
        "brain": [asdict(row) for row in result.brain],
        "bytes_per_tracked_chunk": result.bytes_per_tracked_chunk,
    }


def _one_round(manager: TieredKVManager, samples: Samples, name: str) -> None:
    """Store a long request, then have an equal one find and load it."""
    first = long_request(name)
    context, keys = context_of(first)
    manager.arrive(first)
    settle(manager, first)
    fill_reserve(manager)
    outputs: list[PrepareStoreOutput | None] = []
    samples.time("prepare_store", lambda: outputs.append(manager.prepare_store(keys, context)))
    output = outputs[0]
    assert output is not None
    assert len(output.keys_to_store) == CHUNKS, "the reserve was short"
    stored = set(keys)
    samples.time("complete_store", lambda: manager.complete_store(stored, context))
    manager.on_request_finished(context)

    second = BenchRequest(f"{name}-again", list(first.block_hashes))
    context, keys = context_of(second)
    start = perf_counter()
    manager.arrive(second)
    asked_s = perf_counter() - start
    samples.time("lookup_pending", lambda: look_up(manager, keys, context, LookupResult.RETRY))
    until_s = perf_counter() + ANSWER_DEADLINE_S
    answered_s = 0.0
    while not manager.settled(second.request_id):
        assert perf_counter() < until_s, "no answer from the sidecar"
        select.select([], [], [], 0.002)
        start = perf_counter()
        manager.poll()
        answered_s = perf_counter() - start
    samples.seconds.setdefault("arrival", []).append(asked_s + answered_s)
    samples.time("lookup_hit", lambda: look_up(manager, keys, context, LookupResult.HIT))
    samples.time("prepare_load", lambda: manager.prepare_load(keys, context))
    loaded = set(keys)
    samples.time("complete_load", lambda: manager.complete_load(loaded, context))
    manager.on_request_finished(context)


def _peer_round(manager: OffloadingManager, samples: Samples, name: str) -> BenchRequest:
    """The same story, told to one of vLLM's managers; the request that was stored."""
    step = ScheduleEndContext((), ())
    first = long_request(name)
    context, keys = context_of(first)
    samples.time("arrival", lambda: manager.on_new_request(context))
    samples.time("prepare_store", lambda: manager.prepare_store(keys, context))
    samples.time("lookup_pending", lambda: look_up(manager, keys, context, LookupResult.HIT_PENDING))
    stored = set(keys)
    samples.time("complete_store", lambda: manager.complete_store(stored, context))
    manager.on_schedule_end(step)
    manager.on_request_finished(context)
    context, keys = context_of(BenchRequest(f"{name}-again", list(first.block_hashes)))
    manager.on_new_request(context)
    samples.time("lookup_hit", lambda: look_up(manager, keys, context, LookupResult.HIT))
    samples.time("prepare_load", lambda: manager.prepare_load(keys, context))
    loaded = set(keys)
    samples.time("complete_load", lambda: manager.complete_load(loaded, context))
    manager.on_schedule_end(step)
    manager.on_request_finished(context)
    return first


def _compare(op: str, ours: Samples, name: str, theirs: Samples) -> Operation:
    mine, peer = ours.us_per_chunk(op), theirs.us_per_chunk(op)
    assert mine is not None
    if op == "arrival":  # nothing per chunk happens there in vLLM: a ratio would mean nothing
        return Operation(op, CHUNKS, mine, name, peer, None)
    return Operation(op, CHUNKS, mine, name, peer, mine / peer if peer else None)


def _round_trips(manager: TieredKVManager, echo: Echo, console: Console, *, movers_busy: bool) -> list[RoundTrip]:
    trips: list[RoundTrip] = []
    for count in (10, 1000, 8192):
        stored = long_request(f"stored-{count}-{movers_busy}", count)
        context, keys = context_of(stored)
        manager.arrive(stored)
        settle(manager, stored)
        fill_reserve(manager)
        manager.prepare_store(keys, context)
        manager.complete_store(set(keys), context)
        manager.on_request_finished(context)
        taken: list[float] = []
        floor: list[float] = []
        frame = bytes(count * 33)
        rounds = ROUND_TRIPS if count < CHUNKS else ROUND_TRIPS // 4
        # A line, not a bar: the thread that draws a bar would be measured too.
        console.print(f"{rounds} round trips of {count} keys, movers {'busy' if movers_busy else 'idle'}")
        # The first one waits until all of that is published, and is not counted.
        for number in range(1 + rounds):
            request = BenchRequest(f"trip-{movers_busy}-{count}-{number}", stored.block_hashes)
            start = perf_counter()
            manager.arrive(request)
            while not manager.settled(request.request_id):
                manager.client.wait_readable(0.01)
                manager.poll()
            taken.append((perf_counter() - start) * 1e3)
            manager.on_request_finished(ReqContext(request.request_id))
            select.select([], [], [], 0.001)  # the sidecar finishes its bookkeeping, as between requests
            floor.append(echo.round_trip(frame) * 1e3)
        taken, floor = taken[1:], floor[1:]
        p99, floor_p99 = (quantiles(times, n=100)[98] for times in (taken, floor))
        trips.append(RoundTrip(count, movers_busy, median(taken), p99, median(floor), floor_p99))
    return trips


def _move(stop: Event) -> None:
    """A mover: copies 1 MiB chunks until told to stop."""
    source = np.ones(64 << 20, dtype=np.uint8)
    target = np.empty_like(source)
    while not stop.is_set():
        for start in range(0, len(source), 1 << 20):
            np.copyto(target[start : start + (1 << 20)], source[start : start + (1 << 20)])


def _start_movers(stack: ExitStack) -> Event:
    """One mover process per two cores, as a node would run them."""
    context = get_context("spawn")
    stop = context.Event()
    for _ in range(max(1, (os.cpu_count() or 1) // 2)):
        process = context.Process(target=_move, args=(stop,), daemon=True)
        process.start()
        stack.callback(process.join, 5.0)
    stack.callback(stop.set)
    return stop
