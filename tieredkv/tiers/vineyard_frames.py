"""Vineyard's frames over a socket, the same for its IPC and its RPC: a little-endian u64 length, then JSON.

Every call has a deadline, which the kernel keeps (SO_RCVTIMEO, SO_SNDTIMEO): the socket stays blocking,
so that one call receives megabytes in place, without the GIL. Every error closes the connection: there
is no way to find the next frame again.
"""

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from tieredkv.clock import Clock, SystemClock
from tieredkv.errors import VineyardError

VINEYARD_VERSION: Final = "0.24.2"
LENGTH: Final = struct.Struct("<Q")
REPLY_BYTES_MAX: Final = 1024 * 1024
"""Of a reply that names no blobs."""
REPLY_BYTES_PER_BLOB_MAX: Final = 1024

ARM_SLACK_S: Final = 0.005
"""So much later than its deadline a call may end: not every one has to tell the kernel anew how long it may wait."""

_TIMEVAL: Final = struct.Struct("@ll")
_VECTOR_MAX: Final = 512
"""Buffers in one system call; Linux takes 1024."""

Reply = TypeVar("Reply")


class _Register(msgspec.Struct):
    version: str
    store_match: bool = True


class Fault(msgspec.Struct):
    """What an answer may say instead of what was asked for."""

    type: str = ""
    code: int = 0
    message: str = ""


def frame(request: Mapping[str, object]) -> bytes:
    """The whole frame of a request."""
    body = msgspec.json.encode(request)
    return LENGTH.pack(len(body)) + body


def decode_reply(body: bytes | bytearray, reply: str, kind: type[Reply]) -> Reply:
    """The reply named `reply`. Raises VineyardError for anything else."""
    try:
        fault = msgspec.json.decode(body, type=Fault)
        if fault.type != reply:
            raise VineyardError(f"no {reply} but code {fault.code} {fault.message[:200]!r}")
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise VineyardError(f"{reply}: {error}") from None


class VineyardConnection:
    """One connection to a vineyardd. One request at a time, from one thread.

    Its methods raise VineyardError, with `peer` in the text, and have closed the connection then.
    """

    def __init__(self, connected: socket.socket, peer: str, clock: Clock | None = None) -> None:
        """`connected` is this object's to close from here on."""
        connected.settimeout(None)
        self.socket = connected
        self._tcp = connected.family != socket.AF_UNIX
        self._peer = peer
        self._clock = clock if clock is not None else SystemClock()
        # By option: the deadline that the kernel keeps, and when it was told.
        self._armed: dict[int, tuple[float, float]] = {}

    def register(self, until_s: float) -> None:
        """Introduce us; another version of vineyardd than ours is refused."""
        request = {
            "type": "register_request",
            "version": VINEYARD_VERSION,
            "store_type": 1,
            "session_id": 0,
            "username": "",
            "password": "",
        }
        registered = self.ask(request, "register_reply", _Register, until_s)
        if registered.version != VINEYARD_VERSION or not registered.store_match:
            raise self.failed(f"version {registered.version[:40]!r} instead of {VINEYARD_VERSION!r}")

    def ask(self, request: Mapping[str, object], reply: str, kind: type[Reply], until_s: float) -> Reply:
        """Send a request and wait for its small reply."""
        self.send(frame(request), until_s)
        return self.receive_reply(reply, kind, REPLY_BYTES_MAX, until_s)

    def receive_reply(self, reply: str, kind: type[Reply], size_max: int, until_s: float) -> Reply:
        """Receive one frame of at most `size_max` bytes."""
        try:
            return decode_reply(self.receive_frame(reply, size_max, until_s), reply, kind)
        except VineyardError as error:
            raise self.failed(str(error)) from None

    def receive_frame(self, reply: str, size_max: int, until_s: float) -> bytearray:
        """The JSON of one frame of at most `size_max` bytes."""
        head = bytearray(LENGTH.size)
        self.receive([memoryview(head)], until_s)
        (size,) = LENGTH.unpack(head)
        if size > size_max:
            raise self.failed(f"{reply} of {size} bytes")
        body = bytearray(size)
        self.receive([memoryview(body)], until_s)
        return body

    def receive(self, targets: Sequence[memoryview], until_s: float) -> None:
        """Fill `targets` (writable, one byte an element) one after the other."""
        left = [target for target in targets if len(target)]
        left.reverse()
        while left:
            self.arm(socket.SO_RCVTIMEO, until_s)
            try:
                if self._tcp:
                    # vineyardd holds the small end of a write back until what is under way is acknowledged,
                    # and an acknowledgement may be put off for 40 ms. Linux forgets this with every request.
                    self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                received = self.socket.recvmsg_into(left[: -_VECTOR_MAX - 1 : -1], 0, socket.MSG_WAITALL)[0]
            except OSError as error:
                raise self.failed(_reason(error)) from None
            if not received:
                raise self.failed("closed the connection")
            while left and received >= len(left[-1]):
                received -= len(left.pop())
            if received:
                left[-1] = left[-1][received:]

    def send(self, frames: bytes, until_s: float) -> None:
        """Send whole frames."""
        view = memoryview(frames)
        while view:
            self.arm(socket.SO_SNDTIMEO, until_s)
            try:
                view = view[self.socket.send(view) :]
            except OSError as error:
                raise self.failed(_reason(error)) from None

    def arm(self, option: int, until_s: float) -> None:
        """Let the next call on the socket wait for no longer than until the deadline, and ARM_SLACK_S."""
        now_s = self._clock.now_s()
        left_us = int((until_s - now_s) * 1e6)
        if left_us <= 0:
            raise self.failed("no answer before the deadline")
        told = self._armed.get(option)
        if told is not None and told[0] == until_s and now_s - told[1] < ARM_SLACK_S:
            return
        self._armed[option] = (until_s, now_s)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(left_us, 1_000_000)))
        except OSError as error:
            raise self.failed(_reason(error)) from None

    def failed(self, what: str) -> VineyardError:
        """Close the connection; the error to raise."""
        self.close()
        return VineyardError(f"{self._peer}: {what}")

    def close(self) -> None:
        """Close the connection. May be repeated."""
        self.socket.close()


def _reason(error: OSError) -> str:
    return "no answer before the deadline" if isinstance(error, BlockingIOError) else str(error)
