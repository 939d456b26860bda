"""What nodes say to each other about their pools: who has which, what is held where, who takes what.

Ownership: the loop's thread. Links, and who is there, are the business of `neighbours`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tieredkv.brain.intake import Offered
from tieredkv.brain.moves import Offer, PeerId
from tieredkv.brain.values import Pulled
from tieredkv.errors import ProtocolError
from tieredkv.metrics import FAILURES, Totals
from tieredkv.protocol import Message
from tieredkv.sidecar.cluster import columns, peer_protocol
from tieredkv.sidecar.cluster.agreement import pool_conflict
from tieredkv.sidecar.cluster.peer import Feed, Peer
from tieredkv.sidecar.cluster.peer_protocol import Changes, Follow, FromPeer, OfferTaken, PoolGone, PoolNews
from tieredkv.sidecar.cluster.sharing import CHANGES_ROWS_MAX
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.types import Key

OUTBOX_BYTES_LOW: Final = 256 * 1024
"""More changes are said when less than this waits."""

NAMESPACES_MAX: Final = 64
"""Pools that a peer may have."""

USED_ROWS_MAX: Final = 1024


class Listeners(Protocol):
    """The other nodes."""

    def peers(self) -> Iterable[Peer]:
        """All that are listened to."""
        ...

    def peer(self, number: PeerId) -> Peer | None:
        """One that is listened to."""
        ...

    def say(self, peer: Peer, message: Message) -> bool:
        """Queue a message; False when the node is gone."""
        ...

    def complain(self, what: str) -> None:
        """Log once what would be repeated."""
        ...


@dataclass(slots=True)
class _Ticket:
    """An offer of a peer that was taken up."""

    peer: Peer
    namespace: bytes
    epoch: int
    number: int


class Conversation:
    """See the module."""

    def __init__(
        self,
        others: Listeners,
        totals: Totals,
        *,
        invited: Callable[[PoolNews], None],
        reset: Callable[[WarmPool, int], None],
    ) -> None:
        """`invited`: a node has a pool of a namespace that is not here. `reset`: a pool's weights are old."""
        self.pools: dict[bytes, WarmPool] = {}
        """Own pools that are shared, by namespace."""
        self._others = others
        self._totals = totals
        self._invited = invited
        self._reset = reset
        self._tickets: dict[int, _Ticket] = {}
        self._tickets_ever = 0

    # --- nodes --------------------------------------------------------------------------------------

    def joined(self, peer: Peer) -> None:
        """A node is there: tell it what pools there are."""
        for pool in self.pools.values():
            self._announce(peer, pool)

    def left(self, peer: Peer) -> None:
        """It is gone."""
        for pool in self.pools.values():
            self._unshare(peer, pool)
        for namespace in list(peer.feeds):
            self._end_feed(peer, namespace)
        self._tickets = {at: ticket for at, ticket in self._tickets.items() if ticket.peer is not peer}

    def remind(self, peer: Peer) -> None:
        """Of its pools that are not here: when they were heard of there may have been no vineyardd, or no room."""
        for namespace, news in peer.news.items():
            if namespace not in self.pools:
                self._invited(news)

    # --- own pools ----------------------------------------------------------------------------------

    def opened(self, pool: WarmPool) -> None:
        """A pool is in service."""
        self.pools[pool.namespace] = pool
        for peer in self._others.peers():
            self._announce(peer, pool)
            news = peer.news.get(pool.namespace)
            if news is not None:
                self._share(peer, pool, news)

    def closed(self, pool: WarmPool) -> None:
        """A pool is in service no more."""
        del self.pools[pool.namespace]
        for peer in self._others.peers():
            self._unshare(peer, pool)
            self._end_feed(peer, pool.namespace)
            self._others.say(peer, PoolGone(pool.namespace, pool.epoch))
        self._tickets = {
            number: ticket for number, ticket in self._tickets.items() if ticket.namespace != pool.namespace
        }

    def was_reset(self, pool: WarmPool) -> None:
        """The weights of a pool changed: all who share it must know, before they read from here again."""
        for peer in self._others.peers():
            self._announce(peer, pool)

    def pulled(self, pulled: Pulled) -> None:
        """What a peer offered was taken, or not."""
        ticket = self._tickets.pop(pulled.ticket, None)
        if ticket is not None:
            self._others.say(
                ticket.peer, OfferTaken(ticket.namespace, ticket.epoch, ticket.number, columns.pack32(pulled.stored))
            )

    def offer(self, pool: WarmPool, job: Offer) -> bool:
        """Offer a pool's chunks to a node. False when it is gone."""
        peer = self._others.peer(job.peer)
        if peer is None:
            return False
        message = peer_protocol.Offer(
            namespace=pool.namespace,
            epoch=pool.epoch,
            number=job.number,
            groups=columns.pack32(job.groups),
            keys=[bytes(key) for key in job.keys],
            parents=[bytes(parent) for parent in job.parents],
            positions=columns.pack32(job.positions),
            places=columns.pack32(job.slots),
            generations=columns.pack64(job.generations),
        )
        return self._others.say(peer, message)

    def used(self, pool: WarmPool, read: Mapping[PeerId, list[tuple[int, Key]]]) -> None:
        """These chunks were read from other nodes, whose policies should know."""
        for number, chunks in read.items():
            peer = self._others.peer(number)
            news = peer.news.get(pool.namespace) if peer is not None else None
            if peer is None or news is None:
                continue
            some = chunks[:USED_ROWS_MAX]
            groups = columns.pack32(group for group, _ in some)
            keys = [bytes(key) for _, key in some]
            self._others.say(peer, peer_protocol.Used(pool.namespace, news.epoch, groups, keys))

    # --- what is said to a node ---------------------------------------------------------------------

    def _announce(self, peer: Peer, pool: WarmPool) -> None:
        assert pool.sharing is not None
        self._others.say(peer, pool.sharing.news())

    def _begin_feed(self, peer: Peer, message: Follow) -> None:
        pool = self.pools.get(message.namespace)
        self._end_feed(peer, message.namespace)
        if pool is not None and pool.sharing is not None and pool.epoch == message.epoch:
            peer.feeds[message.namespace] = Feed(pool, pool.sharing.follow())

    def _end_feed(self, peer: Peer, namespace: bytes) -> None:
        feed = peer.feeds.pop(namespace, None)
        if feed is not None:
            assert feed.pool.sharing is not None
            feed.pool.sharing.unfollow(feed.follower)

    def tell_changes(self, peer: Peer) -> None:
        """Go on telling a node what is held here, while it takes it in."""
        for namespace, feed in peer.feeds.items():
            while (feed.follower.waiting or not feed.number) and peer.link.outbox_bytes < OUTBOX_BYTES_LOW:
                some = feed.follower.take(CHANGES_ROWS_MAX)
                message = Changes(
                    namespace,
                    feed.pool.epoch,
                    feed.number,
                    not feed.follower.snapshot_left,
                    columns.pack32(some.places),
                    columns.pack64(some.fingerprints),
                    columns.pack64(some.generations),
                )
                feed.number += 1
                if not self._others.say(peer, message):
                    return

    # --- what a node says ---------------------------------------------------------------------------

    def take(self, peer: Peer, message: FromPeer) -> None:
        """A node said something. Raises ProtocolError."""
        match message:
            case PoolNews():
                self._take_news(peer, message)
            case PoolGone():
                self._take_loss(peer, message)
            case Follow():
                self._begin_feed(peer, message)
            case peer_protocol.Ping():
                self._others.say(peer, peer_protocol.Pong(message.number))
            case peer_protocol.Pong():
                pass
            case Changes() | peer_protocol.Offer() | OfferTaken() | peer_protocol.Used():
                pool = self.pools.get(message.namespace)
                if pool is not None:
                    self._take_of_pool(peer, pool, message)
                elif isinstance(message, peer_protocol.Offer):
                    self._others.say(peer, OfferTaken(message.namespace, message.epoch, message.number, b""))
            case _:
                raise ProtocolError(f"{type(message).__name__} is out of turn")

    def _take_of_pool(
        self, peer: Peer, pool: WarmPool, message: Changes | peer_protocol.Offer | OfferTaken | peer_protocol.Used
    ) -> None:
        assert pool.sharing is not None
        assert pool.cluster_mover is not None
        match message:
            case Changes():
                pool.sharing.change(peer.id, message)
            case OfferTaken():
                if message.epoch == pool.epoch:
                    pool.cluster_mover.answered(peer.id, message.number, lambda rows: columns.rows_taken(message, rows))
            case peer_protocol.Offer():
                self._take_offer(peer, pool, message)
            case peer_protocol.Used():
                if message.epoch == pool.epoch:
                    columns.groups_used(message, len(pool.made.record.geometry.group_strides))
                    pool.manager.used([Key(key) for key in dict.fromkeys(message.keys)])

    def _take_loss(self, peer: Peer, message: PoolGone) -> None:
        news = peer.news.get(message.namespace)
        if news is not None and news.epoch == message.epoch:
            del peer.news[message.namespace]
            pool = self.pools.get(message.namespace)
            if pool is not None:
                self._unshare(peer, pool)

    def _take_news(self, peer: Peer, news: PoolNews) -> None:
        if news.namespace not in peer.news and len(peer.news) >= NAMESPACES_MAX:
            raise ProtocolError(f"more than {NAMESPACES_MAX} pools")
        columns.blob_ids(news)
        peer.news[news.namespace] = news
        for ours in self.pools.values():
            assert ours.sharing is not None
            conflict = pool_conflict(ours.sharing.news(), news)
            if conflict is not None:
                self._totals.add(FAILURES, "peer_disagrees")
                self._others.complain(f"nothing is shared with node {peer.node}: {conflict}")
        pool = self.pools.get(news.namespace)
        if pool is not None:
            self._share(peer, pool, news)
        else:
            self._invited(news)

    def _share(self, peer: Peer, pool: WarmPool, news: PoolNews) -> None:
        """A peer has a pool of the same namespace as one of ours."""
        assert pool.sharing is not None
        if pool_conflict(pool.sharing.news(), news) is not None:
            return
        known = pool.sharing.knows(peer.id)
        if known is not None and known.epoch == news.epoch and known.ids == news.ids:
            pool.sharing.renew(peer.id, news)
        else:
            self._unshare(peer, pool)
            rpc = peer.link.rpc
            if rpc is not None:
                pool.sharing.join(peer.id, peer.node, news)
                pool.set_peer(peer.id, rpc, columns.blob_ids(news))
                self._others.say(peer, Follow(news.namespace, news.epoch))
        if news.resets > pool.resets:
            self._reset(pool, news.resets)

    def _unshare(self, peer: Peer, pool: WarmPool) -> None:
        if pool.sharing is not None and pool.sharing.knows(peer.id) is not None:
            pool.sharing.leave(peer.id)
            pool.drop_peer(peer.id)

    def _take_offer(self, peer: Peer, pool: WarmPool, message: peer_protocol.Offer) -> None:
        assert pool.sharing is not None
        news = pool.sharing.knows(peer.id)
        if news is None or news.epoch != message.epoch or news.resets != pool.resets:
            self._others.say(peer, OfferTaken(message.namespace, message.epoch, message.number, b""))
            return
        groups = len(pool.made.record.geometry.group_strides)
        told = columns.offer(message, news.slots + news.pages, groups)
        rows = zip(
            told.groups, message.keys, message.parents, told.positions, told.places, told.generations, strict=True
        )
        self._tickets_ever += 1
        self._tickets[self._tickets_ever] = _Ticket(peer, message.namespace, message.epoch, message.number)
        pool.manager.offered(
            peer.id,
            self._tickets_ever,
            [
                Offered(group, Key(key), Key(parent), position, place, generation)
                for group, key, parent, position, place, generation in rows
            ],
        )
