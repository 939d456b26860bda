"""Reading another node's places by vineyardd's RPC, straight into the memory where the bytes shall lie.

A request names blobs by id; the reply lists those that exist, and their bytes follow in that order.
vineyardd interleaves the replies to several requests of one connection, so each connection has at most one
request in flight; two connections in turn keep the peer sending while a reply is taken in. A peer may
answer anything: its reply is checked against what was asked for before a byte of it is received, nothing
is received beyond the targets, and every error closes both connections.

What the bytes are is not judged here: see tieredkv.tiers.proof.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tieredkv.clock import Clock, SystemClock
from tieredkv.errors import VineyardError
from tieredkv.tiers.resolver import Resolver
from tieredkv.tiers.vineyard_frames import REPLY_BYTES_PER_BLOB_MAX, VineyardConnection, decode_reply, frame

CONNECTIONS: Final = 2
REQUEST_BYTES: Final = 4 * 1024 * 1024
"""A request names blobs until they have this many bytes: enough to hide the round trip."""
REQUEST_BLOBS_MAX: Final = 256
PIECE_BYTES: Final = 512 * 1024
"""So much is received before it is handed on: it is still in the cache of the core that received it."""
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0

_REPLY: Final = "get_buffers_reply"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob of a peer, and where its bytes go: `targets` are writable, of one-byte elements, filled in order."""

    blob_id: int
    size_bytes: int
    targets: tuple[memoryview, ...]


OnPiece = Callable[[int, int, memoryview], None]
"""Told of a row, the number of one of its targets, and the next stretch of that which was received."""


class _Payload(msgspec.Struct):
    object_id: int
    data_size: int


class _Buffers(msgspec.Struct):
    payloads: list[_Payload]
    compress: bool = False


class PeerReader:
    """Reads blobs of one peer's vineyardd. Used by one thread.

    It connects when first used. After an error it refuses to connect for a while, which doubles from
    BACKOFF_MIN_S to BACKOFF_MAX_S with each error that no good reply comes between.
    """

    def __init__(self, host: str, port: int, *, connect_deadline_s: float, clock: Clock | None = None) -> None:
        """Does not connect yet. `connect_deadline_s` bounds look-up of the name, connecting and registering."""
        self._peer = f"vineyardd of {host}:{port}"
        self._resolver = Resolver(host, port)
        self._connect_deadline_s = connect_deadline_s
        self._clock = clock if clock is not None else SystemClock()
        self._connections: list[VineyardConnection] = []
        self._backoff_s = BACKOFF_MIN_S
        self._retry_at_s: float | None = None
        self._last_error = ""

    def read(
        self,
        wanted: Sequence[Wanted],
        *,
        until_s: float,
        cancelled: Callable[[], bool] | None = None,
        on_piece: OnPiece | None = None,
        on_arrived: Callable[[int], None] | None = None,
    ) -> list[bool]:
        """Which rows arrived whole; the others do not exist at the peer, or were cancelled.

        `until_s` is on the clock (monotonic). `cancelled` is asked before each request; what is in flight
        is still received. In this thread, while the peer sends the next ones, `on_piece` is called with the
        stretches of a row, in order, and `on_arrived` with a row that is complete. Raises VineyardError on
        anything wrong or late: targets of rows that have not been reported may then hold anything, but
        nobody writes into them any more.
        """
        assert all(row.size_bytes == sum(map(len, row.targets)) > 0 for row in wanted)
        arrived = [False] * len(wanted)
        requests = _requests(wanted)
        self._connect(until_s)
        in_flight: deque[tuple[VineyardConnection, list[int]]] = deque()

        def send_next(connection: VineyardConnection) -> None:
            rows = None if cancelled is not None and cancelled() else next(requests, None)
            if rows is not None:
                connection.send(_request([wanted[row].blob_id for row in rows]), until_s)
                in_flight.append((connection, rows))

        try:
            for connection in self._connections:
                send_next(connection)
            while in_flight:
                connection, rows = in_flight.popleft()
                complete = receive_blobs(connection, wanted, rows, until_s, on_piece)
                self._backoff_s = BACKOFF_MIN_S
                send_next(connection)
                for row in complete:
                    arrived[row] = True
                    if on_arrived is not None:
                        on_arrived(row)
        except BaseException as error:
            # Whatever ended the loop, what is in flight can no longer be told from the next reply.
            self._back_off(error)
            raise
        return arrived

    def close(self) -> None:
        """Close the connections. May be repeated; a later `read` connects again."""
        while self._connections:
            self._connections.pop().close()

    def _connect(self, until_s: float) -> None:
        """Have CONNECTIONS registered connections."""
        if not all(map(_is_quiet, self._connections)):
            # The peer closed while nothing was asked of it, as a vineyardd that was started again.
            self.close()
        if self._connections:
            return
        now_s = self._clock.now_s()
        if self._retry_at_s is not None and now_s < self._retry_at_s:
            raise VineyardError(f"{self._last_error} (not asked again for {self._retry_at_s - now_s:.1f} s)")
        until_s = min(until_s, now_s + self._connect_deadline_s)
        try:
            while len(self._connections) < CONNECTIONS:
                connection = VineyardConnection(self._open(until_s), self._peer, self._clock)
                self._connections.append(connection)
                connection.register(until_s)
        except VineyardError as error:
            self._back_off(error)
            raise

    def _open(self, until_s: float) -> socket.socket:
        error: OSError = TimeoutError("no address answered before the deadline")
        for family, address in self._resolver.addresses(until_s - self._clock.now_s()):
            left_s = until_s - self._clock.now_s()
            if left_s <= 0:
                break
            opened = socket.socket(family, socket.SOCK_STREAM)
            try:
                opened.settimeout(left_s)
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failed:
                opened.close()
                error = failed
            else:
                return opened
        raise VineyardError(f"{self._peer}: {error}")

    def _back_off(self, error: BaseException) -> None:
        self.close()
        self._last_error = str(error)
        self._retry_at_s = self._clock.now_s() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)


