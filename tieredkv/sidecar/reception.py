"""From the greeting to the welcome: who is let in, who waits for a pool, who is sent away.

Ownership: the loop's thread.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from tieredkv import protocol
from tieredkv.config import Config
from tieredkv.errors import ProtocolError
from tieredkv.sidecar.admission import refusal
from tieredkv.sidecar.connection import Connection, ConnectionLost
from tieredkv.sidecar.engines import Engines
from tieredkv.sidecar.session import ADMIN
from tieredkv.sidecar.warmtier import Refusal, WarmTier

GREETING_DEADLINE_S: Final = 2.0
POOL_DEADLINE_S: Final = 4.5
"""How long a greeting waits for its pool; less than an engine waits for its welcome."""


class Reception:
    """Greetings that were not answered yet."""

    def __init__(
        self, config: Config, tier: WarmTier, engines: Engines, hang_up: Callable[[Connection, str], None]
    ) -> None:
        """`hang_up` closes a connection soon; until then it is not served any more."""
        self._connections_max = config.limits.connections_max
        self._tier = tier
        self._engines = engines
        self._hang_up = hang_up
        self._waiting: dict[int, tuple[Connection, protocol.Hello]] = {}

    @property
    def waiting(self) -> int:
        """Greetings that wait for their pool."""
        return len(self._waiting)

    def greet(self, connection: Connection, hello: protocol.Hello) -> None:
        """Answer a greeting, now or later. Raises ProtocolError and ConnectionLost."""
        if connection.welcomed or connection.number in self._waiting:
            raise ProtocolError("a second greeting")
        reason = connection.barred or refusal(hello)
        if reason:
            self._refuse(connection, reason)
        elif hello.role == ADMIN:
            connection.role = ADMIN
            connection.send(protocol.Welcome(protocol.PROTOCOL_MAX, self._tier.epoch, 0, 0, b""))
        elif self._engines.connections() + len(self._waiting) >= self._connections_max:
            self._refuse(connection, f"{self._connections_max} connections are open (limits.connections_max)")
        else:
            self._waiting[connection.number] = (connection, hello)
            self._admit(connection, hello)

    def retry(self) -> None:
        """Something changed: perhaps there is a pool now."""
        for connection, hello in list(self._waiting.values()):
            try:
                self._admit(connection, hello)
            except ConnectionLost as error:
                self._dismiss(connection, str(error))

    def left(self, connection: Connection) -> None:
        """A connection was closed."""
        self._waiting.pop(connection.number, None)

    def tick(self, connections: Iterable[Connection], now_s: float) -> None:
        """Let in whose pool is there by now; send away who has not greeted, or has waited, for too long."""
        self.retry()
        for connection in connections:
            if connection.welcomed:
                continue
            waited_s = now_s - connection.opened_s
            if connection.number in self._waiting:
                if waited_s > POOL_DEADLINE_S:
                    self._refuse(connection, f"the warm tier is not ready: {self._tier.failure or 'try again'}")
            elif waited_s > GREETING_DEADLINE_S:
                self._dismiss(connection, f"no greeting within {GREETING_DEADLINE_S:g} s")

    def _admit(self, connection: Connection, hello: protocol.Hello) -> None:
        """Welcome an engine if its pool is there; else it waits on."""
        pool = self._tier.pool_for(hello)
        if pool is None:
            return
        reason = pool.reason if isinstance(pool, Refusal) else self._engines.conflict(hello, pool)
        if reason is not None:
            self._refuse(connection, reason)
            return
        assert not isinstance(pool, Refusal)
        del self._waiting[connection.number]
        arena = self._tier.arena
        self._engines.attach(connection, hello, pool, arena.fd, arena.mapping.size_bytes)

    def _refuse(self, connection: Connection, reason: str) -> None:
        with suppress(ConnectionLost):
            connection.send(protocol.Refused(reason))
        self._dismiss(connection, f"refused: {reason}")

    def _dismiss(self, connection: Connection, why: str) -> None:
        self._waiting.pop(connection.number, None)
        self._hang_up(connection, why)
