"""A node that we are connected with, and what we tell each other."""

from dataclasses import dataclass, field

from tieredkv.brain.holdings import Follower
from tieredkv.brain.moves import PeerId
from tieredkv.sidecar.cluster.breaker import Breaker
from tieredkv.sidecar.cluster.link import PeerLink
from tieredkv.sidecar.cluster.peer_protocol import PoolNews
from tieredkv.sidecar.warmpool import WarmPool


@dataclass(slots=True)
class Feed:
    """What a peer is told of one of our pools."""

    pool: WarmPool
    follower: Follower
    number: int = 0


@dataclass(slots=True, eq=False)
class Peer:
    """Owned by the loop."""

    id: PeerId
    link: PeerLink
    breaker: Breaker
    pinged_s: float
    news: dict[bytes, PoolNews] = field(default_factory=dict[bytes, PoolNews])
    feeds: dict[bytes, Feed] = field(default_factory=dict[bytes, Feed])

    @property
    def node(self) -> str:
        """Its name."""
        return self.link.hello.node

    @property
    def untold(self) -> int:
        """Places of our pools that it was not told of."""
        return sum(feed.follower.waiting for feed in self.feeds.values())