def receive_blobs(
    connection: VineyardConnection,
    wanted: Sequence[Wanted],
    rows: Sequence[int],
    until_s: float,
    on_piece: OnPiece | None = None,
) -> list[int]:
    """Receive the reply to a request for those rows (of distinct blobs) into their targets; the rows that exist.

    Raises VineyardError and has closed the connection then.
    """
    row_of = {wanted[row].blob_id: row for row in rows}
    body = connection.receive_frame(_REPLY, REPLY_BYTES_PER_BLOB_MAX * (1 + len(rows)), until_s)
    try:
        ids = announced(body, {blob_id: wanted[row].size_bytes for blob_id, row in row_of.items()})
    except VineyardError as error:
        raise connection.failed(str(error)) from None
    complete = [row_of[blob_id] for blob_id in ids]
    for stretches in _portions(wanted, complete):
        connection.receive([stretch for _, _, stretch in stretches], until_s)
        if on_piece is not None:
            for row, target, stretch in stretches:
                on_piece(row, target, stretch)
    return complete


def announced(body: bytes | bytearray, sizes_bytes: Mapping[int, int]) -> list[int]:
    """The ids whose bytes follow the reply `body`, in order; all are in `sizes_bytes`, with that size, once.

    Raises VineyardError when the reply says anything else.
    """
    buffers = decode_reply(body, _REPLY, _Buffers)
    if buffers.compress:
        raise VineyardError(f"{_REPLY} announces compressed blobs")
    ids = [payload.object_id for payload in buffers.payloads]
    if len(set(ids)) != len(ids):
        raise VineyardError(f"{_REPLY} names a blob twice")
    for payload in buffers.payloads:
        size_bytes = sizes_bytes.get(payload.object_id)
        if size_bytes is None:
            raise VineyardError(f"{_REPLY} names a blob that was not asked for")
        if payload.data_size != size_bytes:
            raise VineyardError(f"{_REPLY} names a blob of {payload.data_size} bytes instead of {size_bytes}")
    return ids


def _portions(wanted: Sequence[Wanted], rows: Sequence[int]) -> Iterator[list[tuple[int, int, memoryview]]]:
    """Stretches of the targets of `rows` (row, number of the target, stretch), in portions of about PIECE_BYTES."""
    portion: list[tuple[int, int, memoryview]] = []
    size_bytes = 0
    for row in rows:
        for number, target in enumerate(wanted[row].targets):
            for start in range(0, len(target), PIECE_BYTES):
                stretch = target[start : start + PIECE_BYTES]
                portion.append((row, number, stretch))
                size_bytes += len(stretch)
                if size_bytes >= PIECE_BYTES:
                    yield portion
                    portion, size_bytes = [], 0
    if portion:
        yield portion


def _requests(wanted: Sequence[Wanted]) -> Iterator[list[int]]:
    """Rows in order, in requests of distinct blobs."""
    rows: list[int] = []
    ids: set[int] = set()
    size_bytes = 0
    for row, want in enumerate(wanted):
        if size_bytes >= REQUEST_BYTES or len(rows) == REQUEST_BLOBS_MAX or want.blob_id in ids:
            yield rows
            rows, size_bytes = [], 0
            ids.clear()
        rows.append(row)
        ids.add(want.blob_id)
        size_bytes += want.size_bytes
    if rows:
        yield rows


def _request(blob_ids: Sequence[int]) -> bytes:
    request: dict[str, object] = {
        "type": "get_remote_buffers_request",
        "num": len(blob_ids),
        "unsafe": True,
        "compress": False,
        "use_rdma": False,
    }
    return frame(request | {str(number): blob_id for number, blob_id in enumerate(blob_ids)})


def _is_quiet(connection: VineyardConnection) -> bool:
    """Whether the peer neither closed an idle connection nor said anything unasked."""
    try:
        connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
