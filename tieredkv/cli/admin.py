"""One question to a running sidecar over its Unix socket, as an administrator."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self, TypeVar

import msgspec

from tieredkv.errors import ProtocolError, TieredKVError, Unreachable
from tieredkv.protocol import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FrameReader,
    FromSidecar,
    Hello,
    Hint,
    Hinted,
    Message,
    Prefetch,
    Prefetched,
    Record,
    Recorded,
    Refused,
    Status,
    StatusAsk,
    Stop,
    Welcome,
    decode_from_sidecar,
    encode,
)

ANSWER_TIMEOUT_S: Final = 5.0
RECORD_POLL_S: Final = 0.2
_RECEIVE_BYTES: Final = 1 << 16

Answer = TypeVar("Answer", bound=Message)


class Admin:
    """A connection to the sidecar at `path`. Raises Unreachable when nobody answers there in time."""

    def __init__(self, path: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._path = path
        self._reader = FrameReader()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except FileNotFoundError:
            self._socket.close()
            raise Unreachable(f"{path}: no sidecar runs there; start one with: tieredkv sidecar") from None
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"{path}: no sidecar answers there: {error.strerror or error}") from None
        answer = self._ask(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "admin"))
        if isinstance(answer, Refused):
            self.close()
            raise TieredKVError(f"{path}: refused: {answer.reason}")
        self._expect(answer, Welcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """What the sidecar says about itself."""
        answer = self._ask(StatusAsk())
        document: dict[str, Any] = msgspec.json.decode(self._expect(answer, Status).json)
        return document

    def prefetch(self, session: str, tenant: str) -> Prefetched:
        """Have what a session used last loaded."""
        return self._expect(self._ask(Prefetch(session, tenant)), Prefetched)

    def hint(self, session: str, hints: dict[str, str | int | float | bool], tenant: str) -> int:
        """Say something of a session; returns how many pools know it."""
        return self._expect(self._ask(Hint(session, hints, tenant)), Hinted).pools

    def record(self, wanted: Callable[[], bool]) -> Iterator[Recorded]:
        """Arrivals as the sidecar sees them, as long as `wanted` says so; asked several times a second.

        Raises Unreachable when the sidecar hangs up before the last of them.
        """
        self._send(Record(on=True))
        stop_by_s: float | None = None
        self._socket.settimeout(RECORD_POLL_S)
        while True:
            if stop_by_s is None and not wanted():
                stop_by_s = monotonic() + ANSWER_TIMEOUT_S
                self._send(Record(on=False))
            for body in self._reader.feed(self._received(stop_by_s)):
                recorded = self._expect(decode_from_sidecar(body), Recorded)
                yield recorded
                if recorded.last:
                    return

    def _received(self, by_s: float | None) -> bytes:
        try:
            chunk = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            if by_s is not None and monotonic() > by_s:
                raise Unreachable(f"{self._path}: the sidecar does not answer; look into its log") from None
            return b""
        except OSError as error:
            raise Unreachable(f"{self._path}: the sidecar hung up: {error.strerror or error}") from None
        if not chunk:
            raise Unreachable(f"{self._path}: the sidecar hung up; look into its log")
        return chunk

    def stop(self) -> None:
        """Tell it to end; returns when it hung up."""
        self._send(Stop())
        try:
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        except ConnectionError:
            return
        except TimeoutError:
            raise Unreachable(f"{self._path}: the sidecar still runs; look into its log") from None

    def _send(self, message: Message) -> None:
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise Unreachable(f"{self._path}: the sidecar hung up: {error.strerror or error}") from None

    def _ask(self, message: Message) -> FromSidecar:
        self._send(message)
        try:
            while chunk := self._socket.recv(_RECEIVE_BYTES):
                bodies = self._reader.feed(chunk)
                if bodies:
                    return decode_from_sidecar(bodies[0])
        except (TimeoutError, ConnectionError, ProtocolError) as error:
            self.close()
            raise Unreachable(f"{self._path}: no answer of a sidecar: {error}") from None
        self.close()
        raise Unreachable(f"{self._path}: the sidecar hung up; look into its log")

    def _expect(self, answer: FromSidecar, kind: type[Answer]) -> Answer:
        if not isinstance(answer, kind):
            self.close()
            raise Unreachable(f"{self._path}: answered {type(answer).__name__} instead of {kind.__name__}")
        return answer
