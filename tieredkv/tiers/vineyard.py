"""Vineyard's IPC, as far as a slot pool needs it: JSON frames over vineyardd's Unix socket.

vineyardd keeps all blobs in one memfd (the arena); the first reply of a connection that names a blob is
followed by one byte with that memfd as SCM_RIGHTS. Blobs are never sealed here, so they can be rewritten
in place; they outlive the connection that made them. Every wait has a deadline. One request at a time,
from one thread.
"""

import array
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec
import numpy as np

from tieredkv.errors import VineyardError
from tieredkv.tiers.slots import Ints
from tieredkv.tiers.vineyard_frames import (
    REPLY_BYTES_MAX,
    REPLY_BYTES_PER_BLOB_MAX,
    Fault,
    VineyardConnection,
    frame,
)

BLOB_OVERHEAD_BYTES: Final = 64
"""What vineyardd's allocator adds to each blob, for blob sizes that are multiples of 64."""
ARENA_SLACK_BYTES: Final = 64 * 1024 * 1024
"""To add to the sum of all blobs for vineyardd's --size: creating more than fits leaks blobs."""

_DROPS_IN_FLIGHT_MAX: Final = 64
_FDS_MAX: Final = 4


class _Payload(msgspec.Struct):
    object_id: int
    data_offset: int
    data_size: int
    map_size: int
    store_fd: int


class _Buffers(msgspec.Struct):
    payloads: list[_Payload]
    fds: list[int] = []


class _Meta(msgspec.Struct):
    memory_limit: int
    memory_usage: int


class _Status(msgspec.Struct):
    meta: _Meta


@dataclass(frozen=True, slots=True)
class Blobs:
    """Blobs of one size, all in the same arena; `offsets` count from the start of its memfd."""

    ids: tuple[int, ...]
    offsets: Ints
    size_bytes: int
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """vineyardd's own account of its memory."""

    limit_bytes: int
    used_bytes: int


class VineyardClient:
    """One registered connection to a vineyardd. Every error closes it: there is no way to resync."""

    def __init__(self, path: Path, *, deadline_s: float) -> None:
        """Connect and register. Raises VineyardError, also for another version than ours."""
        self._arena_fd: int | None = None
        until_s = monotonic() + deadline_s
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(deadline_s)
            connected.connect(os.fspath(path))
        except OSError as error:
            connected.close()
            raise VineyardError(f"vineyardd at {path}: {error}") from None
        self._connection = VineyardConnection(connected, "vineyardd")
        self._connection.register(until_s)

    def create(self, count: int, size_bytes: int, *, deadline_s: float) -> Blobs:
        """Create `count` unsealed blobs of `size_bytes` at once. Raises VineyardError.

        Make sure before that they fit: when they do not, vineyardd keeps what it made so far.
        """
        request = {"type": "create_buffers_request", "num": count, "sizes": [size_bytes] * count}
        return self._buffers(request, "create_buffers_reply", count, size_bytes, deadline_s)

    def open(self, blob_id: int, size_bytes: int, *, deadline_s: float) -> Blobs:
        """Look up one unsealed blob, which also brings the arena's memfd. Raises VineyardError."""
        request = {"type": "get_buffers_request", "num": 1, "unsafe": True, "0": blob_id}
        return self._buffers(request, "get_buffers_reply", 1, size_bytes, deadline_s)

    def drop(self, blob_ids: Sequence[int], *, deadline_s: float) -> None:
        """Free unsealed blobs. Raises VineyardError."""
        until_s = monotonic() + deadline_s
        for start in range(0, len(blob_ids), _DROPS_IN_FLIGHT_MAX):
            batch = blob_ids[start : start + _DROPS_IN_FLIGHT_MAX]
            frames = b"".join(frame({"type": "drop_buffer_request", "id": blob_id}) for blob_id in batch)
            self._connection.send(frames, until_s)
            for _ in batch:
                self._connection.receive_reply("drop_buffer_reply", Fault, REPLY_BYTES_MAX, until_s)

    def usage(self, *, deadline_s: float) -> Usage:
        """Ask how much memory is in use; also tells whether vineyardd answers. Raises VineyardError."""
        until_s = monotonic() + deadline_s
        request = {"type": "instance_status_request"}
        meta = self._connection.ask(request, "instance_status_reply", _Status, until_s).meta
        return Usage(meta.memory_limit, meta.memory_usage)

    def take_arena_fd(self) -> int:
        """The arena's memfd; from now on the caller's to close. Only after `create` or `open`."""
        assert self._arena_fd is not None, "no blob was named on this connection yet"
        fd, self._arena_fd = self._arena_fd, None
        return fd

    def close(self) -> None:
        """Close the connection and a memfd that was not taken. May be repeated."""
        self._connection.close()
        if self._arena_fd is not None:
            os.close(self._arena_fd)
            self._arena_fd = None

    def _buffers(
        self, request: Mapping[str, object], reply: str, count: int, size_bytes: int, deadline_s: float
    ) -> Blobs:
        until_s = monotonic() + deadline_s
        self._connection.send(frame(request), until_s)
        size_max = REPLY_BYTES_MAX + count * REPLY_BYTES_PER_BLOB_MAX
        buffers = self._connection.receive_reply(reply, _Buffers, size_max, until_s)
        for _ in buffers.fds:
            self._receive_fd(until_s)
        payloads = buffers.payloads
        if len(payloads) != count:
            raise self._failed(f"{reply} names {len(payloads)} blobs instead of {count}")
        if any(payload.data_size != size_bytes for payload in payloads):
            raise self._failed(f"{reply} names blobs of other sizes than {size_bytes}")
        arenas = {(payload.store_fd, payload.map_size) for payload in payloads}
        if len(arenas) != 1:
            raise self._failed(f"the blobs lie in {len(arenas)} arenas instead of one")
        ((_, arena_bytes),) = arenas
        offsets = np.array([payload.data_offset for payload in payloads], np.int64)
        if int(offsets.min()) < 0 or int(offsets.max()) + size_bytes > arena_bytes:
            raise self._failed(f"{reply} names blobs outside of the arena")
        return Blobs(tuple(payload.object_id for payload in payloads), offsets, size_bytes, arena_bytes)

    def _receive_fd(self, until_s: float) -> None:
        """Take the byte that carries one memfd. A second one means that the arena is not one mapping."""
        self._connection.arm(socket.SO_RCVTIMEO, until_s)
        fds = array.array("i")
        space = socket.CMSG_SPACE(_FDS_MAX * fds.itemsize)
        try:
            _, ancillary, _, _ = self._connection.socket.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._failed(str(error)) from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
        if len(fds) != 1 or self._arena_fd is not None:
            for fd in fds:
                os.close(fd)
            raise self._failed("expected one file descriptor of the arena")
        self._arena_fd = fds[0]

    def _failed(self, what: str) -> VineyardError:
        self.close()
        return self._connection.failed(what)
