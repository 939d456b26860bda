"""One pool's jobs at the mover: what the brain hands over, and gets back.

Ownership: the sidecar's loop. No call waits.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from tieredkv.brain.moves import Fetch, Job, JobId, Moved, Offer, Pull
from tieredkv.sidecar.mover import messages
from tieredkv.sidecar.mover.jobs import OwnJob, message_of, movement_of, unproven
from tieredkv.sidecar.mover.messages import Checksums, Done, Loss, ToMover
from tieredkv.sidecar.mover.traffic import Movement, Traffic
from tieredkv.tiers.pool import Pool
from tieredkv.tiers.slots import Generations, Ints

SLOWEST_BYTES_PER_S: Final = 200e6
"""A node that sends less does not answer."""

JOBS_MAX: Final = 64
"""Jobs of a pool that may be outstanding."""
SEALS_MAX: Final = 4
SEAL_PLACES_MAX: Final = 1024

LOCAL: Final = -1
"""The lane of copies; those of fetches are numbered as their peers."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    movement: Movement
    rows: int
    lane: int


class PoolMover:
    """tieredkv.brain.moves.Mover for one pool, except for offers, which concern other nodes' movers."""

    def __init__(
        self,
        number: int,
        pool: Pool,
        traffic: dict[Movement, Traffic],
        send: Callable[[ToMover], bool],
        ready: Callable[[], bool],
        *,
        fetch_deadline_s: float,
    ) -> None:
        """`send` tells the mover, or returns False when it cannot now; `ready` says whether it could."""
        self.number = number
        self._pool = pool
        self._traffic = traffic
        self._send = send
        self._ready = ready
        self._fetch_deadline_s = fetch_deadline_s
        self._jobs: dict[JobId, _InFlight] = {}
        self._moved: deque[Moved] = deque()
        self._seals: dict[int, int] = {}
        self._seals_ever = 0
        self._checksums: deque[Checksums] = deque()
        self.closed = False

    # --- Mover --------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more jobs would be taken now."""
        return JOBS_MAX - len(self._jobs) if not self.closed and self._ready() else 0

    def offer_room(self) -> int:
        """There is nobody to offer anything to."""
        return self.room()

    def submit(self, job: Job) -> bool:
        """Take the job over; False while the mover has enough to do, or is not there."""
        assert not isinstance(job, Offer), "an offer is made to another node"
        assert job.number not in self._jobs
        if self.closed or len(self._jobs) >= JOBS_MAX:
            return False
        work_s = self._work_s(len(job))
        message = message_of(self.number, self._pool.record.slots, job, self._waiting_s(job) + work_s, work_s)
        if not self._send(message):
            return False
        lane = message.peer if isinstance(message, messages.Fetch) else LOCAL
        self._jobs[job.number] = _InFlight(movement_of(job), len(job), lane)
        return True

    def _work_s(self, rows: int) -> float:
        """How long reading so many rows may take. A node that stalls must not look like a mover that hangs."""
        return self._fetch_deadline_s + rows * self._pool.record.slot_bytes / SLOWEST_BYTES_PER_S

    def _waiting_s(self, job: OwnJob) -> float:
        """How long it may wait: a node that is well, if slow, has time for what comes before it."""
        if not isinstance(job, Fetch | Pull):
            return 0.0
        rows = sum(other.rows for other in self._jobs.values() if other.lane == job.peer)
        return rows * self._pool.record.slot_bytes / SLOWEST_BYTES_PER_S

    def cancel(self, number: JobId) -> None:
        """Nobody wants this job any more. Its result comes anyhow."""
        if number in self._jobs:
            self._send(messages.Cancel(self.number, number))

    def poll(self, count_max: int) -> list[Moved]:
        """Up to `count_max` results, each once, in the order in which the jobs ended."""
        return [self._moved.popleft() for _ in range(min(count_max, len(self._moved)))]

    # --- seals --------------------------------------------------------------------------------------

    def seal(self, places: Ints, generations: Generations) -> bool:
        """Have the checksums of these slots taken when the mover is idle; at most SEAL_PLACES_MAX.

        They may be used, freed and leased meanwhile. False when enough are waiting. A mover that dies
        forgets them.
        """
        assert len(places) == len(generations) <= SEAL_PLACES_MAX
        if self.closed or len(self._seals) >= SEALS_MAX:
            return False
        number = self._seals_ever + 1
        message = messages.Seal(
            self.number, number, places.astype(np.int64).tobytes(), generations.astype(np.uint64).tobytes()
        )
        if not self._send(message):
            return False
        self._seals_ever = number
        self._seals[number] = len(places)
        return True

    @property
    def sealing(self) -> int:
        """For how many slots a checksum is awaited."""
        return sum(self._seals.values())

    def take_sealed(self) -> tuple[Ints, Generations]:
        """Seal the slots whose checksums came and that still hold the same; which these are."""
        places, generations, sums = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        while self._checksums:
            taken = self._checksums.popleft()
            places = np.concatenate((places, np.frombuffer(taken.places, np.int64)))
            generations = np.concatenate((generations, np.frombuffer(taken.generations, np.uint64)))
            sums = np.concatenate((sums, np.frombuffer(taken.checksums, np.uint64)))
        still = self._pool.seal(places, generations, sums)
        return places[still], generations[still]

    # --- the mover's process ------------------------------------------------------------------------

    def lanes(self) -> list[int]:
        """The lane of each job that is outstanding."""
        return [job.lane for job in self._jobs.values()]

    @property
    def idle(self) -> bool:
        """Nothing is outstanding: the mover does not touch a byte of the pool."""
        return not self._jobs and not self._seals

    def done(self, done: Done) -> int:
        """A job ended; its lane."""
        number = JobId(done.number)
        job = self._jobs.pop(number)
        traffic = self._traffic[job.movement]
        traffic.add(job.rows - len(done.failed), self._pool.record.slot_bytes, done.seconds)
        traffic.lost.update(done.failed.values())
        lost = unproven(job.movement, done.failed)
        self._moved.append(Moved(number, frozenset(done.failed), done.seconds, lost))
        return job.lane

    def sealed(self, checksums: Checksums) -> None:
        """A sealing ended."""
        del self._seals[checksums.number]
        count = len(checksums.places) // 8
        self._traffic[Movement.SEAL].add(count, self._pool.record.geometry.body_bytes, checksums.seconds)
        if not self.closed:
            self._checksums.append(checksums)

    def died(self) -> None:
        """The process has ended: nothing that is outstanding will happen any more."""
        for number, job in list(self._jobs.items()):
            self.done(Done(self.number, number, dict.fromkeys(range(job.rows), Loss.DIED), 0.0))
        self._seals.clear()
