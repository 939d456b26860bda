"""The thread that talks to vineyardd, so that nothing else ever waits for it.

Ownership: the loop's thread calls the public methods, which only queue; `_vineyardd`, `_arena` and all
IPC are the keeper's thread's. Results come back as events through an Inbox. At most one command of each
kind is outstanding (the loop sees to it), so neither queue grows.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tieredkv.errors import VineyardError
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.record import EpochPool, SidecarRecord, read_record
from tieredkv.sidecar.supervisor import Vineyardd, end_strays
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.pool import Pool, PoolRecord
from tieredkv.tiers.slots import slot_bytes
from tieredkv.tiers.vineyard import VineyardClient
from tieredkv.types import Geometry

logger = logging.getLogger("tieredkv.sidecar")

START_DEADLINE_S: Final = 5.0
ADOPT_DEADLINE_S: Final = 3.0
"""One that is only slow must not be killed: its memory would be lost."""
POOL_DEADLINE_S: Final = 10.0
POOL_DEADLINE_PER_SLOT_S: Final = 0.0005
"""vineyardd makes a slot in some 25 us when it has a core for itself."""

PING_DEADLINE_S: Final = 2.0
STOP_GRACE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Started:
    """vineyardd runs. `pools` are those of a former sidecar, if it was adopted; they need `arena`."""

    vineyardd: Vineyardd
    pools: tuple[EpochPool, ...]
    arena: "SharedArena | None"


@dataclass(frozen=True, slots=True)
class StartFailed:
    """vineyardd does not run."""

    reason: str


@dataclass(frozen=True, slots=True)
class PoolMade:
    """All slots of a new pool exist; none is populated."""

    pool: EpochPool
    arena: "SharedArena"


@dataclass(frozen=True, slots=True)
class PoolFailed:
    """The pool could not be made, and its vineyardd may have leaked memory."""

    namespace: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Pinged:
    """Whether vineyardd answered in time."""

    answers: bool


@dataclass(frozen=True, slots=True)
class SharedArena:
    """The arena's memfd (to pass on) and our mapping of it."""

    fd: int
    mapping: Arena

    def close(self) -> None:
        """Let go of both."""
        os.close(self.fd)
        self.mapping.close()


@dataclass(frozen=True, slots=True)
class PoolWish:
    """A pool to be made, of so many slots and pages, after the blobs `drop_ids` were freed."""

    namespace: bytes
    description: Mapping[str, str]
    geometry: Geometry
    slots: int
    pages: int
    drop_ids: tuple[int, ...]


