"""The other nodes of the cluster: who is there, who can be asked. What they say, `conversation` understands.

Ownership: the loop's thread. Connecting and authenticating happen in threads of the doorkeeper and the
dialer, membership in one of its own; all of them post to the inbox. A peer's nonsense closes its
connection and nothing else.
"""

import logging
import selectors
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import time
from typing import Final

from msgspec.structs import replace

from tieredkv.brain.moves import Offer, PeerId
from tieredkv.clock import Clock
from tieredkv.errors import ProtocolError
from tieredkv.metrics import FAILURES, Totals
from tieredkv.protocol import Message
from tieredkv.sidecar.cluster import peer_protocol
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.agreement import greeting, preferred
from tieredkv.sidecar.cluster.breaker import Breaker
from tieredkv.sidecar.cluster.conversation import Conversation
from tieredkv.sidecar.cluster.dialer import Dialer, DialFailed
from tieredkv.sidecar.cluster.doorkeeper import Doorkeeper
from tieredkv.sidecar.cluster.link import PeerLink
from tieredkv.sidecar.cluster.membership import EtcdMembership, Members, listed
from tieredkv.sidecar.cluster.peer import Peer
from tieredkv.sidecar.cluster.peer_protocol import (
    PeerHello,
    PoolNews,
)
from tieredkv.sidecar.cluster.security import make_security
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings
from tieredkv.sidecar.connection import ConnectionLost
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION
from tieredkv.types import Key

logger = logging.getLogger("tieredkv.sidecar")

PING_EVERY_S: Final = 1.0
SILENCE_MAX_S: Final = 5.0
"""A node that says nothing for so long is gone; it answers pings as long as its loop turns."""

DIAL_EVERY_S: Final = 0.5
DIAL_BACKOFF_MAX_S: Final = 5.0
PEERS_MAX: Final = 256


@dataclass(slots=True)
class _Dial:
    """An address of a member: when it is dialled next, and how long after that."""

    at_s: float
    backoff_s: float = DIAL_EVERY_S


