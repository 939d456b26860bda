"""The mover as the sidecar holds it: a process that is started, watched, killed and started again.

    mover = MoverProcess(arena)                     # when the first pool is made
    selector.register(mover, selectors.EVENT_READ)  # `fileno` stays the same over restarts
    pool_mover = mover.open_pool(record, resets)    # the manager's Mover

    if key.fileobj is mover:                        # in each turn of the loop
        mover.receive()
    mover.tick(now_s)                               # at least twice a second
    for pool in pools:
        pool.manager.step(idle=False)               # polls its PoolMover

    selector.unregister(mover)                      # with vineyardd, or at the end
    mover.close()

Ownership: the loop's thread, which must live as long as the sidecar: with the thread that started it the
process is killed.
"""

import logging
import os
import select
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from tieredkv.brain.moves import PeerId
from tieredkv.errors import ProtocolError
from tieredkv.sidecar.keeper import SharedArena
from tieredkv.sidecar.mover import messages
from tieredkv.sidecar.mover.child import MoverChild, MoverLost
from tieredkv.sidecar.mover.messages import Checksums, Done, FromMover, Ready, ToMover
from tieredkv.sidecar.mover.pool import LOCAL, PoolMover
from tieredkv.sidecar.mover.traffic import Movement, Traffic
from tieredkv.tiers.pool import Pool, PoolRecord
from tieredkv.tiers.slots import Generations

logger = logging.getLogger("tieredkv.sidecar")

HANG_S: Final = 5.0
"""A lane with jobs that ends none of them for so long is hung."""
START_DEADLINE_S: Final = 20.0
FETCH_DEADLINE_S: Final = 1.0
BACKLOG_BYTES_MAX: Final = 1024 * 1024
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
_INBOX: Final = -2
"""What it has to read, watched like a lane."""
_LIVED_S: Final = 10.0
"""Who lived for so long is restarted as if for the first time."""


