"""The sidecar's loop: one thread that owns all connections, sessions and pools.

Everything that could take long runs elsewhere and comes back as an event: vineyardd (keeper), page faults
(prefault), HTTP. A peer can neither block the loop nor make it hold more than bounded memory.
"""

import logging
import secrets
import selectors
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from tieredkv import garbage, protocol
from tieredkv.clock import Clock
from tieredkv.config import Config
from tieredkv.errors import ProtocolError
from tieredkv.metrics import FAILURES, Totals
from tieredkv.sidecar import status
from tieredkv.sidecar.administration import Administration
from tieredkv.sidecar.attachments import AttachmentLocks
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.dialer import DialFailed
from tieredkv.sidecar.cluster.link import PeerLink
from tieredkv.sidecar.cluster.membership import Members
from tieredkv.sidecar.cluster.neighbours import Neighbours
from tieredkv.sidecar.cluster.settings import cluster_settings
from tieredkv.sidecar.connection import Connection, ConnectionLost
from tieredkv.sidecar.directory import RuntimeDirectory, is_allowed
from tieredkv.sidecar.engines import Engines
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.keeper import Keeper, Pinged, PoolFailed, PoolMade, Started, StartFailed
from tieredkv.sidecar.mover.client import MoverProcess
from tieredkv.sidecar.prefault import Populated
from tieredkv.sidecar.quarantine import Quarantine
from tieredkv.sidecar.reception import Reception
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.session import ADMIN
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.sidecar.warmtier import WarmTier
from tieredkv.types import Geometry

logger = logging.getLogger("tieredkv.sidecar")

PRIVATE_IDLE_S: Final = 2.0
PRIVATE_FIRST_S: Final = 60.0
ADMINS_MAX: Final = 8
"""Connections beyond the limit of engines, so that `status` works when that is reached."""

INTERNAL_ERRORS_MAX: Final = 10
"""Broken invariants that are survived; then it is better to end, and be adopted."""

MAINTAIN_EVERY_S: Final = 0.5
PAUSE_S: Final = 0.005
"""So long without a message, and the next is not expected at once: an engine sends several per step."""

PAUSE_DEADLINE_S: Final = 2.0
"""How long a busy sidecar waits for a pause; then a message waits instead."""

_TURN_SOON_S: Final = 0.05
_TURN_IDLE_S: Final = 0.5
_SETTLE_ALL_EVERY_S: Final = 1.0


class End:
    """Posted to the inbox: end cleanly."""


