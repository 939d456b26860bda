"""A connection with another node: frames in, frames out, both bounded. It knows no meaning of messages.

Owned by the loop, like `tieredkv.sidecar.connection`; plain TCP, or TLS with records of its own beneath.
"""

import ssl
from collections import deque
from typing import Final

from tieredkv.errors import ProtocolError
from tieredkv.protocol import FrameReader, Message
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.peer_protocol import (
    FromPeer,
    PeerHello,
    PeerRefused,
    PeerWelcome,
    decode_proved,
    encode_proved,
)
from tieredkv.sidecar.cluster.settings import Address
from tieredkv.sidecar.connection import ConnectionLost

OUTBOX_BYTES_MAX: Final = 16 * 1024 * 1024
"""What may wait for a slow peer before its connection is closed."""

RECEIVE_BYTES_MAX: Final = 256 * 1024
RECEIVES_PER_TURN_MAX: Final = 8
_LATER: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_receive_buffer: Final = memoryview(bytearray(RECEIVE_BYTES_MAX))


class PeerLink:
    """A non-blocking stream of frames. After any exception it must be closed."""

    def __init__(self, joined: PeerJoined, opened_s: float) -> None:
        self.hello: PeerHello = joined.hello
        self.protocol = joined.protocol
        self.dialled = joined.dialled
        self.host = joined.host
        self.clock_apart_s = joined.hello.wall_s - joined.wall_s
        """How far the peer's time of day is ahead of ours, within some round trips."""
        self.opened_s = opened_s
        self.heard_s = opened_s
        """When a whole message was last received, as the loop's clock said."""
        self.output_watched = False
        self._stream = joined.stream
        self._reader = FrameReader()
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0

    def fileno(self) -> int:
        """For the selector."""
        return self._stream.fileno()

    @property
    def rpc(self) -> Address | None:
        """Where the peer's places are read; None if it does not let others read."""
        return Address(self.hello.rpc_host or self.host, self.hello.rpc_port) if self.hello.rpc_port else None

    @property
    def has_output(self) -> bool:
        """Something waits for room in the socket."""
        return bool(self._outbox)

    @property
    def outbox_bytes(self) -> int:
        """What waits; whoever has a lot to say goes on when it is little."""
        return self._outbox_bytes

    def receive(self, now_s: float) -> list[FromPeer]:
        """Messages that are whole now. Raises ProtocolError and ConnectionLost."""
        messages: list[FromPeer] = []
        receives = 0
        # What TLS holds already, no selector tells of; it is less than a record.
        while receives < RECEIVES_PER_TURN_MAX or self._decrypted_bytes:
            receives += 1
            try:
                size = self._stream.recv_into(_receive_buffer)
            except _LATER:
                break
            except OSError as error:
                raise ConnectionLost(error.strerror or str(error)) from None
            if not size:
                if messages:
                    break  # first what it said last; the end is still there at the next turn
                raise ConnectionLost("closed by the peer")
            messages += [decode_proved(body) for body in self._reader.feed(_receive_buffer[:size])]
        if messages:
            # Bytes alone are no sign of life: after a damaged length they would never become a message.
            self.heard_s = now_s
        if any(isinstance(message, PeerHello | PeerWelcome | PeerRefused) for message in messages):
            raise ProtocolError("a second greeting")
        return messages

    def send(self, message: Message) -> None:
        """Queue a message and send what the socket takes. Raises ConnectionLost."""
        frame = encode_proved(message)
        if self._outbox_bytes + len(frame) > OUTBOX_BYTES_MAX:
            raise ConnectionLost(f"{self._outbox_bytes} bytes wait for a peer that does not read")
        self._outbox.append(memoryview(frame))
        self._outbox_bytes += len(frame)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes. Raises ConnectionLost."""
        while self._outbox:
            head = self._outbox[0]
            try:
                sent = self._stream.send(head)
            except _LATER:
                return
            except OSError as error:
                raise ConnectionLost(error.strerror or str(error)) from None
            self._outbox_bytes -= sent
            if sent == len(head):
                self._outbox.popleft()
            else:
                self._outbox[0] = head[sent:]

    def close(self) -> None:
        """Hang up. May be repeated."""
        self._stream.close()
        self._outbox.clear()
        self._outbox_bytes = 0

    @property
    def _decrypted_bytes(self) -> int:
        return self._stream.pending() if isinstance(self._stream, ssl.SSLSocket) else 0
