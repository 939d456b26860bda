"""What the sidecar knows of one engine: its connections, its self-tests, its living processes.

An engine is one vLLM with one scheduler and `world_size` workers. What it has leased is freed when all its
connections are closed *and* all processes that could still write are gone: a worker outlives a killed
scheduler by seconds, and a connection may be lost while a copy runs. Pins go soon after the scheduler: it
may have switched itself off for good in a vLLM that serves on for weeks.
"""

from dataclasses import dataclass

from tieredkv.sidecar.attachments import AttachmentLock, AttachmentLocks
from tieredkv.sidecar.connection import Connection
from tieredkv.sidecar.warmpool import Slots, WarmPool
from tieredkv.types import EngineId

SCHEDULER = "scheduler"
WORKER = "worker"
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Orphans:
    """Leases that nobody claims, and the processes that might still write into them."""

    slots: Slots
    writers: tuple[AttachmentLock, ...]


@dataclass(frozen=True, slots=True)
class Asker:
    """The last connection of a role and rank: its leases are marked with its number."""

    number: int
    pid: int


class Session:
    """One engine on one pool. Owned by the loop's thread."""

    def __init__(self, engine_id: EngineId, pool: WarmPool, world_size: int) -> None:
        self.engine_id = engine_id
        self.pool = pool
        self.world_size = world_size
        self.connections: dict[tuple[str, int], Connection] = {}
        self.wants_events = False
        # None again as soon as its pins are let go, or it is back.
        self.scheduler_left_s: float | None = None
        self.locks: list[AttachmentLock] = []
        self.orphans: list[Orphans] = []
        self.askers: dict[tuple[str, int], Asker] = {}
        self._verdicts: dict[int, str] = {}

    @property
    def scheduler(self) -> Connection | None:
        """The scheduler's connection."""
        return self.connections.get((SCHEDULER, 0))

    @property
    def verdict(self) -> str | None:
        """Empty when tiering is on, the reason when it is off, None before all ranks reported."""
        failed = [f"rank {rank}: {reason}" for rank, reason in sorted(self._verdicts.items()) if reason]
        if failed:
            return "; ".join(failed)
        return "" if len(self._verdicts) >= self.world_size else None

    @property
    def enabled(self) -> bool:
        """The engine may use the tier."""
        return self.verdict == ""

    def join(self, connection: Connection, role: str, rank: int, lock: AttachmentLock) -> Connection | None:
        """Add a connection; returns the one whose place it takes."""
        former = self.connections.get((role, rank))
        self.connections[role, rank] = connection
        self.locks.append(lock)
        if role == SCHEDULER:
            self.scheduler_left_s = None
        if role == WORKER:
            self._verdicts.pop(rank, None)
        return former

    def leave(self, connection: Connection, now_s: float) -> None:
        """A connection was closed; nothing happens if it is not (any more) one of the engine's."""
        if connection is self.scheduler:
            self.scheduler_left_s = now_s
        self.connections = {place: other for place, other in self.connections.items() if other is not connection}

    def judge(self, connection: Connection, reason: str) -> None:
        """A worker reported its self-test."""
        for (role, rank), other in self.connections.items():
            if other is connection and role == WORKER:
                self._verdicts[rank] = reason

    def settle(self, locks: AttachmentLocks) -> list[Slots]:
        """Forget the processes that are gone; returns leases that nobody can write into any more."""
        self.locks = [lock for lock in self.locks if not locks.released(lock)]
        living = set(self.locks)
        free = [orphans.slots for orphans in self.orphans if not living.intersection(orphans.writers)]
        self.orphans = [orphans for orphans in self.orphans if living.intersection(orphans.writers)]
        return free

    @property
    def gone(self) -> bool:
        """No connection is open and no process is left that could write."""
        return not self.connections and not self.locks
