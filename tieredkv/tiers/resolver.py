"""Looking up a host's addresses with a deadline, which the C library does not offer."""

import socket
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from tieredkv.errors import VineyardError

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
Lookup = list[Address] | OSError | UnicodeError

ADDRESSES_MAX: Final = 8


class Resolver:
    """Looks up one host. Used by one thread; at most one look-up of it runs in another.

    A numeric address needs neither a look-up nor the thread.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._numeric: list[Address] | None = None
        with suppress(OSError, UnicodeError):
            self._numeric = self._look_up(socket.AI_NUMERICHOST)
        self._answers: SimpleQueue[Lookup] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def addresses(self, timeout_s: float) -> list[Address]:
        """At least one address of the host. Raises VineyardError when there is none in that time."""
        if self._numeric is not None:
            return self._numeric
        if self._thread is None:
            self._thread = threading.Thread(target=self._ask, name="tieredkv-resolver", daemon=True)
            self._thread.start()
        # An earlier look-up that was late answers this one.
        try:
            answer = self._answers.get(timeout=max(timeout_s, 0))
        except Empty:
            raise VineyardError(f"{self._host}: no address before the deadline") from None
        self._thread.join()
        self._thread = None
        if not isinstance(answer, list):
            raise VineyardError(f"{self._host}: {answer}")
        return answer

    def _ask(self) -> None:
        try:
            self._answers.put(self._look_up(0))
        except (OSError, UnicodeError) as error:
            self._answers.put(error)

    def _look_up(self, flags: int) -> list[Address]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        return [(family, address) for family, _, _, _, address in found[:ADDRESSES_MAX]]
