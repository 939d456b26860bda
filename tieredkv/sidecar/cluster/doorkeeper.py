"""Listens for other nodes; only who has proven itself reaches the loop.

Ownership: the listening thread owns the listener; each greeting has a thread of its own, which ends by its
deadline and hands its socket to the inbox or closes it. `_greeting` and the counts are under the lock.
"""

import logging
import socket
import threading
from collections import Counter
from contextlib import suppress
from time import monotonic
from typing import Final

from tieredkv.errors import ConfigError, TieredKVError
from tieredkv.sidecar.cluster.acquaintance import HANDSHAKE_DEADLINE_S, Itself, OwnHello, acquaint
from tieredkv.sidecar.cluster.security import Security, plain_address
from tieredkv.sidecar.cluster.settings import Address
from tieredkv.sidecar.inbox import Inbox

logger = logging.getLogger("tieredkv.sidecar")

GREETINGS_MAX: Final = 16
"""So many greetings at a time; who comes beyond is hung up on, and may try again."""

GREETINGS_PER_HOST_MAX: Final = 6
"""Of one host, so that it cannot keep the others out."""

BACKLOG: Final = 64
_PAUSE_S: Final = 0.1
"""After an accept that failed, for want of descriptors perhaps."""


class Doorkeeper:
    """Posts `PeerJoined` for every node that may enter."""

    def __init__(self, listen: Address, security: Security, own_hello: OwnHello, inbox: Inbox) -> None:
        """Raises ConfigError when the address cannot be bound."""
        self._security = security
        self._own_hello = own_hello
        self._inbox = inbox
        self._lock = threading.Lock()
        self._greeting: Counter[str] = Counter()
        self._closing = threading.Event()
        self._refused = 0
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        try:
            self._listener = socket.create_server((listen.host, listen.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cluster.listen: {listen}: {error.strerror or error}; choose another address") from None
        self.address = Address(listen.host, int(self._listener.getsockname()[1]))
        """Where it listens, with the port that a port of 0 became."""
        self._thread = threading.Thread(target=self._listen, name="tieredkv-doorkeeper", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> int:
        """Who came and was not let in, so far."""
        with self._lock:
            return self._refused

    def close(self) -> None:
        """Listen no more. Greetings that are under way end by their deadline."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                connected, peer = self._listener.accept()
            except OSError as error:
                if not self._closing.wait(_PAUSE_S):
                    logger.warning("no peer accepted: %s", error.strerror)
                continue
            self._admit(connected, str(peer[0]))

    def _admit(self, connected: socket.socket, host: str) -> None:
        with self._lock:
            full = self._greeting.total() >= GREETINGS_MAX or self._greeting[host] >= GREETINGS_PER_HOST_MAX
            if full:
                self._refused += 1
            else:
                self._greeting[host] += 1
        if full:
            connected.close()
            return
        threading.Thread(target=self._greet, args=(connected, host), name="tieredkv-greeting", daemon=True).start()

    def _greet(self, connected: socket.socket, host: str) -> None:
        until_s = monotonic() + HANDSHAKE_DEADLINE_S
        address = plain_address(connected)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = self._security.accept(connected, until_s)
            joined = acquaint(stream, self._own_hello, None, until_s)
        except Itself as error:
            logger.debug("%s", error)
        except (TieredKVError, OSError) as error:
            connected.close()
            with self._lock:
                self._refused += 1
            logger.warning("peer at %s not let in: %s", address, error)
        else:
            if joined.hello.visit or self._closing.is_set():
                joined.stream.close()
            else:
                self._inbox.post(joined)
        finally:
            with self._lock:
                self._greeting[host] -= 1
                self._greeting += Counter()  # forgets hosts that have none
