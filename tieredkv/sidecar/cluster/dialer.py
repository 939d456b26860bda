"""Connects to other nodes, each in a short-lived thread; the outcome comes to the inbox, exactly one.

Ownership: `_dialling` is the loop's, which alone calls; threads know only what they were given.
"""

import socket
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Final

from tieredkv.errors import TieredKVError
from tieredkv.sidecar.cluster.acquaintance import HANDSHAKE_DEADLINE_S, Itself, OwnHello, PeerJoined, acquaint
from tieredkv.sidecar.cluster.security import NotProven, Security, Stream, remaining_s
from tieredkv.sidecar.cluster.settings import Address
from tieredkv.sidecar.inbox import Inbox

DIALS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class DialFailed:
    """Nobody was reached there, or nobody to work with, and why. `itself`: it is this node's own address."""

    address: Address
    reason: str
    itself: bool = False


class Dialer:
    """Posts `PeerJoined` or `DialFailed` for each address dialled."""

    def __init__(self, security: Security, own_hello: OwnHello, inbox: Inbox) -> None:
        self._security = security
        self._own_hello = own_hello
        self._inbox = inbox
        self._dialling: set[Address] = set()

    def dial(self, address: Address) -> bool:
        """Start. False when this address is being dialled already, or too many are."""
        if address in self._dialling or len(self._dialling) >= DIALS_MAX:
            return False
        self._dialling.add(address)
        threading.Thread(target=self._dial, args=(address,), name="tieredkv-dialer", daemon=True).start()
        return True

    def ended(self, address: Address) -> None:
        """The loop has taken the outcome."""
        self._dialling.discard(address)

    def _dial(self, address: Address) -> None:
        until_s = monotonic() + HANDSHAKE_DEADLINE_S
        try:
            outcome = dial(address, self._security, self._own_hello, until_s)
        except Itself as error:
            self._inbox.post(DialFailed(address, str(error), itself=True))
        except (TieredKVError, OSError) as error:
            self._inbox.post(DialFailed(address, str(error)))
        else:
            self._inbox.post(outcome)


def dial(address: Address, security: Security, own_hello: OwnHello, until_s: float) -> PeerJoined:
    """Connect, prove, greet; blocks. Raises NotProven, Disagreement and Itself."""
    return acquaint(security.dial(_connected(address, until_s), until_s), own_hello, address, until_s)


def _connected(address: Address, until_s: float) -> Stream:
    try:
        connected = socket.create_connection((address.host, address.port), remaining_s(until_s))
    except OSError as error:
        raise NotProven(f"cannot connect: {error.strerror or error}") from None
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
