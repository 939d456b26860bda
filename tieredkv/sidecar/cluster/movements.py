"""A pool's mover in a cluster: what the process beside us moves, and what other nodes are asked to pull.

Ownership: the loop's thread. No call waits. It also learns from every result whether a node is worth asking.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tieredkv.brain.moves import Fetch, Job, JobId, Moved, Offer, PeerId, Pull
from tieredkv.clock import Clock
from tieredkv.sidecar.cluster.sharing import PoolSharing
from tieredkv.sidecar.mover.pool import PoolMover

OFFERS_MAX: Final = 16
"""Offers of a pool that may be open."""

OFFER_DEADLINE_S: Final = 5.0
"""From the brain's decision to the answer: the checksums, the peer's decision, its reading."""


@dataclass(slots=True)
class _Open:
    job: Offer
    since_s: float
    until_s: float
    said: bool = False


class ClusterMover:
    """tieredkv.brain.moves.Mover for a pool that has peers."""

    def __init__(
        self,
        here: PoolMover,
        sharing: PoolSharing,
        clock: Clock,
        *,
        say: Callable[[Offer], bool],
        asked: Callable[[PeerId, bool | None], bool],
    ) -> None:
        """`say` sends an offer, or returns False when the node is gone. `asked(peer, None)` asks whether a node
        may be asked now, which then is done; `asked(peer, answered)` tells whether it answered.
        """
        self._here = here
        self._sharing = sharing
        self._clock = clock
        self._say = say
        self._asked = asked
        self._readings: dict[JobId, PeerId] = {}
        self._cancelled: set[JobId] = set()
        self._offers: dict[JobId, _Open] = {}
        self._moved: deque[Moved] = deque()

    # --- Mover --------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more jobs, offers aside, would be taken now."""
        return self._here.room()

    def offer_room(self) -> int:
        """How many more offers would be taken now."""
        return OFFERS_MAX - len(self._offers)

    def submit(self, job: Job) -> bool:
        """Take the job over; False while there is enough to do."""
        if isinstance(job, Offer):
            if len(self._offers) >= OFFERS_MAX:
                return False
            now_s = self._clock.now_s()
            self._offers[job.number] = _Open(job, now_s, now_s + OFFER_DEADLINE_S)
            self._say_offers()
            return True
        if not isinstance(job, Fetch | Pull):
            return self._here.submit(job)
        if not self._asked(job.peer, None):
            # Somebody else has waited for it in vain; nobody else shall.
            self._moved.append(Moved(job.number, frozenset(range(len(job))), 0.0))
            return True
        if not self._here.submit(job):
            return False
        self._readings[job.number] = job.peer
        return True

    def cancel(self, number: JobId) -> None:
        """Nobody wants this job any more. Its result comes anyhow."""
        if number in self._offers:
            self._end_offer(number, frozenset())
        else:
            if number in self._readings:
                self._cancelled.add(number)
            self._here.cancel(number)

    def poll(self, count_max: int) -> list[Moved]:
        """Up to `count_max` results, each once."""
        self._say_offers()
        for moved in self._here.poll(count_max):
            self._learn(moved)
            self._moved.append(moved)
        return [self._moved.popleft() for _ in range(min(count_max, len(self._moved)))]

    # --- offers -------------------------------------------------------------------------------------

    def answered(self, peer: PeerId, number: int, stored: Callable[[int], frozenset[int]]) -> None:
        """The node has pulled what it wants: rows `stored(rows)`. Unknown and late answers are nothing."""
        offer = self._offers.get(JobId(number))
        if offer is not None and offer.said and offer.job.peer == peer:
            self._end_offer(JobId(number), stored(len(offer.job)))

    def left(self, peer: PeerId) -> None:
        """The node is gone: it pulls nothing more that we have to wait for."""
        for number in [number for number, offer in self._offers.items() if offer.job.peer == peer]:
            self._end_offer(number, frozenset())

    def _say_offers(self) -> None:
        """Say what can be read by others now; end what nobody answered in time."""
        now_s = self._clock.now_s()
        for number, offer in list(self._offers.items()):
            if now_s >= offer.until_s:
                if offer.said:
                    self._asked(offer.job.peer, False)
                self._end_offer(number, frozenset())
            elif not offer.said and self._sharing.offerable(offer.job.slots, offer.job.generations):
                offer.said = True
                if not self._say(offer.job):
                    self._end_offer(number, frozenset())

    def _end_offer(self, number: JobId, stored: frozenset[int]) -> None:
        offer = self._offers.pop(number)
        failed = frozenset(range(len(offer.job))) - stored
        self._moved.append(Moved(number, failed, self._clock.now_s() - offer.since_s))

    def _learn(self, moved: Moved) -> None:
        """A node that answers, be it with what is not wanted, is there."""
        peer = self._readings.pop(moved.number, None)
        cancelled = moved.number in self._cancelled
        self._cancelled.discard(moved.number)
        if peer is None:
            return
        if moved.unproven or not moved.failed:
            self._asked(peer, True)
        elif not cancelled:
            self._asked(peer, False)