class Neighbours:
    """See the module. All methods are called by the loop, `react` and `exchange` when something happened."""

    def __init__(
        self,
        settings: ClusterSettings,
        epoch: int,
        inbox: Inbox,
        clock: Clock,
        totals: Totals,
        selector: selectors.BaseSelector,
        *,
        invited: Callable[[PoolNews], None],
        reset: Callable[[WarmPool, int], None],
    ) -> None:
        """`invited`: a node has a pool of a namespace that is not here. `reset`: a pool's weights are old.

        Raises ConfigError when what the operator said cannot be.
        """
        self._settings = settings
        self._clock = clock
        self._totals = totals
        self._selector = selector
        self._greeting = greeting(settings, epoch=epoch, vineyard=VINEYARD_VERSION, wall_s=0.0)
        security = make_security(settings)
        self._doorkeeper = (
            Doorkeeper(settings.listen, security, self._hello, inbox) if settings.listen is not None else None
        )
        self._dialer = Dialer(security, self._hello, inbox)
        self._membership = EtcdMembership(settings, epoch, inbox) if settings.etcd else None
        self._dials: dict[Address, _Dial] = {}
        self._itself: set[Address] = set()
        # Which node was met at an address that was dialled, while it is there: it may be connected by another.
        self._met: dict[Address, str] = {}
        self._peers: dict[str, Peer] = {}
        self._by_id: dict[PeerId, Peer] = {}
        self._breakers: dict[str, Breaker] = {}
        self._doomed: dict[PeerId, str] = {}
        self.conversation = Conversation(self, totals, invited=invited, reset=reset)
        self._complaints: set[str] = set()
        self._trouble = ""
        if not settings.etcd:
            self._members(listed(settings))

    # --- the loop -----------------------------------------------------------------------------------

    def react(self, event: PeerJoined | DialFailed | Members) -> None:
        """Something came of what a thread did."""
        match event:
            case PeerJoined():
                self._joined(event)
            case DialFailed():
                self._dialer.ended(event.address)
                self._not_reached(event)
            case Members():
                self._members(event)

    def exchange(self, link: PeerLink, mask: int) -> None:
        """A peer's socket is ready."""
        peer = self._peers.get(link.hello.node)
        if peer is None or peer.link is not link or peer.id in self._doomed:
            return
        try:
            if mask & selectors.EVENT_WRITE:
                link.flush()
            if mask & selectors.EVENT_READ:
                for message in link.receive(self._clock.now_s()):
                    self.conversation.take(peer, message)
        except ProtocolError as error:
            self._totals.add(FAILURES, "peer_protocol")
            self._doom(peer, f"protocol error: {error}")
        except ConnectionLost as error:
            self._doom(peer, str(error))

    def tick(self, now_s: float) -> None:
        """What is done by time; and what waits for room in a socket."""
        for address, dial in self._dials.items():
            if now_s >= dial.at_s and not self._connected(address) and self._dialer.dial(address):
                dial.at_s = now_s + dial.backoff_s
                dial.backoff_s = min(2 * dial.backoff_s, DIAL_BACKOFF_MAX_S)
        for peer in self._peers.values():
            if now_s - peer.link.heard_s > SILENCE_MAX_S:
                self._doom(peer, f"silent for {SILENCE_MAX_S:g} s")
            elif now_s - peer.pinged_s > PING_EVERY_S:
                peer.pinged_s = now_s
                self.say(peer, peer_protocol.Ping(0))
                self.conversation.remind(peer)
            self.conversation.tell_changes(peer)
        self._part()
        for peer in self._peers.values():
            if peer.link.has_output != peer.link.output_watched:
                peer.link.output_watched = peer.link.has_output
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.link.has_output else 0)
                self._selector.modify(peer.link, wanted)

    def close(self) -> None:
        """Leave the cluster."""
        if self._membership is not None:
            self._membership.close()
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        for peer in list(self._peers.values()):
            self._doom(peer, "this node ends")
        self._part()

    @property
    def busy(self) -> bool:
        """Whether `tick` should be called soon."""
        return any(peer.untold for peer in self._peers.values())

    # --- what pools ask -----------------------------------------------------------------------------

    def offer(self, pool: WarmPool, job: Offer) -> bool:
        """Offer a pool's chunks to a node. False when it is gone."""
        return self.conversation.offer(pool, job)

    def used(self, pool: WarmPool, read: Mapping[PeerId, list[tuple[int, Key]]]) -> None:
        """These chunks were read from other nodes, whose policies should know."""
        self.conversation.used(pool, read)

    def was_reset(self, pool: WarmPool) -> None:
        """The weights of a pool changed."""
        self.conversation.was_reset(pool)

    def usable(self, peer: PeerId) -> bool:
        """Whether a node is worth asking now."""
        found = self._by_id.get(peer)
        return found is not None and peer not in self._doomed and found.breaker.usable(self._clock.now_s())

    def asked(self, peer: PeerId, answered: bool | None) -> bool:
        """See ClusterMover."""
        found = self._by_id.get(peer)
        if found is None:
            return False
        now_s = self._clock.now_s()
        if answered is None:
            usable = self.usable(peer)
            if usable:
                found.breaker.begin(now_s)
            return usable
        if answered:
            found.breaker.succeed()
        else:
            opened = found.breaker.opened
            found.breaker.fail(now_s)
            if found.breaker.opened > opened:
                self._totals.add(FAILURES, "peer_unanswered")
                logger.warning("node %s does not answer; asking it less", found.node)
        return True

    def document(self) -> dict[str, object]:
        """For `tieredkv status`."""
        now_s = self._clock.now_s()
        return {
            "node": self._settings.node_name,
            "cluster": self._settings.name,
            "trouble": self._trouble,
            "refused": self._doorkeeper.refused if self._doorkeeper is not None else 0,
            "peers": [
                {
                    "node": peer.node,
                    "breaker": peer.breaker.state(now_s).name.lower(),
                    "opened": peer.breaker.opened,
                    "silent_s": round(now_s - peer.link.heard_s, 3),
                    "clock_apart_s": round(peer.link.clock_apart_s, 3),
                    "pools": len(peer.news),
                    "untold": peer.untold,
                }
                for peer in self._peers.values()
            ],
        }

    def breakers(self) -> Iterator[tuple[str, int]]:
        """Of each node the state of its breaker, for metrics."""
        now_s = self._clock.now_s()
        for peer in self._peers.values():
            yield peer.node, int(peer.breaker.state(now_s))

    # --- who is there -------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        """This node's name."""
        return self._settings.node_name

    def _hello(self) -> PeerHello:
        return replace(self._greeting, wall_s=time())

    def _members(self, members: Members) -> None:
        self._trouble = members.trouble
        now_s = self._clock.now_s()
        wanted = {member.address for member in members.members} - self._itself
        for address in wanted - self._dials.keys():
            self._dials[address] = _Dial(now_s)
        for address in self._dials.keys() - wanted:
            del self._dials[address]
            self._met.pop(address, None)

    def _connected(self, address: Address) -> bool:
        return address in self._met or any(address == self._address_of(peer) for peer in self._peers.values())

    @staticmethod
    def _address_of(peer: Peer) -> Address:
        if peer.link.dialled is not None:
            return peer.link.dialled
        hello = peer.link.hello
        return Address(hello.control_host or peer.link.host, hello.control_port)

    def _not_reached(self, failed: DialFailed) -> None:
        if failed.itself:
            self._itself.add(failed.address)
            self._dials.pop(failed.address, None)
            return
        self.complain(f"node at {failed.address}: {failed.reason}")

    def _joined(self, joined: PeerJoined) -> None:
        if joined.dialled is not None:
            self._dialer.ended(joined.dialled)
        now_s = self._clock.now_s()
        link = PeerLink(joined, now_s)
        node = link.hello.node
        known = self._peers.get(node)
        if known is not None and known.link.hello.epoch == link.hello.epoch:
            here, there = link.dialled is not None, known.link.dialled is not None
            # Dialled by both at once: both keep the same one. An older one of the same kind may be dead.
            if here != there and not preferred(self._greeting, link.hello, dialled_here=here):
                self._meet(joined.dialled, node)
                link.close()
                return
        if known is not None:
            self._doom(known, "its place was taken by a new connection")
            self._part()
        if len(self._peers) >= PEERS_MAX:
            link.close()
            self.complain(f"node {node} is not let in: there are {PEERS_MAX} others")
            return
        number = next(PeerId(at) for at in range(PEERS_MAX) if at not in self._by_id)
        breaker = self._breakers.setdefault(node, Breaker())
        breaker.hurry(now_s)
        peer = Peer(number, link, breaker, now_s)
        self._peers[node] = self._by_id[number] = peer
        self._selector.register(link, selectors.EVENT_READ)
        self._meet(joined.dialled, node)
        logger.info("node %s joined (%s)", node, link.host)
        self.conversation.joined(peer)

    def _meet(self, dialled: Address | None, node: str) -> None:
        """A node, which is connected, was met at an address: there is no need to dial that while it stays."""
        dial = self._dials.get(dialled) if dialled is not None else None
        if dialled is not None and dial is not None:
            dial.backoff_s = DIAL_EVERY_S
            self._met[dialled] = node

    def _doom(self, peer: Peer, why: str) -> None:
        """Part with a node at the end of this turn; until then it is not listened to."""
        self._doomed.setdefault(peer.id, why)

    def _part(self) -> None:
        while self._doomed:
            number, why = self._doomed.popitem()
            peer = self._by_id.pop(number)
            del self._peers[peer.node]
            self._met = {address: node for address, node in self._met.items() if node != peer.node}
            logger.info("node %s left: %s", peer.node, why)
            self._selector.unregister(peer.link)
            peer.link.close()
            self.conversation.left(peer)

    # --- for the conversation -----------------------------------------------------------------------

    def peers(self) -> Iterable[Peer]:
        """All that are listened to."""
        return [peer for peer in self._peers.values() if peer.id not in self._doomed]

    def peer(self, number: PeerId) -> Peer | None:
        """One that is listened to."""
        return self._by_id.get(number) if number not in self._doomed else None

    def complain(self, what: str) -> None:
        """Log once what would be repeated."""
        if what not in self._complaints and len(self._complaints) < PEERS_MAX:
            self._complaints.add(what)
            logger.warning("%s", what)

    def say(self, peer: Peer, message: Message) -> bool:
        """Queue a message; False when the node is gone."""
        if peer.id in self._doomed:
            return False
        try:
            peer.link.send(message)
        except ConnectionLost as error:
            self._doom(peer, str(error))
            return False
        return True
