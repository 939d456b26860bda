"""All pools inside the present vineyardd: made on demand, adopted after a crash, gone with it.

Ownership: the loop's thread. What needs vineyardd is asked of the keeper and comes back as an event.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tieredkv.clock import Clock
from tieredkv.config import Config
from tieredkv.errors import VineyardError
from tieredkv.metrics import EVICTIONS, FAILURES, PUBLICATIONS, Totals
from tieredkv.protocol import Hello
from tieredkv.sidecar.admission import differences, geometry_of
from tieredkv.sidecar.cluster.neighbours import Neighbours
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.keeper import Keeper, Pinged, PoolFailed, PoolMade, PoolWish, SharedArena, Started, StartFailed
from tieredkv.sidecar.mover.client import MoverProcess
from tieredkv.sidecar.mover.pool import PoolMover
from tieredkv.sidecar.mover.traffic import moved
from tieredkv.sidecar.prefault import Populated, Prefault
from tieredkv.sidecar.record import EpochPool, ProcessName, SidecarRecord, write_record
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.supervisor import Vineyardd
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.tiers.arena import populated
from tieredkv.tiers.slots import slot_bytes
from tieredkv.tiers.vineyard import BLOB_OVERHEAD_BYTES
from tieredkv.types import Geometry

logger = logging.getLogger("tieredkv.sidecar")

RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 5.0
PING_EVERY_S: Final = 5.0
PAGE_METADATA_BYTES: Final = 5 * 1024
"""What a cold page costs beside its bytes: 4.5 KiB in vineyardd, and 420 bytes that the sidecar remembers of its chunk
(a key of 32 bytes, its links, the policy's history).
"""

SLOTS_MAX: Final = 1 << 20
"""Slots of one pool: their offsets must fit into the welcome's frame."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """No pool for this engine, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A pool that made room: its blobs are free when its mover has nothing of it in flight any more."""

    mover: PoolMover | None
    blob_ids: tuple[int, ...]


class WarmTier:
    """The pools and the vineyardd that holds them."""

    def __init__(
        self,
        config: Config,
        directory: RuntimeDirectory,
        keeper: Keeper,
        inbox: Inbox,
        clock: Clock,
        totals: Totals,
        recordings: Recordings,
        *,
        in_use: Callable[[WarmPool], bool],
        renew: Callable[[], None],
        watch: Callable[[MoverProcess, bool], None],
        neighbours: Neighbours | None,
    ) -> None:
        """`in_use` says whether a pool must be kept; `renew` shall lead to a call of `renewed`, at once; `watch`
        lets a mover `receive` from now on, or not any more.
        """
        self.pools: dict[bytes, WarmPool] = {}
        self.vineyardd: Vineyardd | None = None
        self.answers = False
        self.restarts = 0
        self.epoch = 0
        self.adopted = False
        self.failure: str | None = None
        self._config = config
        self._directory = directory
        self._keeper = keeper
        self._inbox = inbox
        self._clock = clock
        self._totals = totals
        self._recordings = recordings
        self._in_use = in_use
        self._renew = renew
        self._watch = watch
        self._neighbours = neighbours
        self._arena: SharedArena | None = None
        self.mover: MoverProcess | None = None
        self._making: set[bytes] = set()
        self._refused: dict[bytes, str] = {}
        self._leaving: Leaving | None = None
        # Whose pools pool.json describes, as far as is known.
        self._recorded: ProcessName | None = None
        self.distrusted = False
        """pool.json tells a next sidecar what is not so any more, and cannot be helped: only another vineyardd can."""
        self._prefaults: dict[int, Prefault] = {}
        self._retry_s = RETRY_FIRST_S
        self._retry_at_s: float | None = None
        self._ping_at_s = clock.now_s() + PING_EVERY_S
        self._pinging = False
        keeper.adopt_or_start()

    @property
    def ready(self) -> bool:
        """vineyardd runs."""
        return self.vineyardd is not None

    @property
    def arena(self) -> SharedArena:
        """The memory of all pools. Only when there is a pool."""
        assert self._arena is not None
        return self._arena

    def pool_for(self, hello: Hello) -> WarmPool | Refusal | None:
        """The engine's pool; None when it is being made: ask again after the next event."""
        pool = self.pools.get(hello.namespace)
        if pool is not None:
            if pool.made.record.geometry != geometry_of(hello):
                return Refusal(f"same namespace, other chunks: {differences(hello, pool.made.record)}")
            return pool if pool.populated else None
        if (reason := self._refused.pop(hello.namespace, None)) is not None:
            return Refusal(reason)
        if not self.ready or hello.namespace in self._making:
            return None
        return self._make(hello)

    def invite(self, namespace: bytes, description: Mapping[str, str], geometry: Geometry) -> None:
        """Another node has such a pool: have one too, if there are cold pages for it and no pool has to go."""
        room = len(self.pools) + len(self._making) + (self._leaving is not None) < self._config.warm.namespaces_max
        tried = namespace in self._making or namespace in self._refused
        if self.ready and room and self._config.cold.size_bytes and not tried:
            slots, pages = self._places(geometry)
            if slots and pages:
                self._making.add(namespace)
                self._keeper.make_pool(PoolWish(namespace, description, geometry, slots, pages, ()))

    def start_failed(self, event: StartFailed) -> None:
        """vineyardd could not be started: try again, less and less often."""
        logger.error("vineyardd does not start: %s; next try in %.1f s", event.reason, self._retry_s)
        self.failure = event.reason
        self._totals.add(FAILURES, "vineyardd_start")
        self._retry_at_s = self._clock.now_s() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)

    def started(self, event: Started) -> None:
        """vineyardd runs; adopt the pools that it holds."""
        self.vineyardd = event.vineyardd
        self.answers = True
        self.failure = None
        self.epoch = secrets.randbits(62) + 1
        self._retry_s = RETRY_FIRST_S
        self._arena = event.arena
        self._recorded = event.vineyardd.name if event.pools else None
        logger.info("vineyardd runs (pid %d)", event.vineyardd.name.pid)
        if not all(self._adopt(made) for made in event.pools):
            self.lost()
            return
        self._write_record()

    def pool_made(self, event: PoolMade) -> None:
        """A pool exists: put it into service and populate it."""
        record = event.pool.record
        if record.namespace not in self._making:
            return  # of a vineyardd that is gone
        self._making.discard(record.namespace)
        self._arena = event.arena
        pool = self._open(event.pool)
        logger.info(
            "pool of %d slots and %d pages of %d bytes for namespace %s",
            record.slots,
            record.pages,
            record.slot_bytes,
            record.namespace.hex(),
        )
        self._write_record()
        self._opened(pool)
        self._prefault(pool)

    def pool_failed(self, event: PoolFailed) -> bool:
        """A pool could not be made. True when vineyardd should be started afresh to try again."""
        if event.namespace not in self._making:
            return False
        self._making.discard(event.namespace)
        self._totals.add(FAILURES, "pool")
        logger.error("no pool for namespace %s: %s", event.namespace.hex(), event.reason)
        self._refused[event.namespace] = f"no pool: {event.reason}"
        return not any(self._in_use(pool) for pool in self.pools.values())

    def populated(self, event: Populated) -> None:
        """More slots have their pages."""
        for pool in self.pools.values():
            if pool.epoch == event.epoch:
                pool.populate(event.slots)
                if event.slots == pool.made.record.slots:
                    self._prefaults.pop(event.epoch, None)

    def pinged(self, event: Pinged) -> None:
        """vineyardd answered, or not: its memory serves all the same."""
        self._pinging = False
        if self.answers and not event.answers:
            logger.warning("vineyardd does not answer; engines are served on, new namespaces are not")
            self._totals.add(FAILURES, "vineyardd_hangs")
        self.answers = event.answers

    def lost(self) -> None:
        """vineyardd died, or must go: forget its pools and start another."""
        self.restarts += 1
        self._totals.add(FAILURES, "vineyardd_lost")
        self.renewed()

    def renewed(self) -> None:
        """Forget all pools and start another vineyardd in place of this one."""
        self._forget()
        self._keeper.restart()

    def tick(self, now_s: float) -> None:
        """What is done by time."""
        if self.mover is not None:
            self.mover.tick(now_s)
        if self._retry_at_s is not None and now_s >= self._retry_at_s:
            self._retry_at_s = None
            self._keeper.restart()
        if self.ready and not self._pinging and now_s >= self._ping_at_s:
            self._ping_at_s = now_s + PING_EVERY_S
            self._pinging = True
            self._keeper.ping()

    def end(self) -> None:
        """End vineyardd and all pools."""
        if self.vineyardd is not None:
            # The keeper may be waiting for it.
            self.vineyardd.terminate()
        self._forget()
        self._keeper.end()
        self._directory.pool_record.unlink(missing_ok=True)

    def _make(self, hello: Hello) -> Refusal | None:
        geometry = geometry_of(hello)
        limit = self._config.warm.namespaces_max
        slots, pages = self._places(geometry)
        if not slots:
            share = self._config.warm.size_bytes // limit
            return Refusal(f"warm.size: one chunk of {geometry.body_bytes} bytes needs more than the pool's {share}")
        if self._leaving is None and len(self.pools) + len(self._making) >= limit:
            idle = [pool for pool in self.pools.values() if not self._in_use(pool)]
            if not idle:
                return self._no_room(hello)
            dropped = min(idle, key=lambda pool: pool.last_used_s)
            logger.info("namespace %s makes room for another", dropped.namespace.hex())
            if len(self.pools) == 1 and not self._making:
                # Much faster than to free each blob, and the memory goes back to the system.
                self._renew()
                return None
            self._leaving = Leaving(dropped.mover, dropped.made.record.blob_ids)
            self._close(dropped)
            # The record must not name slots whose memory is about to be another pool's.
            self._write_record()
        drop_ids: tuple[int, ...] = ()
        if self._leaving is not None:
            if self._leaving.mover is not None and not self._leaving.mover.idle:
                return None  # what it still writes would be another namespace's
            drop_ids = self._leaving.blob_ids
            self._leaving = None
        self._making.add(hello.namespace)
        self._keeper.make_pool(PoolWish(hello.namespace, hello.description, geometry, slots, pages, drop_ids))
        return None

    def _places(self, geometry: Geometry) -> tuple[int, int]:
        """How many slots and pages a pool gets."""
        limit = self._config.warm.namespaces_max
        place_bytes = slot_bytes(geometry.body_bytes) + BLOB_OVERHEAD_BYTES
        slots = self._config.warm.size_bytes // limit // place_bytes
        pages = self._config.cold.size_bytes // limit // (place_bytes + PAGE_METADATA_BYTES)
        return min(slots, SLOTS_MAX), min(pages, SLOTS_MAX)

    def _no_room(self, hello: Hello) -> Refusal:
        present = "; ".join(differences(hello, pool.made.record) for pool in self.pools.values())
        return Refusal(
            f"other engines use all {self._config.warm.namespaces_max} namespaces (warm.namespaces_max), "
            f"and this one differs: {present or 'a pool is being made'}"
        )

    def _open(self, made: EpochPool) -> WarmPool:
        if self.mover is None and (self._config.cold.size_bytes or self._neighbours is not None):
            self.mover = MoverProcess(self.arena)
            self._watch(self.mover, True)
        pool = WarmPool(
            made,
            self.arena.mapping.view,
            policy=self._config.policy,
            cold=self._config.cold,
            engine_share_max=self._config.limits.engine_share_max,
            ghosts_max=self._config.warm.ghosts_max,
            clock=self._clock,
            record=self._recordings.record(made.record.geometry.chain_tokens),
            calls=self._recordings.calls,
            mover=self.mover,
            changed=self._write_record,
            others=self._neighbours,
        )
        self.pools[made.record.namespace] = pool
        return pool

    def _adopt(self, made: EpochPool) -> bool:
        pool = self._open(made)
        record, fd = made.record, self.arena.fd
        extents = populated(fd, int(record.offsets.min()), int(record.offsets.max()) + record.slot_bytes)
        try:
            chunks, quarantined = pool.adopt(extents)
        except VineyardError as error:
            logger.warning("namespace %s is not adopted: %s", record.namespace.hex(), error)
            return False
        self.adopted = True
        logger.info(
            "adopted namespace %s: %d chunks in %d slots and pages, %d slots quarantined",
            record.namespace.hex(),
            chunks,
            record.places,
            quarantined,
        )
        self._opened(pool)
        if pool.populated < record.slots:
            self._prefault(pool)
        return True

    def _opened(self, pool: WarmPool) -> None:
        if self._neighbours is not None:
            self._neighbours.conversation.opened(pool)

    def _prefault(self, pool: WarmPool) -> None:
        if self._config.warm.prefault:
            self._prefaults[pool.epoch] = Prefault(
                pool.slots, self.arena.mapping, pool.epoch, pool.populated, self._inbox
            )
        else:
            pool.populate(pool.made.record.slots)

    def _close(self, pool: WarmPool) -> None:
        prefault = self._prefaults.pop(pool.epoch, None)
        if prefault is not None:
            prefault.end()
        for result, count in pool.manager.tallies.publications.items():
            self._totals.add(PUBLICATIONS, result, count)
        for reason, count in pool.manager.tallies.evictions.items():
            self._totals.add(EVICTIONS, reason, count)
        if self._neighbours is not None and pool.namespace in self._neighbours.conversation.pools:
            self._neighbours.conversation.closed(pool)
        pool.close()
        del self.pools[pool.namespace]

    def _forget(self) -> None:
        for pool in list(self.pools.values()):
            self._close(pool)
        self._making.clear()
        self._leaving = None
        # Another vineyardd may do what this one could not.
        self._refused.clear()
        self.distrusted = False
        if self.mover is not None:
            self._watch(self.mover, False)
            self.mover.close()
            for name, label, amount in moved(self.mover):
                self._totals.add(name, label, amount)
            self.mover = None
        self._arena = None
        self.vineyardd = None
        self.answers = False
        self.adopted = False

    def _write_record(self) -> None:
        assert self.vineyardd is not None
        pools = tuple(pool.made for pool in self.pools.values())
        try:
            write_record(
                self._directory.pool_record, SidecarRecord(self.vineyardd.name, pools, self._config.cluster.rpc_port)
            )
            self._recorded = self.vineyardd.name
        except OSError as error:
            logger.warning("%s cannot be written: %s; a crash would lose the pools", self._directory.pool_record, error)
            self._withdraw_record()

    def _withdraw_record(self) -> None:
        """What pool.json says is not so any more (a pool that is gone, a reset that was not): nobody may believe it."""
        try:
            self._directory.pool_record.unlink(missing_ok=True)
            self._recorded = None
        except OSError as error:
            assert self.vineyardd is not None
            self.distrusted = self._recorded == self.vineyardd.name
            logger.warning("%s cannot be removed either: %s", self._directory.pool_record, error)
