"""A pool's mover in a cluster: what other nodes are slow to take must not stop what this node does itself."""

from collections import deque
from types import SimpleNamespace
from typing import cast

from tieredkv.brain.moves import Fetch, Job, JobId, Moved, Offer, PeerId
from tieredkv.clock import ManualClock
from tieredkv.metrics import Totals
from tieredkv.sidecar.cluster.columns import pack32
from tieredkv.sidecar.cluster.conversation import Conversation, Listeners
from tieredkv.sidecar.cluster.movements import OFFERS_MAX, ClusterMover
from tieredkv.sidecar.cluster.peer import Peer
from tieredkv.sidecar.cluster.peer_protocol import OfferTaken
from tieredkv.sidecar.cluster.sharing import PoolSharing
from tieredkv.sidecar.mover.pool import PoolMover
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.types import Key

PEER = PeerId(0)
SPACE = b"s" * 16


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


class SealedSharing:
    """All slots can be read by others."""

    def offerable(self, slots: object, generations: object) -> bool:
        return True


class NobodyListens:
    """There are no other nodes to tell anything."""

    def peers(self) -> list[Peer]:
        return []


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


def test_an_answer_to_a_former_pools_offer_is_nothing() -> None:
    here = IdleMover()
    mover = ClusterMover(
        cast("PoolMover", here),
        cast("PoolSharing", SealedSharing()),
        ManualClock(),
        say=lambda _: True,
        asked=lambda _, __: True,
    )
    assert mover.submit(offer(1))
    conversation = Conversation(
        cast("Listeners", NobodyListens()), Totals(), invited=lambda _: None, reset=lambda _, __: None
    )
    pool = SimpleNamespace(namespace=SPACE, epoch=7, sharing=SealedSharing(), cluster_mover=mover)
    conversation.pools[SPACE] = cast("WarmPool", pool)
    peer = cast("Peer", SimpleNamespace(id=PEER))
    conversation.take(peer, OfferTaken(SPACE, 6, 1, pack32([0])))
    assert not mover.poll(10)
    conversation.take(peer, OfferTaken(SPACE, 7, 1, pack32([0])))
    (moved,) = mover.poll(10)
    assert not moved.failed
