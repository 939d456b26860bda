"""The greeting of two nodes over a stream that is proven: both say who they are, and then a verdict.

Blocking, in the thread of a doorkeeper or a dialer; bounded in bytes and in time.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tieredkv.errors import ProtocolError, TieredKVError
from tieredkv.protocol import Message, encode
from tieredkv.sidecar.cluster.agreement import is_itself, protocol_between, refusal
from tieredkv.sidecar.cluster.peer_protocol import (
    FromPeer,
    PeerHello,
    PeerRefused,
    PeerWelcome,
    decode_from_peer,
)
from tieredkv.sidecar.cluster.security import NotProven, Stream, plain_address, receive_exactly, send_all
from tieredkv.sidecar.cluster.settings import Address

GREETING_BYTES_MAX: Final = 64 * 1024
HANDSHAKE_DEADLINE_S: Final = 3.0
"""From the first byte to the verdict, everything."""

OwnHello = Callable[[], PeerHello]
"""What this node says of itself, at this time of day. Called in other threads."""


class Disagreement(TieredKVError):
    """The two nodes cannot work together; the text names both values."""


class Itself(TieredKVError):
    """A node dialled its own address."""


@dataclass(frozen=True, slots=True, eq=False)
class PeerJoined:
    """Posted to the loop, which owns `stream` from then on: proven, agreed with, not blocking.

    `dialled` is the address that this node dialled; None when the peer did. `host` is the peer's, as the
    connection has it. `wall_s` is this node's time of day when the greetings were exchanged, to compare
    with `hello.wall_s`.
    """

    stream: Stream
    hello: PeerHello
    protocol: int
    dialled: Address | None
    host: str
    wall_s: float


def acquaint(stream: Stream, own_hello: OwnHello, dialled: Address | None, until_s: float) -> PeerJoined:
    """Exchange greetings and verdicts. Raises NotProven, Disagreement and Itself; then `stream` is closed."""
    try:
        joined = _acquaint(stream, own_hello, dialled, until_s)
        stream.setblocking(False)
    except ProtocolError as error:
        stream.close()
        raise NotProven(f"greeting: {error}") from None
    except BaseException:
        stream.close()
        raise
    return joined


def _acquaint(stream: Stream, own_hello: OwnHello, dialled: Address | None, until_s: float) -> PeerJoined:
    ours = own_hello()
    send_all(stream, encode(ours), until_s)
    theirs = _receive(stream, until_s)
    if not isinstance(theirs, PeerHello):
        raise ProtocolError(f"{type(theirs).__name__} before the greeting")
    if is_itself(ours, theirs):
        raise Itself(f"{theirs.node} is this node")
    reason = refusal(ours, theirs)
    verdict: Message = PeerRefused(reason) if reason else PeerWelcome(protocol_between(ours, theirs))
    send_all(stream, encode(verdict), until_s)
    if reason:
        # Closed with something unread, it would not arrive.
        with suppress(NotProven, ProtocolError):
            _receive(stream, until_s)
        raise Disagreement(reason)
    answer = _receive(stream, until_s)
    if isinstance(answer, PeerRefused):
        raise Disagreement(f"refused by {theirs.node}: {answer.reason}")
    if not isinstance(answer, PeerWelcome):
        raise ProtocolError(f"{type(answer).__name__} instead of a verdict")
    host = plain_address(stream).host
    return PeerJoined(stream, theirs, protocol_between(ours, theirs), dialled, host, own_hello().wall_s)


def _receive(stream: Stream, until_s: float) -> FromPeer:
    """One frame, and not a byte more."""
    size = int.from_bytes(receive_exactly(stream, 4, until_s), "little")
    if size > GREETING_BYTES_MAX:
        raise ProtocolError(f"{size} bytes, more than {GREETING_BYTES_MAX}")
    return decode_from_peer(receive_exactly(stream, size, until_s))
