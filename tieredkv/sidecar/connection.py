"""One accepted connection: frames in, frames out, both bounded. It knows no meaning of messages."""

import os
import socket
import struct
from collections import deque
from typing import Final

from tieredkv.errors import ProtocolError
from tieredkv.protocol import FrameReader, FromEngine, Message, decode_from_engine, encode

OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
"""What may wait for a slow reader before its connection is closed."""

RECEIVE_BYTES_MAX: Final = 256 * 1024
RECEIVES_PER_TURN_MAX: Final = 4
GREETING_BYTES_MAX: Final = 256 * 1024
"""What a peer may send before it was welcomed."""

SEND_BUFFER_BYTES: Final = 4 * 1024 * 1024
_PEER: Final = struct.Struct("3i")
_receive_buffer: Final = memoryview(bytearray(RECEIVE_BYTES_MAX))


class ConnectionLost(Exception):
    """The peer hung up, or does not read what it is sent."""


class Connection:
    """A non-blocking stream of frames. After any exception it must be closed."""

    def __init__(self, accepted: socket.socket, number: int, opened_s: float) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        self.peer_pid, self.peer_uid, _ = _PEER.unpack(credentials)
        self.number = number
        self.opened_s = opened_s
        self.role = ""
        self.barred = ""
        self.output_watched = False
        self._socket = accepted
        self._reader = FrameReader()
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._fds: tuple[int, ...] = ()

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    @property
    def has_output(self) -> bool:
        """Something waits for room in the socket."""
        return bool(self._outbox)

    @property
    def welcomed(self) -> bool:
        """Its greeting was accepted."""
        return bool(self.role)

    def receive(self) -> list[FromEngine]:
        """Messages that are whole now. Raises ProtocolError and ConnectionLost."""
        messages: list[FromEngine] = []
        for _ in range(RECEIVES_PER_TURN_MAX):
            try:
                size = self._socket.recv_into(_receive_buffer)
            except BlockingIOError:
                break
            except OSError as error:
                raise ConnectionLost(error.strerror) from None
            if not size:
                if messages:
                    break  # first what it said last; the end is still there at the next turn
                raise ConnectionLost("closed by the peer")
            messages += [decode_from_engine(body) for body in self._reader.feed(_receive_buffer[:size])]
            if not self.welcomed and self._reader.pending_bytes > GREETING_BYTES_MAX:
                raise ProtocolError(f"greeting of more than {GREETING_BYTES_MAX} bytes")
            if size < RECEIVE_BYTES_MAX:
                break
        return messages

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Queue a message and send what the socket takes. Raises ConnectionLost.

        `fds` travel with the first byte of this message and are closed here, whatever happens; only the
        first message of a connection can carry some.
        """
        if fds:
            assert not self._outbox, "descriptors travel with the first message only"
            self._fds = fds
        frame = encode(message)
        if self._outbox_bytes > OUTBOX_BYTES_MAX:
            raise ConnectionLost(f"{self._outbox_bytes} bytes wait for a peer that does not read")
        self._outbox.append(memoryview(frame))
        self._outbox_bytes += len(frame)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes. Raises ConnectionLost."""
        while self._outbox:
            head = self._outbox[0]
            try:
                if self._fds:
                    sent = socket.send_fds(self._socket, [head], list(self._fds))
                    self._close_fds()
                else:
                    sent = self._socket.send(head)
            except BlockingIOError:
                return
            except OSError as error:
                raise ConnectionLost(error.strerror) from None
            self._outbox_bytes -= sent
            if sent == len(head):
                self._outbox.popleft()
            else:
                self._outbox[0] = head[sent:]

    def close(self) -> None:
        """Hang up. May be repeated."""
        self._socket.close()
        self._close_fds()
        self._outbox.clear()

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = ()