class Keeper:
    """Starts, adopts, asks and ends vineyardd on a thread of its own."""

    def __init__(
        self, binary: Path, directory: RuntimeDirectory, arena_bytes: int, inbox: Inbox, rpc_port: int | None = None
    ) -> None:
        """`rpc_port` is where other nodes read, None if they shall not."""
        self._binary = binary
        self._directory = directory
        self._arena_bytes = arena_bytes
        self._rpc_port = rpc_port
        self._inbox = inbox
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._vineyardd: Vineyardd | None = None
        self._arena: SharedArena | None = None
        self._used_before = False
        self._thread = threading.Thread(target=self._run, name="tieredkv-keeper", daemon=True)
        self._thread.start()

    def adopt_or_start(self) -> None:
        """Adopt the vineyardd of pool.json, or start one. Answered by Started or StartFailed."""
        self._commands.put(self._adopt_or_start)

    def restart(self) -> None:
        """End what is left of the present vineyardd and start another. Answered likewise."""
        self._commands.put(self._restart)

    def make_pool(self, wish: PoolWish) -> None:
        """Answered by PoolMade or PoolFailed."""
        self._commands.put(lambda: self._make_pool(wish))

    def ping(self) -> None:
        """Answered by Pinged."""
        self._commands.put(self._ping)

    def end(self) -> None:
        """End vineyardd and the thread; waits for both, bounded."""
        self._commands.put(self._end_vineyardd)
        self._commands.put(None)
        self._thread.join(START_DEADLINE_S + STOP_GRACE_S + 1.0)

    def _run(self) -> None:
        while (command := self._commands.get()) is not None:
            command()

    def _adopt_or_start(self) -> None:
        record: SidecarRecord | None = None
        try:
            record = read_record(self._directory.pool_record)
        except ValueError as error:
            logger.warning("no adoption: %s", error)
        former = Vineyardd.recognise(record.vineyardd) if record is not None else None
        if record is None or former is None:
            self._start()
            return
        try:
            arena = self._open_arena(record)
        except VineyardError as error:
            logger.warning("no adoption of vineyardd (pid %d): %s", former.name.pid, error)
            former.kill()
            former.close()
            self._start()
            return
        self._vineyardd, self._arena, self._used_before = former, arena, True
        self._inbox.post(Started(former, record.pools if arena is not None else (), arena))

    def _open_arena(self, record_of: SidecarRecord) -> SharedArena | None:
        """Map the arena of recorded pools; None when there are none. Raises VineyardError."""
        if record_of.rpc_port != self._rpc_port:
            raise VineyardError(f"it serves port {record_of.rpc_port}, and cluster.rpc_port is {self._rpc_port}")
        pools = record_of.pools
        client = VineyardClient(self._directory.vineyard_socket, deadline_s=ADOPT_DEADLINE_S)
        try:
            if not pools:
                return None
            arena_bytes = 0
            for pool in pools:
                record = pool.record
                blob = client.open(record.blob_ids[0], record.slot_bytes, deadline_s=ADOPT_DEADLINE_S)
                arena_bytes = blob.arena_bytes
                end = int(record.offsets.max()) + record.slot_bytes
                if int(blob.offsets[0]) != int(record.offsets[0]) or end > arena_bytes:
                    raise VineyardError("pool.json does not describe this vineyardd")
            fd = client.take_arena_fd()
        finally:
            client.close()
        return self._map(fd, arena_bytes)

    def _map(self, fd: int, arena_bytes: int) -> SharedArena:
        try:
            return SharedArena(fd, Arena(fd, arena_bytes))
        except VineyardError:
            os.close(fd)
            raise

    def _start(self) -> None:
        directory = self._directory
        if end_strays(directory.vineyard_socket):
            logger.warning("ended a vineyardd that a killed sidecar had left behind")
        try:
            self._vineyardd = Vineyardd.start(
                self._binary,
                directory.vineyard_socket,
                directory.vineyard_log,
                arena_bytes=self._arena_bytes,
                rpc_port=self._rpc_port,
                deadline_s=START_DEADLINE_S,
            )
        except VineyardError as error:
            self._inbox.post(StartFailed(str(error)))
            return
        self._used_before = False
        self._inbox.post(Started(self._vineyardd, (), None))

    def _restart(self) -> None:
        self._end_vineyardd()
        self._start()

    def _end_vineyardd(self) -> None:
        # The loop let go of the arena before it asked for this.
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        if self._vineyardd is not None:
            self._vineyardd.stop(STOP_GRACE_S)
            self._vineyardd.close()
            self._vineyardd = None
        self._directory.vineyard_socket.unlink(missing_ok=True)

    def _make_pool(self, wish: PoolWish) -> None:
        try:
            self._inbox.post(self._made(wish))
        except VineyardError as error:
            self._inbox.post(PoolFailed(wish.namespace, str(error)))

    def _made(self, wish: PoolWish) -> PoolMade:
        size_bytes = slot_bytes(wish.geometry.body_bytes)
        deadline_s = POOL_DEADLINE_S + POOL_DEADLINE_PER_SLOT_S * (wish.slots + wish.pages + len(wish.drop_ids))
        client = VineyardClient(self._directory.vineyard_socket, deadline_s=POOL_DEADLINE_S)
        try:
            if wish.drop_ids:
                self._used_before = True
                client.drop(wish.drop_ids, deadline_s=deadline_s)
            blobs = client.create(wish.slots + wish.pages, size_bytes, deadline_s=deadline_s)
            fd = client.take_arena_fd()
        finally:
            client.close()
        if self._arena is None:
            self._arena = self._map(fd, blobs.arena_bytes)
        else:
            same = os.fstat(fd).st_ino == os.fstat(self._arena.fd).st_ino
            os.close(fd)
            if not same or blobs.arena_bytes != self._arena.mapping.size_bytes:
                raise VineyardError("vineyardd made a second arena")
        record = PoolRecord(wish.namespace, wish.description, wish.geometry, blobs.ids, blobs.offsets, wish.pages)
        if self._used_before:
            Pool(record, self._arena.mapping.view).wipe()
        return PoolMade(EpochPool(secrets.randbits(62) + 1, record), self._arena)

    def _ping(self) -> None:
        answers = False
        with suppress(VineyardError):
            VineyardClient(self._directory.vineyard_socket, deadline_s=PING_DEADLINE_S).close()
            answers = True
        self._inbox.post(Pinged(answers))
