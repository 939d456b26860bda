"""A trace through three tiers in virtual time: GPU, warm slots, cold pages, and the ways between them.

The brain is the production TierManager with a simulated mover. Around it is the least of an engine that
makes waiting visible: `servers` streams of prefill take requests in their order. When a stream is free,
the next request begins, if the GPU has room for its blocks (or fewer have begun than there are streams):
what cold has of it must have come to warm, is then loaded into the GPU, and what is left is computed, head
first, at a given speed; chunks are stored into warm as they are computed. While a request waits for loads,
the stream takes the next. With prefetch the brain hears of a request when it arrives; without, when it
begins. In either case it is asked at the beginning for what it did not have before.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.brain.moves import JOB_ROWS_MAX
from tieredkv.brain.values import Progress, Stepped
from tieredkv.clock import ManualClock
from tieredkv.garbage import collected_in_pauses
from tieredkv.manager import ColdTier, TierManager
from tieredkv.policy import make_policy
from tieredkv.policy.placement import Placement, Rate
from tieredkv.sim.hot import HotTier
from tieredkv.sim.mover import Link, SimMover
from tieredkv.sim.tiers import Setting, Speeds, TierOutcome
from tieredkv.sim.traces import Request, Trace
from tieredkv.types import EngineId, Key, RequestId

STORE_CHUNKS: Final = 8
"""Chunks that are computed before they are stored together."""

FREE_PART_LOW: Final = 0.1
FREE_PART_HIGH: Final = 0.15
"""Watermarks of warm, as parts of its slots."""

COLD_THETA: Final = 0.25
"""Cold takes what is worth at least this part of what has to leave for it. More saves writes and costs hits:
a chunk that is refused cannot be missed later, so an index that was too low is never corrected.
"""

DEADLINE_S: Final = 10.0
JOB_BYTES: Final = 128 << 20
"""Of one job of the mover, if that is not less than a chunk."""

_PROGRESS_REQUESTS: Final = 256
_ENGINE: Final = EngineId("engine")


class _Stage(Enum):
    WAITING = "waiting"  # in line
    COLD = "cold"  # its promotions are not over
    LOADING = "loading"  # from warm
    READY = "ready"  # to be computed
    RUNNING = "running"


@dataclass(slots=True)
class _Running:
    """A request on its way."""

    number: int
    request: Request
    name: RequestId
    stage: _Stage = _Stage.WAITING
    asked: bool = False
    found: int = 0  # blocks in warm when the brain heard of it
    ready: int = 0  # blocks in warm now
    coming: int = 0  # blocks that may be in warm; 0 when nothing is on its way (any more)
    hot: int = 0
    begun_s: float = 0.0
    able_s: float = 0.0  # when its loads were done


@dataclass(slots=True)
class _Sums:
    hot_hits: int = 0
    warm_hits: int = 0
    cold_hits: int = 0
    loads: int = 0
    busy_s: float = 0.0
    request_hits: dict[int, tuple[int, int, int]] = field(default_factory=dict[int, tuple[int, int, int]])
    ready_s: dict[int, float] = field(default_factory=dict[int, float])
    queue_s: list[float] = field(default_factory=list[float])
    cold_wait_s: list[float] = field(default_factory=list[float])


def replay_tiers(
    trace: Trace, setting: Setting, speeds: Speeds, *, on_progress: Callable[[int], None] | None = None
) -> TierOutcome:
    """Replay `trace` once. `on_progress` is told now and then how many requests have arrived."""
    with collected_in_pauses():
        return _Replay(trace, setting, speeds, on_progress).run()


class _Replay:
    """The events of one replay, in their order."""

    def __init__(
        self, trace: Trace, setting: Setting, speeds: Speeds, on_progress: Callable[[int], None] | None
    ) -> None:
        self._trace = trace
        self._prefetch = setting.prefetch
        self._speeds = speeds
        self._on_progress = on_progress
        self._clock = ManualClock()
        link = Link(speeds.promote_bytes_per_s, speeds.cold_latency_s)
        self._mover = SimMover(
            self._clock,
            speeds.chunk_bytes,
            promote=link,
            demote=Link(speeds.demote_bytes_per_s, speeds.cold_latency_s),
        )
        self._block_s = trace.block_tokens / speeds.prefill_tokens_per_s
        self._manager = self._build(setting)
        self._hot = HotTier(setting.sizes.hot)
        self._servers = self._free_servers = setting.servers
        # Requests that have begun, and their blocks.
        self._begun = 0
        self._gpu_blocks = 0
        self._load_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._line: deque[_Running] = deque()
        self._able: list[tuple[int, _Running]] = []
        self._running: dict[RequestId, _Running] = {}
        self._sums = _Sums()
        self._reserve: npt.NDArray[np.int32] = self._manager.lease(_ENGINE, STORE_CHUNKS).slots

    def run(self) -> TierOutcome:
        """All requests, to the end of the last."""
        requests = self._trace.requests
        for number, request in enumerate(requests):
            self._until(request.time_s)
            running = _Running(number, request, RequestId(str(number)))
            self._running[running.name] = running
            self._line.append(running)
            if self._prefetch:
                self._ask(running)
            self._step()
            if self._on_progress is not None and number % _PROGRESS_REQUESTS == 0:
                self._on_progress(number)
        self._until(float("inf"))
        assert not self._running
        return self._outcome()

    # --- time ---------------------------------------------------------------------------------------

    def _until(self, time_s: float) -> None:
        """Everything that happens before `time_s`."""
        while (next_s := min(self._events[0][0] if self._events else float("inf"), self._mover.next_s())) < time_s or (
            next_s == time_s < float("inf")
        ):
            if next_s == float("inf"):
                return
            self._clock.set(max(next_s, self._clock.now_s()))
            while self._events and self._events[0][0] <= self._clock.now_s():
                heappop(self._events)[2]()
            self._step()
            if time_s == float("inf") and not self._running:
                return
        if time_s < float("inf"):
            self._clock.set(max(time_s, self._clock.now_s()))

    def _at(self, time_s: float, what: Callable[[], None]) -> None:
        heappush(self._events, (time_s, next(self._order), what))

    def _step(self) -> None:
        self._hear(self._manager.step())
        while self._begin_next():
            pass

    # --- requests -----------------------------------------------------------------------------------

    def _ask(self, running: _Running) -> None:
        """The brain hears of the request, and pins what it has of it."""
        request = running.request
        found = self._manager.arrive(
            _ENGINE,
            running.name,
            request.keys,
            strides=(1,),
            tokens=request.tokens,
            tenant="",
            hints=request.hints,
            again=running.asked,
        )
        (slots,) = found.slots
        here = len(slots) if not len(slots) or slots.min() >= 0 else int(np.argmax(slots < 0))
        # What was loaded for it since it asked first is a hit in cold.
        running.found += max(0, here - running.ready)
        running.ready = max(running.ready, here)
        running.asked = True
        running.coming = found.coming
        if found.coming:
            # When nothing else happens, the end of its patience does.
            self._at(self._clock.now_s() + DEADLINE_S, lambda: None)

    def _hear(self, stepped: Stepped) -> None:
        for progress in stepped.progress:
            self._hear_of(progress)

    def _hear_of(self, progress: Progress) -> None:
        running = self._running[progress.request]
        running.ready = max(running.ready, progress.ready_to)
        if progress.over:
            running.coming = 0
            if running.stage is _Stage.COLD:
                self._load(running)

    def _begin_next(self) -> bool:
        """Give a free stream something to do; False when there is nothing it can do."""
        if not self._free_servers:
            return False
        if self._able:
            self._compute(heappop(self._able)[1])
            return True
        if not self._line:
            return False
        blocks = len(self._line[0].request.keys)
        if self._begun >= self._servers and self._gpu_blocks + blocks > self._hot.blocks:
            return False
        running = self._line.popleft()
        self._begun += 1
        self._gpu_blocks += blocks
        running.begun_s = self._clock.now_s()
        running.stage = _Stage.COLD
        if running.ready < len(running.request.keys) and not running.coming:
            # First, or again: others stored since, or let go of their pins.
            self._ask(running)
            self._hear(self._manager.step())
        running.hot = self._hot.prefix(running.request.keys)
        # Told of the end of its loads in the very step that began them, it went on already.
        if running.stage is _Stage.COLD and (not running.coming or running.coming <= running.hot):
            self._load(running)
        return True

    def _load(self, running: _Running) -> None:
        """What warm has moves to the GPU."""
        now_s = self._clock.now_s()
        self._sums.cold_wait_s.append(now_s - running.begun_s)
        blocks = max(0, running.ready - running.hot)
        self._sums.hot_hits += running.hot
        warm = max(0, min(running.found, running.ready) - running.hot)
        self._sums.warm_hits += warm
        self._sums.cold_hits += blocks - warm
        self._sums.request_hits[running.number] = (running.hot, warm, blocks - warm)
        self._sums.loads += blocks
        running.stage = _Stage.LOADING
        if blocks:
            start_s = max(now_s, self._load_free_s)
            self._load_free_s = start_s + blocks * self._speeds.chunk_bytes / self._speeds.load_bytes_per_s
            self._at(self._load_free_s, lambda: self._loaded(running))
        else:
            self._loaded(running)

    def _loaded(self, running: _Running) -> None:
        running.stage = _Stage.READY
        running.able_s = self._clock.now_s()
        heappush(self._able, (running.number, running))

    def _compute(self, running: _Running) -> None:
        """A stream computes what is left, and stores it as it goes."""
        now_s = self._clock.now_s()
        request = running.request
        running.stage = _Stage.RUNNING
        self._free_servers -= 1
        in_line_s = (running.begun_s - request.time_s) + (now_s - running.able_s)
        self._sums.queue_s.append(in_line_s)
        have = max(running.hot, running.ready)
        tokens = max(1, request.tokens - have * self._trace.block_tokens)
        end_s = now_s + tokens / self._speeds.prefill_tokens_per_s
        self._sums.busy_s += end_s - now_s
        # What is on the GPU only is stored too, at once.
        first = running.ready
        for start in range(first, len(request.keys), STORE_CHUNKS):
            stop = min(start + STORE_CHUNKS, len(request.keys))
            self._at(now_s + max(0, stop - have) * self._block_s, partial(self._store, running, start, stop))
        self._at(max(end_s, now_s + max(0, len(request.keys) - have) * self._block_s), lambda: self._done(running))

    def _store(self, running: _Running, start: int, stop: int) -> None:
        keys = running.request.keys
        batch = keys[start:stop]
        slots = self._reserve[: len(batch)]
        batch = batch[: len(slots)]
        if batch:
            parents = [keys[start - 1] if start else Key(b""), *batch[:-1]]
            positions = np.arange(start, start + len(batch), dtype=np.int32)
            self._manager.publish(_ENGINE, 0, batch, parents, positions, slots)
        leased = self._manager.lease(_ENGINE, STORE_CHUNKS - len(self._reserve) + len(batch))
        self._reserve = np.concatenate((self._reserve[len(batch) :], leased.slots))

    def _done(self, running: _Running) -> None:
        self._sums.ready_s[running.number] = self._clock.now_s() - running.request.time_s
        self._hot.use(running.request.keys)
        self._begun -= 1
        self._gpu_blocks -= len(running.request.keys)
        self._free_servers += 1
        self._manager.release(_ENGINE, running.name)
        del self._running[running.name]

    # --- the whole ----------------------------------------------------------------------------------

    def _build(self, setting: Setting) -> TierManager:
        slots, pages = setting.sizes.warm + STORE_CHUNKS, setting.sizes.cold
        warm = make_policy(setting.policy, slots)
        cold = make_policy(setting.policy.model_copy(update={"theta": COLD_THETA}), pages)
        low = min(slots // 4, max(STORE_CHUNKS, int(FREE_PART_LOW * slots)))
        manager = TierManager(
            slots=slots,
            groups=1,
            policy=warm.eviction,
            admission=warm.admission,
            clock=self._clock,
            engine_share_max=0.9,
            cold=ColdTier(
                pages=pages,
                policy=cold.eviction,
                admission=cold.admission,
                mover=self._mover,
                placement=Placement(recompute=Rate(self._block_s, measured=True)),
                low_free=low,
                high_free=max(2 * low, int(FREE_PART_HIGH * slots)),
                copies=setting.copies,
                deadline_s=DEADLINE_S,
                job_rows=max(1, min(JOB_ROWS_MAX, JOB_BYTES // self._speeds.chunk_bytes)),
            ),
        )
        manager.populate(0, slots)
        manager.attach(_ENGINE)
        return manager

    def _outcome(self) -> TierOutcome:
        sums, tallies = self._sums, self._manager.tallies
        span_s = max(self._clock.now_s(), 1e-9)
        numbers = range(len(self._trace.requests))
        return TierOutcome(
            requests=len(numbers),
            servers=self._servers,
            block_refs=self._trace.block_refs,
            hot_hits=sums.hot_hits,
            warm_hits=sums.warm_hits,
            cold_hits=sums.cold_hits,
            block_tokens=self._trace.block_tokens,
            tokens=sum(request.tokens for request in self._trace.requests),
            request_hits=np.array([sums.request_hits[number] for number in numbers], np.int32).reshape(-1, 3).T,
            ready_s=np.array([sums.ready_s[number] for number in numbers]),
            queue_s=np.array(sums.queue_s),
            cold_wait_s=np.array(sums.cold_wait_s),
            stores=tallies.publications.get("stored", 0),
            loads=sums.loads,
            demotions=self._mover.demoted.chunks,
            promotions=self._mover.promoted.chunks,
            dropped=tallies.evictions.get("room", 0),
            chunk_bytes=self._speeds.chunk_bytes,
            busy_part=sums.busy_s / (span_s * self._servers),
        )
