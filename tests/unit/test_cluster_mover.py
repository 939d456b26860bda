"""A pool's mover in a cluster: what other nodes are slow to take must not stop what this node does itself."""

from collections import deque
from typing import cast

from tieredkv.brain.moves import Fetch, Job, JobId, Moved, Offer, PeerId
from tieredkv.clock import ManualClock
from tieredkv.sidecar.cluster.movements import OFFERS_MAX, ClusterMover
from tieredkv.sidecar.cluster.sharing import PoolSharing
from tieredkv.sidecar.mover.pool import PoolMover
from tieredkv.types import Key

PEER = PeerId(0)


class IdleMover:
    """Keeps the contract of the process's side; ends jobs when told to."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.moved: deque[Moved] = deque()

    def room(self) -> int:
        return 64 - len(self.jobs)

    def submit(self, job: Job) -> bool:
        self.jobs.append(job)
        return True

    def cancel(self, number: JobId) -> None: ...

    def poll(self, count_max: int) -> list[Moved]:
        return [self.moved.popleft() for _ in range(min(count_max, len(self.moved)))]


class NothingSealed:
    """No slot can be read by others yet."""

    def offerable(self, slots: object, generations: object) -> bool:
        return False


def mover_of(here: IdleMover) -> ClusterMover:
    return ClusterMover(
        cast("PoolMover", here),
        cast("PoolSharing", NothingSealed()),
        ManualClock(),
        say=lambda _: True,
        asked=lambda _, __: True,
    )


def offer(number: int) -> Offer:
    return Offer(JobId(number), (0,), (Key(b"k" * 32),), (Key(b""),), (0,), (0,), (1,), PEER)


def test_open_offers_leave_room_for_own_jobs() -> None:
    here = IdleMover()
    mover = mover_of(here)
    for number in range(OFFERS_MAX):
        assert mover.offer_room() == OFFERS_MAX - number
        assert mover.submit(offer(number))
    assert not mover.offer_room()
    assert not mover.submit(offer(OFFERS_MAX))
    assert mover.room() == 64
    fetch = Fetch(JobId(99), (0,), (Key(b"k" * 32),), (Key(b""),), (0,), (0,), (1,), PEER, (5,), (6,))
    assert mover.submit(fetch)
    assert here.jobs == [fetch]