class Server:
    """Serves engines until it is told to end."""

    def __init__(
        self,
        config: Config,
        *,
        private: bool,
        listener: socket.socket,
        directory: RuntimeDirectory,
        keeper: Keeper,
        inbox: Inbox,
        clock: Clock,
        recordings: Recordings,
        publish: Callable[[status.Snapshot], None] | None,
    ) -> None:
        """`listener` listens already and is non-blocking; it is closed at the end.

        `publish` is given what HTTP shall serve, twice a second.
        """
        self._config = config
        self._private = private
        self._listener = listener
        self._inbox = inbox
        self._clock = clock
        self._started_s = clock.now_s()
        self._totals = Totals()
        locks = AttachmentLocks(directory.attached)
        # Before any new lock is made: what lies there belongs to a former sidecar.
        self._quarantine: Quarantine | None = Quarantine(locks)
        self._locks = locks
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(inbox, selectors.EVENT_READ)
        self._neighbours = self._neighbourhood(config)
        self._engines = Engines(locks, self._totals, self._doom, clock)
        self._tier = WarmTier(
            config,
            directory,
            keeper,
            inbox,
            clock,
            self._totals,
            recordings,
            in_use=self._in_use,
            renew=self._renew_vineyardd,
            watch=self._watch_mover,
            neighbours=self._neighbours,
        )
        self._recordings = recordings
        self._administration = Administration(self._tier, recordings, self._totals, self._end)
        self._reception = Reception(config, self._tier, self._engines, self._doom)
        self._watched: int | None = None
        self._connections: dict[int, Connection] = {}
        self._doomed: dict[int, str] = {}
        self._connections_ever = 0
        self._last_engine_s: float | None = None
        self._settle_all_s = self._started_s
        self._announced_ready = False
        self._internal_errors = 0
        self._ending = False
        self._publish = publish
        self._publish_s = self._started_s
        self._maintain_s = self._started_s
        self._pools_seen: set[int] = set()

    def run(self) -> None:
        """Serve until the end, then end vineyardd too. Leaves files of the directory to the caller."""
        while not self._ending:
            try:
                self._turn()
            except AssertionError:
                self._internal_errors += 1
                if self._internal_errors > INTERNAL_ERRORS_MAX:
                    raise
                # Nothing in the pools can be trusted any more.
                logger.exception("internal error: %s", [pool.manager.describe() for pool in self._tier.pools.values()])
                self._totals.add(FAILURES, "internal")
                self._lose_vineyardd("the pools are in doubt")
        self._unwatch()
        self._listener.close()
        # Engines need not wait for vineyardd's end; who said stop does.
        for connection in self._connections.values():
            if connection.role != ADMIN:
                connection.close()
        self._tier.end()
        if self._neighbours is not None:
            self._neighbours.close()
        for connection in self._connections.values():
            connection.close()
        self._locks.remove()
        self._selector.close()

    def _turn(self) -> None:
        for key, mask in self._wait():
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._inbox:
                for event in self._inbox.take():
                    self._react(event)
            elif isinstance(key.fileobj, Connection):
                self._exchange(key.fileobj, mask)
            elif isinstance(key.fileobj, PeerLink):
                if self._neighbours is not None:
                    self._neighbours.exchange(key.fileobj, mask)
            elif isinstance(key.fileobj, MoverProcess):
                key.fileobj.receive()
            elif key.fd == self._watched:
                self._lose_vineyardd("vineyardd died")
        self._step(idle=False)
        self._tick(self._clock.now_s())
        self._close_doomed()
        self._watch_output()

    def _step(self, *, idle: bool) -> None:
        for pool in self._tier.pools.values():
            news = pool.step(idle=idle)
            self._engines.tell(pool, news)
            if self._neighbours is not None:
                for pulled in news.pulled:
                    self._neighbours.conversation.pulled(pulled)

    def _neighbourhood(self, config: Config) -> Neighbours | None:
        """The cluster, if there is one. Raises ConfigError."""
        if not config.cluster.enabled:
            return None
        return Neighbours(
            cluster_settings(config.cluster),
            secrets.randbits(63),
            self._inbox,
            self._clock,
            self._totals,
            self._selector,
            invited=lambda news: self._tier.invite(
                news.namespace, news.description, Geometry(news.body_bytes, news.chain_tokens, news.group_strides)
            ),
            reset=self._reset_by_peer,
        )

    def _reset_by_peer(self, pool: WarmPool, resets: int) -> None:
        logger.info("namespace %s was reset on another node", pool.namespace.hex())
        self._engines.reset(pool, resets)

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready next. What takes long is done in a pause, or after a while without any."""
        now_s = self._clock.now_s()
        if now_s < self._maintain_s:
            return self._selector.select(min(self._patience_s(), self._maintain_s - now_s))
        ready = self._selector.select(PAUSE_S)
        if ready and now_s - self._maintain_s < PAUSE_DEADLINE_S:
            return ready
        self._step(idle=True)
        self._collect_garbage()
        self._maintain_s = now_s + MAINTAIN_EVERY_S
        return ready or self._selector.select(0)

    def _collect_garbage(self) -> None:
        present = {pool.epoch for pool in self._tier.pools.values()}
        if self._pools_seen <= present:
            garbage.collect()
        else:
            # What a pool leaves behind is large, and has cycles.
            garbage.collect_all()
        self._pools_seen = present

    def _patience_s(self) -> float:
        if self._neighbours is not None and self._neighbours.busy:
            return _TURN_SOON_S
        soon = self._reception.waiting or self._doomed or self._engines.unsettled or self._quarantine is not None
        return _TURN_SOON_S if soon else _TURN_IDLE_S

    # --- connections --------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            # Out of descriptors, or the peer is gone already.
            logger.warning("no connection accepted: %s", error.strerror)
            return
        self._connections_ever += 1
        connection = Connection(accepted, self._connections_ever, self._clock.now_s())
        allowed = is_allowed(connection.peer_uid, self._config.security.allowed_uids)
        full = len(self._connections) >= self._config.limits.connections_max + ADMINS_MAX
        if full:
            logger.warning("connection of uid %d closed: too many are open", connection.peer_uid)
            connection.close()
            return
        if not allowed:
            connection.barred = f"uid {connection.peer_uid} is not in security.allowed_uids"
        self._connections[connection.number] = connection
        self._selector.register(connection, selectors.EVENT_READ)

    def _exchange(self, connection: Connection, mask: int) -> None:
        if connection.number in self._doomed:
            return
        try:
            if mask & selectors.EVENT_WRITE:
                connection.flush()
            if mask & selectors.EVENT_READ:
                for message in connection.receive():
                    if connection.number in self._doomed:
                        return
                    self._take(connection, message)
        except ProtocolError as error:
            self._totals.add(FAILURES, "protocol")
            self._doom(connection, f"protocol error: {error}")
        except ConnectionLost as error:
            self._doom(connection, str(error))

    def _take(self, connection: Connection, message: protocol.FromEngine) -> None:
        if isinstance(message, protocol.Hello):
            self._reception.greet(connection, message)
        elif not connection.welcomed:
            raise ProtocolError(f"{type(message).__name__} before the greeting")
        elif isinstance(message, protocol.StatusAsk):
            connection.send(protocol.Status(msgspec.json.encode(self._document())))
        elif connection.role != ADMIN:
            self._engines.serve(connection, message)
        else:
            self._administration.serve(connection, message)

    def _end(self) -> None:
        self._ending = True

    def _doom(self, connection: Connection, why: str) -> None:
        """Close a connection at the end of this turn; until then it is not served."""
        self._doomed.setdefault(connection.number, why)

    def _close_doomed(self) -> None:
        while self._doomed:
            number, why = self._doomed.popitem()
            connection = self._connections.pop(number, None)
            if connection is None:
                continue
            level = logging.DEBUG if connection.role == ADMIN else logging.INFO
            logger.log(level, "connection %d (%s) closed: %s", number, connection.role or "no greeting", why)
            self._selector.unregister(connection)
            connection.close()
            self._reception.left(connection)
            self._recordings.left(connection)
            self._engines.left(connection)

    def _watch_output(self) -> None:
        """Let the selector tell when a full socket has room again."""
        for connection in self._connections.values():
            if connection.has_output != connection.output_watched:
                connection.output_watched = connection.has_output
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_output else 0)
                self._selector.modify(connection, wanted)

    # --- events -------------------------------------------------------------------------------------

    def _react(self, event: object) -> None:
        match event:
            case End():
                self._end()
            case Started():
                self._tier.started(event)
                self._watch()
            case StartFailed():
                self._tier.start_failed(event)
            case PoolMade():
                self._tier.pool_made(event)
            case PoolFailed():
                if self._tier.pool_failed(event):
                    self._reception.retry()
                    self._lose_vineyardd("it may have leaked memory")
            case Populated():
                self._tier.populated(event)
            case Pinged():
                self._tier.pinged(event)
            case PeerJoined() | DialFailed() | Members():
                if self._neighbours is not None:
                    self._neighbours.react(event)
            case _:
                raise AssertionError(f"unknown event {event!r}")
        self._reception.retry()

    def _watch(self) -> None:
        if self._tier.vineyardd is None:
            return
        self._watched = self._tier.vineyardd.pidfd
        self._selector.register(self._watched, selectors.EVENT_READ)
        if not self._announced_ready:
            self._announced_ready = True
            logger.info("ready in %.3f s", self._clock.now_s() - self._started_s)

    def _watch_mover(self, mover: MoverProcess, wanted: bool) -> None:
        if wanted:
            self._selector.register(mover, selectors.EVENT_READ)
        else:
            self._selector.unregister(mover)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._selector.unregister(self._watched)
            self._watched = None

    def _lose_vineyardd(self, why: str) -> None:
        logger.error("%s; starting another vineyardd, the warm tier is empty", why)
        self._unwatch()
        self._engines.forget()
        # Nobody can write into the memory of the pools to come.
        self._quarantine = None
        self._tier.lost()

    def _renew_vineyardd(self) -> None:
        self._unwatch()
        self._tier.renewed()

    # --- time ---------------------------------------------------------------------------------------

    def _tick(self, now_s: float) -> None:
        self._tier.tick(now_s)
        if self._tier.distrusted:
            self._lose_vineyardd("pool.json would mislead the next sidecar")
        if self._neighbours is not None:
            self._neighbours.tick(now_s)
        self._recordings.tick(now_s, self._doom)
        self._reception.tick(self._connections.values(), now_s)
        everything = now_s >= self._settle_all_s
        if everything:
            self._settle_all_s = now_s + _SETTLE_ALL_EVERY_S
        self._engines.settle(all_sessions=everything)
        self._end_quarantine()
        if self._private:
            self._end_when_alone(now_s)
        if self._publish is not None and now_s >= self._publish_s:
            self._publish_s = now_s + _TURN_IDLE_S
            breakers = dict(self._neighbours.breakers()) if self._neighbours is not None else {}
            self._publish(
                status.Snapshot(status.metrics_text(self._totals, self._tier, breakers), self._tier.ready, now_s)
            )

    def _end_quarantine(self) -> None:
        if self._quarantine is None or not self._tier.ready:
            return
        if self._quarantine.settle(self._engines.sessions.values()):
            for pool in self._tier.pools.values():
                pool.manager.end_quarantine()
            self._quarantine = None

    def _end_when_alone(self, now_s: float) -> None:
        if self._engines.connections() or self._reception.waiting:
            self._last_engine_s = now_s
        elif self._last_engine_s is not None and now_s - self._last_engine_s > PRIVATE_IDLE_S:
            logger.info("the engine is gone: so is its private sidecar")
            self._ending = True
        elif self._last_engine_s is None and now_s - self._started_s > PRIVATE_FIRST_S:
            logger.warning("no engine came within %g s", PRIVATE_FIRST_S)
            self._ending = True

    def _in_use(self, pool: WarmPool) -> bool:
        # A process of before may still write into adopted memory.
        quarantined = self._quarantine is not None and self._tier.adopted
        return quarantined or self._engines.uses(pool)

    def _document(self) -> dict[str, object]:
        return status.document(
            self._tier,
            self._engines.sessions.values(),
            self._totals,
            uptime_s=self._clock.now_s() - self._started_s,
            warm_bytes=self._config.warm.size_bytes,
            quarantine_writers=self._quarantine.writers if self._quarantine is not None else 0,
            cluster=self._neighbours.document() if self._neighbours is not None else None,
        )
