"""The engines of this node: who is attached to which pool, and what their messages do.

Ownership: the loop's thread. A method that raises ProtocolError or ConnectionLost wants that connection
closed, and nothing else.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from tieredkv import protocol
from tieredkv.clock import Clock
from tieredkv.errors import ProtocolError
from tieredkv.metrics import FAILURES, PREFILL, Totals
from tieredkv.sidecar.attachments import AttachmentLock, AttachmentLocks
from tieredkv.sidecar.connection import Connection, ConnectionLost
from tieredkv.sidecar.session import SCHEDULER, WORKER, Asker, Orphans, Session
from tieredkv.sidecar.warmpool import NOBODY, News, Slots, WarmPool, slots_of
from tieredkv.types import EngineId, RequestId

logger = logging.getLogger("tieredkv.sidecar")

LEASE_SLOTS_MAX: Final = 1 << 20
PINS_OUTLAST_S: Final = 5.0
"""How long pins outlast the connection of their scheduler: enough for the copies that it had begun."""

REASON_CHARS_MAX: Final = 400

_NO_LEASE: Final = protocol.Leased(b"", b"")


class Engines:
    """All sessions."""

    def __init__(
        self,
        locks: AttachmentLocks,
        totals: Totals,
        hang_up: Callable[[Connection, str], None],
        clock: Clock,
    ) -> None:
        """`hang_up` closes a connection soon, not at once; until then it is not served any more."""
        self.sessions: dict[EngineId, Session] = {}
        self._of: dict[int, Session] = {}
        self._locks = locks
        self._totals = totals
        self._hang_up = hang_up
        self._clock = clock

    def uses(self, pool: WarmPool) -> bool:
        """Whether an engine is attached to the pool, or may still write into it."""
        return any(session.pool is pool for session in self.sessions.values())

    def conflict(self, hello: protocol.Hello, pool: WarmPool) -> str | None:
        """Why this greeting does not go together with the engine's other connections, or None."""
        session = self.sessions.get(EngineId(hello.engine_id))
        if session is not None and session.pool is not pool:
            return f"engine {hello.engine_id} is attached to another namespace"
        if session is not None and session.world_size != hello.world_size:
            return f"engine {hello.engine_id} has a world size of {session.world_size}, not {hello.world_size}"
        return None

    def attach(self, connection: Connection, hello: protocol.Hello, pool: WarmPool, arena_fd: int, size: int) -> None:
        """Welcome a scheduler or worker: hand over the arena and a lock. `size` is the arena's."""
        engine_id = EngineId(hello.engine_id)
        session = self.sessions.get(engine_id)
        if session is None:
            session = self.sessions[engine_id] = Session(engine_id, pool, hello.world_size)
            pool.manager.attach(engine_id)
            logger.info("engine %s attached", engine_id)
        assert session.pool is pool
        # A scheduler's leases are written by the workers, a worker's by itself.
        writers = tuple(
            lock
            for lock in session.locks
            if lock.role == WORKER and (hello.role == SCHEDULER or lock.rank == hello.rank)
        )
        lock, lock_fd = self._locks.create(engine_id, hello.role, hello.rank)
        former = session.join(connection, hello.role, hello.rank, lock)
        connection.role = hello.role
        self._of[connection.number] = session
        if former is not None:
            self._hang_up(former, "its place was taken by a new connection")
        self._resume(session, connection, hello, writers)
        pool.last_used_s = max(pool.last_used_s, connection.opened_s)
        welcome = protocol.Welcome(
            protocol.PROTOCOL_MAX,
            pool.epoch,
            size,
            pool.made.record.slot_bytes,
            pool.made.record.offsets.astype("<i8", copy=False).tobytes(),
        )
        connection.send(welcome, (os.dup(arena_fd), lock_fd))
        if hello.role == SCHEDULER and session.verdict is not None:
            connection.send(protocol.Enabled(session.verdict))

    def serve(self, connection: Connection, message: protocol.FromEngine) -> None:
        """Do what a welcomed scheduler or worker says."""
        session = self._of[connection.number]
        match message:
            case protocol.Ledger():
                if refused := self._totals.merge(message.counters):
                    self._totals.add(FAILURES, "ledger_refused", refused)
                if connection.role == SCHEDULER:
                    _learn_prefill(session.pool, message.counters.get(PREFILL, {}))
                    counts = session.pool.manager.counts()
                    connection.send(protocol.PoolState({state.name.lower(): n for state, n in counts.items()}))
            case protocol.Lease():
                self._lease(session, connection, message)
            case protocol.Return():
                session.pool.manager.give_back(session.engine_id, slots_of(message.slots))
            case protocol.SelfTest() if connection.role == WORKER:
                self._judge(session, connection, message)
            case _ if connection.role == SCHEDULER:
                self._serve_scheduler(session, connection, message)
            case _:
                raise ProtocolError(f"{type(message).__name__} from a {connection.role}")

    def reset(self, pool: WarmPool, resets: int) -> None:
        """Forget the pool's chunks: the weights changed, so many times now."""
        self._announce(pool, pool.reset(resets))

    def tell(self, pool: WarmPool, news: News) -> None:
        """Something came of what engines asked for earlier."""
        for engine_id, message in news.loaded:
            session = self.sessions.get(engine_id)
            if session is not None:
                self._tell(session, message)
        if news.evicted:
            self._announce(pool, news.evicted)

    def left(self, connection: Connection) -> None:
        """A welcomed connection was closed."""
        session = self._of.pop(connection.number, None)
        if session is not None:
            session.leave(connection, self._clock.now_s())
            self._settle(session)

    def settle(self, *, all_sessions: bool) -> None:
        """Look who is gone: those without connection always, all others when asked to."""
        for session in list(self.sessions.values()):
            if all_sessions or not session.connections or session.orphans:
                self._settle(session)

    @property
    def unsettled(self) -> bool:
        """Whether settle should be called soon."""
        return any(not session.connections or session.orphans for session in self.sessions.values())

    def forget(self) -> None:
        """The memory behind all sessions is gone; so are what they held. Hangs up on all."""
        sessions, self.sessions, self._of = list(self.sessions.values()), {}, {}
        for session in sessions:
            for connection in session.connections.values():
                self._hang_up(connection, "the warm tier was lost")

    def connections(self) -> int:
        """How many are open."""
        return sum(len(session.connections) for session in self.sessions.values())

    def _serve_scheduler(self, session: Session, connection: Connection, message: protocol.FromEngine) -> None:
        engine_id, pool = session.engine_id, session.pool
        match message:
            case protocol.Arrive():
                if session.enabled:
                    connection.send(pool.arrive(engine_id, message))
                else:
                    groups = len(pool.made.record.geometry.group_strides)
                    connection.send(protocol.Found(message.request, message.seq, [b""] * groups, [b""] * groups))
            case protocol.Publish():
                pool.publish(engine_id, message)
            case protocol.Release():
                pool.release(engine_id, RequestId(message.request))
            case protocol.Live():
                pool.keep_only(engine_id, {RequestId(request) for request in message.requests})
            case protocol.Reset():
                self.reset(pool, pool.resets + 1)
                logger.info("namespace %s was reset by engine %s", pool.namespace.hex(), engine_id)
            case _:
                raise ProtocolError(f"{type(message).__name__} from a {connection.role}")

    def _lease(self, session: Session, connection: Connection, message: protocol.Lease) -> None:
        # A worker leases for its self-test, before the engine is enabled.
        if connection.role == SCHEDULER and not session.enabled:
            connection.send(_NO_LEASE)
            return
        count = min(max(message.count, 0), LEASE_SLOTS_MAX)
        leased, evicted = session.pool.lease(session.engine_id, count, connection.number)
        self._announce(session.pool, evicted)
        connection.send(leased)

    def _judge(self, session: Session, connection: Connection, message: protocol.SelfTest) -> None:
        before = session.verdict
        session.judge(connection, message.reason[:REASON_CHARS_MAX])
        verdict = session.verdict
        if verdict is None or verdict == before:
            return
        if verdict:
            logger.warning("engine %s is refused tiering: %s", session.engine_id, verdict)
            self._totals.add(FAILURES, "selftest")
        else:
            logger.info("engine %s is enabled", session.engine_id)
        self._tell(session, protocol.Enabled(verdict))

    def _resume(
        self, session: Session, connection: Connection, hello: protocol.Hello, writers: tuple[AttachmentLock, ...]
    ) -> None:
        """A scheduler or worker came, perhaps back: what it still writes is its own, what it forgot nobody's.

        `writers` are the living processes that might write into what it forgot.
        """
        pool, engine_id, place = session.pool, session.engine_id, (hello.role, hello.rank)
        current = hello.held_epoch == pool.epoch
        held: Slots = pool.known(slots_of(hello.held_slots)) if current else np.zeros(0, np.int32)
        resumed = pool.manager.resume(engine_id, held)
        former = session.askers.get(place)
        if former is not None:
            forgotten = pool.leases_asked_by(former.number, but=held)
            # The same process knows what it does; another one of the same name does not.
            if current or former.pid == connection.peer_pid != 0 or not writers:
                pool.manager.give_back(engine_id, forgotten)
            elif len(forgotten):
                session.orphans.append(Orphans(forgotten, writers))
            pool.hand_over(forgotten, NOBODY)
        pool.hand_over(held, connection.number)
        session.askers[place] = Asker(connection.number, connection.peer_pid)
        if len(held):
            logger.info("engine %s resumed %d slots, %d of them quarantined", engine_id, len(held), len(resumed))
        if hello.role == SCHEDULER:
            pool.keep_only(engine_id, set())
            session.wants_events = hello.wants_events

    def _announce(self, pool: WarmPool, evicted: Iterable[protocol.Evicted]) -> None:
        """Tell the schedulers that want to know."""
        for message in evicted:
            for session in self.sessions.values():
                if session.pool is pool and session.wants_events:
                    self._tell(session, message)

    def _tell(self, session: Session, message: protocol.Message) -> None:
        """Send to an engine's scheduler, on whose turn it may not be."""
        if session.scheduler is not None:
            try:
                session.scheduler.send(message)
            except ConnectionLost as error:
                self._hang_up(session.scheduler, str(error))

    def _settle(self, session: Session) -> None:
        for slots in session.settle(self._locks):
            session.pool.manager.give_back(session.engine_id, slots)
        left_s = session.scheduler_left_s
        if left_s is not None and self._clock.now_s() - left_s >= PINS_OUTLAST_S:
            # Not the leases: workers may live for long, and still write. A load proves what it read.
            session.scheduler_left_s = None
            session.pool.keep_only(session.engine_id, frozenset())
        if session.gone:
            session.pool.detach(session.engine_id)
            del self.sessions[session.engine_id]
            logger.info("engine %s is gone", session.engine_id)


def _learn_prefill(pool: WarmPool, counted: Mapping[str, float]) -> None:
    """How fast an engine computes, if it said so, and no nonsense."""
    tokens, seconds = counted.get("tokens", 0.0), counted.get("seconds", 0.0)
    if 0 < tokens < math.inf and 0 < seconds < math.inf:
        pool.computed(tokens, seconds)
