"""Who writes down the reference stream: the file that the configuration names, and administrators who asked.

Ownership: the loop's thread. Nobody is waited for: what an administrator does not take in is kept up to a
bound, and what comes then is counted as lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tieredkv import protocol
from tieredkv.manager import AccessRecord
from tieredkv.sidecar.callfile import CallFile
from tieredkv.sidecar.connection import Connection, ConnectionLost
from tieredkv.trace import Arrival, ArrivalLines, LineFile

PENDING_BYTES_MAX: Final = 8 * 1024 * 1024
SEND_INTERVAL_S: Final = 0.2


class Recordings:
    """All recordings of this process; each has pseudonyms of its own."""

    def __init__(self, file: LineFile | None, calls: CallFile | None) -> None:
        """`calls` gets each call to a manager and its outcome, from the making of the manager on."""
        self.calls = calls
        self._file = file
        self._file_lines = ArrivalLines()
        self._admins: dict[int, _AdminRecording] = {}
        self._send_s = 0.0

    def record(self, chain_tokens: int) -> AccessRecord:
        """The record of a pool whose neighbouring positions are `chain_tokens` apart."""
        return _PoolRecord(self, chain_tokens)

    def add(self, arrival: Arrival, chain_tokens: int) -> None:
        """A request arrived at a pool. Times must not go back."""
        if self._file is not None and not self._file.closed:
            self._file.add(self._file_lines.line(arrival, chain_tokens), arrival.now_s)
        for recording in self._admins.values():
            recording.add(arrival, chain_tokens)

    def start(self, connection: Connection) -> None:
        """The administrator wants to be told of all arrivals from now on."""
        self._admins.setdefault(connection.number, _AdminRecording(connection))

    def stop(self, connection: Connection) -> None:
        """No more. What is pending and the end of it are sent. Raises ConnectionLost."""
        recording = self._admins.pop(connection.number, None) or _AdminRecording(connection)
        recording.send(last=True)

    def left(self, connection: Connection) -> None:
        """The connection was closed."""
        self._admins.pop(connection.number, None)

    def tick(self, now_s: float, hang_up: Callable[[Connection, str], None]) -> None:
        """Send what is pending, a few times a second; `hang_up` closes a lost connection soon."""
        if not self._admins or now_s < self._send_s:
            return
        self._send_s = now_s + SEND_INTERVAL_S
        for recording in self._admins.values():
            if recording.connection.has_output:
                continue
            try:
                recording.send(last=False)
            except ConnectionLost as error:
                hang_up(recording.connection, str(error))


@dataclass(frozen=True, slots=True)
class _PoolRecord:
    recordings: Recordings
    chain_tokens: int

    def arrived(self, arrival: Arrival) -> None:
        """See AccessRecord."""
        self.recordings.add(arrival, self.chain_tokens)


class _AdminRecording:
    """Lines that wait to be sent over one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lines = ArrivalLines()
        self._pending = bytearray()
        self._requests = 0
        self._lost = 0

    def add(self, arrival: Arrival, chain_tokens: int) -> None:
        if len(self._pending) >= PENDING_BYTES_MAX:
            self._lost += 1
            return
        self._pending += self._lines.line(arrival, chain_tokens)
        self._requests += 1

    def send(self, *, last: bool) -> None:
        if not (self._requests or self._lost or last):
            return
        message = protocol.Recorded(bytes(self._pending), self._requests, self._lost, last)
        self._pending.clear()
        self._requests = self._lost = 0
        self.connection.send(message)
