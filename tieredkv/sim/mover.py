"""A mover in virtual time: what the links between the tiers could carry, and when it would be there."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from tieredkv.brain.moves import Demote, Job, JobId, Moved
from tieredkv.clock import Clock


@dataclass(frozen=True, slots=True)
class Link:
    """One movement: `latency_s` from the last byte to the result, at most `queue_max` jobs at a time."""

    bytes_per_s: float
    latency_s: float = 0.0
    queue_max: int = 1024

    def __post_init__(self) -> None:
        assert self.bytes_per_s > 0
        assert self.latency_s >= 0
        assert self.queue_max >= 1


@dataclass(slots=True)
class Traffic:
    """What a link has carried."""

    jobs: int = 0
    chunks: int = 0
    refused: int = 0
    cancelled: int = 0


@dataclass(slots=True)
class _Lane:
    """Jobs of one link: one is carried at a time, in their order."""

    link: Link
    traffic: Traffic = field(default_factory=Traffic)
    waiting: deque[Job] = field(default_factory=deque[Job])
    carried: Job | None = None
    end_s: float = 0.0

    @property
    def jobs(self) -> int:
        return len(self.waiting) + (self.carried is not None)


class SimMover:
    """Carries jobs at the speed of two links, one for each direction. Deterministic."""

    def __init__(self, clock: Clock, chunk_bytes: int, *, promote: Link, demote: Link) -> None:
        assert chunk_bytes >= 1
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._promote = _Lane(promote)
        self._demote = _Lane(demote)
        self._results: list[tuple[float, int, Moved]] = []
        self._order: Iterator[int] = count()

    @property
    def promoted(self) -> Traffic:
        """From cold to warm."""
        return self._promote.traffic

    @property
    def demoted(self) -> Traffic:
        """From warm to cold."""
        return self._demote.traffic

    def next_s(self) -> float:
        """When `poll` will have the next result; infinite when nothing moves."""
        times = [lane.end_s + lane.link.latency_s for lane in self._lanes() if lane.carried is not None]
        times += [time_s for time_s, _, _ in self._results[:1]]
        return min(times, default=float("inf"))

    # --- Mover --------------------------------------------------------------------------------------

    def room(self) -> int:
        self._carry()
        return min(lane.link.queue_max - lane.jobs for lane in self._lanes())

    def offer_room(self) -> int:
        return self.room()  # nobody is there to offer anything to

    def submit(self, job: Job) -> bool:
        self._carry()
        lane = self._lane(job)
        if lane.jobs >= lane.link.queue_max:
            lane.traffic.refused += 1
            return False
        lane.waiting.append(job)
        self._next(lane, self._clock.now_s())
        return True

    def cancel(self, number: JobId) -> None:
        for lane in self._lanes():
            job = next((job for job in lane.waiting if job.number == number), None)
            if job is not None:
                lane.waiting.remove(job)
                lane.traffic.cancelled += 1
                self._tell(self._clock.now_s(), Moved(number, frozenset(range(len(job))), 0.0))

    def poll(self, count_max: int) -> list[Moved]:
        self._carry()
        results: list[Moved] = []
        while self._results and self._results[0][0] <= self._clock.now_s() and len(results) < count_max:
            results.append(heappop(self._results)[2])
        return results

    # --- parts --------------------------------------------------------------------------------------

    def _lanes(self) -> tuple[_Lane, _Lane]:
        return self._promote, self._demote

    def _lane(self, job: Job) -> _Lane:
        return self._demote if isinstance(job, Demote) else self._promote

    def _seconds(self, lane: _Lane, job: Job) -> float:
        return len(job) * self._chunk_bytes / lane.link.bytes_per_s

    def _next(self, lane: _Lane, now_s: float) -> None:
        if lane.carried is None and lane.waiting:
            lane.carried = lane.waiting.popleft()
            lane.end_s = now_s + self._seconds(lane, lane.carried)

    def _carry(self) -> None:
        """Let time pass on both links up to now."""
        now_s = self._clock.now_s()
        for lane in self._lanes():
            while lane.carried is not None and lane.end_s <= now_s:
                job, lane.carried = lane.carried, None
                lane.traffic.jobs += 1
                lane.traffic.chunks += len(job)
                seconds = self._seconds(lane, job) + lane.link.latency_s
                self._tell(lane.end_s + lane.link.latency_s, Moved(job.number, frozenset(), seconds))
                self._next(lane, lane.end_s)

    def _tell(self, time_s: float, moved: Moved) -> None:
        heappush(self._results, (time_s, next(self._order), moved))