class MoverProcess:
    """See the module. `traffic` and `restarts` are cumulative over all its lives."""

    def __init__(
        self, arena: SharedArena, *, hang_s: float = HANG_S, fetch_deadline_s: float = FETCH_DEADLINE_S
    ) -> None:
        """Keeps a descriptor and a view of the arena of its own until `close`. Starts the process at once."""
        self.traffic: dict[Movement, Traffic] = {movement: Traffic() for movement in Movement}
        self.restarts = 0
        self._hang_s = hang_s
        self._fetch_deadline_s = fetch_deadline_s
        self._arena_fd = os.dup(arena.fd)
        self._arena = arena.mapping
        self._poller = select.epoll()
        self._child: MoverChild | None = None
        self._ready = False
        self._dying = False
        self._started_s: float | None = None
        self._restart_s: float | None = None
        self._backoff_s = BACKOFF_MIN_S
        self._pools: dict[int, PoolMover] = {}
        self._specs: dict[int, messages.PoolIs] = {}
        self._peers: dict[tuple[int, PeerId], messages.PeerIs] = {}
        self._pools_ever = 0
        # Jobs that ended, by lane, and what was seen of it when; see _hung.
        self._ended: dict[int, int] = {}
        self._seen: dict[int, tuple[int, float]] = {}
        self._start()

    # --- the loop -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""
        return self._poller.fileno()

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._child.pid if self._child is not None else None

    @property
    def ready(self) -> bool:
        """Whether jobs are taken."""
        alive = self._child is not None and self._ready and not self._dying
        return alive and self._backlog_bytes() <= BACKLOG_BYTES_MAX

    def receive(self) -> None:
        """Take results, and notice that the process ended."""
        if self._child is None:
            return
        # Asked first: what it said before its end counts.
        ended = self._child.ended()
        self._child.flush()
        while not self._dying and self._take_some():
            pass
        if ended:
            self._bury()

    def tick(self, now_s: float) -> None:
        """Kill a process that hangs, start it again when it ended. `now_s` is monotonic."""
        self.receive()
        if self._child is None:
            if self._restart_s is None:
                lived = self._started_s is not None and now_s - self._started_s > _LIVED_S
                self._backoff_s = BACKOFF_MIN_S if lived else self._backoff_s
                self._restart_s = now_s + self._backoff_s
                self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
            elif now_s >= self._restart_s:
                self.restarts += 1
                self._start()
            return
        if self._started_s is None:
            self._started_s = now_s
        if not self._dying and self._hung(now_s):
            self._kill("it hangs")

    def close(self) -> None:
        """Kill the process and wait for its end (milliseconds); what was outstanding is answered."""
        self._bury()
        os.close(self._arena_fd)
        self._poller.close()

    # --- pools and peers ----------------------------------------------------------------------------

    def open_pool(self, record: PoolRecord, resets: int) -> PoolMover:
        """Serve a pool of the arena; only chunks of that count of resets are moved."""
        self._pools_ever += 1
        number = self._pools_ever
        pool = PoolMover(
            number,
            Pool(record, self._arena.view),
            self.traffic,
            self._send,
            lambda: self.ready,
            fetch_deadline_s=self._fetch_deadline_s,
        )
        self._pools[number] = pool
        self._specs[number] = messages.PoolIs(
            number,
            record.namespace,
            record.geometry.body_bytes,
            record.slots,
            resets,
            record.offsets.astype(np.int64).tobytes(),
        )
        self._tell(self._specs[number])
        return pool

    def close_pool(self, pool: PoolMover) -> None:
        """Serve it no more. Its memory may be used otherwise when all its jobs are answered: `pool.idle`."""
        pool.closed = True
        del self._specs[pool.number]
        for name in [name for name in self._peers if name[0] == pool.number]:
            del self._peers[name]
        self._tell(messages.PoolEnds(pool.number))
        self._forget_closed()

    def set_resets(self, pool: PoolMover, resets: int) -> None:
        """From now on only chunks of this count of resets are moved."""
        assert not pool.closed
        self._specs[pool.number] = msgspec.structs.replace(self._specs[pool.number], resets=resets)
        self._tell(messages.ResetsAre(pool.number, resets))

    def set_peer(
        self, pool: PoolMover, peer: PeerId, host: str, port: int, blob_ids: Sequence[int] | Generations
    ) -> None:
        """Where that node's vineyardd listens, and the blobs of its places of this pool, by place.

        An array of ids costs the loop far less than a sequence.
        """
        assert not pool.closed
        ids = np.array(blob_ids, np.uint64).tobytes()
        self._peers[pool.number, peer] = message = messages.PeerIs(pool.number, peer, host, port, ids)
        self._tell(message)

    def drop_peer(self, pool: PoolMover, peer: PeerId) -> None:
        """Fetch nothing of this pool from that node any more; what waits for it fails."""
        if self._peers.pop((pool.number, peer), None) is not None:
            self._tell(messages.PeerEnds(pool.number, peer))

    # --- parts --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started_s = self._restart_s = None
        self._ready = self._dying = False
        self._seen.clear()
        try:
            self._child = MoverChild(self._poller, self._arena_fd, self._arena.size_bytes)
        except OSError as error:
            logger.warning("the mover cannot be started: %s", error)
            return
        told: list[ToMover] = [*self._specs.values(), *self._peers.values()]
        for message in told:
            self._child.send(message)

    def _tell(self, message: ToMover) -> None:
        """Something that a new process is told anyhow."""
        if self._child is not None and not self._dying:
            self._child.send(message)

    def _send(self, message: ToMover) -> bool:
        if self._child is None or not self.ready:
            return False
        self._child.send(message)
        return True

    def _take_some(self) -> bool:
        """Take what is there of the socket; whether there may be more."""
        assert self._child is not None
        try:
            answers = self._child.receive()
        except (MoverLost, ProtocolError) as error:
            self._kill(str(error))
            return False
        for answer in answers:
            self._take(answer)
        return bool(answers)

    def _take(self, answer: FromMover) -> None:
        match answer:
            case Ready():
                self._ready = True
            case Done():
                lane = self._pools[answer.pool].done(answer)
                self._ended[lane] = self._ended.get(lane, 0) + 1
            case Checksums():
                self._pools[answer.pool].sealed(answer)
        self._forget_closed()

    def _forget_closed(self) -> None:
        for number in [number for number, pool in self._pools.items() if pool.closed and pool.idle]:
            del self._pools[number]

    def _backlog_bytes(self) -> int:
        return self._child.backlog_bytes if self._child is not None else 0

    def _hung(self, now_s: float) -> bool:
        """Whether some lane has had jobs for too long without ending one of them."""
        if not self._ready:
            return self._started_s is not None and now_s - self._started_s > START_DEADLINE_S
        lanes = {lane for pool in self._pools.values() for lane in pool.lanes()}
        if self._child is not None and self._backlog_bytes():
            lanes.add(_INBOX)
            self._ended[_INBOX] = self._child.sent_bytes
        self._seen = {lane: seen for lane, seen in self._seen.items() if lane in lanes}
        for lane in lanes:
            ended = self._ended.get(lane, 0)
            seen, since_s = self._seen.get(lane, (-1, now_s))
            if seen != ended:
                self._seen[lane] = (ended, now_s)
            elif now_s - since_s > self._hang_s + (self._fetch_deadline_s if lane > LOCAL else 0.0):
                return True
        return False

    def _kill(self, why: str) -> None:
        assert self._child is not None
        logger.error("the mover (pid %d) is given up: %s", self._child.pid, why)
        self._dying = True
        self._child.kill()

    def _bury(self) -> None:
        """The process has ended, or is made to: answer for it."""
        if self._child is not None:
            self._child.close()
        self._child = None
        for pool in self._pools.values():
            pool.died()
        self._forget_closed()
