"""Populating a pool in the background: whoever touches a page first pays for it, so the sidecar does.

Ownership: the thread owns nothing but its position; it posts how many slots are populated.
"""

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tieredkv.sidecar.inbox import Inbox
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.pool import Pool

logger = logging.getLogger("tieredkv.sidecar")

PIECE_BYTES: Final = 32 * 1024 * 1024
FIRST_BYTES: Final = 4 * 1024 * 1024
FIRST_SLOTS_MIN: Final = 16
"""The first piece is small, because greetings wait for it, and holds the slots of a self-test."""

_NICENESS: Final = 10


@dataclass(frozen=True, slots=True)
class Populated:
    """The first `slots` slots of the pool of `epoch` have all their memory."""

    epoch: int
    slots: int


class Prefault:
    """Populates one pool from its first slot to its last."""

    def __init__(self, pool: Pool, arena: Arena, epoch: int, start_slot: int, inbox: Inbox) -> None:
        self._pool = pool
        self._arena = arena
        self._epoch = epoch
        self._next_slot = start_slot
        self._inbox = inbox
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tieredkv-prefault", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop after the piece in progress; does not wait."""
        self._ended.set()

    def _run(self) -> None:
        record = self._pool.record
        per_piece = max(PIECE_BYTES // record.slot_bytes, 1)
        count = max(FIRST_BYTES // record.slot_bytes, FIRST_SLOTS_MIN)
        # Cold pages come last; they are used meanwhile, by the mover, at the price of their first touch.
        while self._next_slot < record.places and not self._ended.is_set():
            last = min(self._next_slot + count, record.places) - 1
            offsets = record.offsets[self._next_slot : last + 1]
            try:
                self._arena.prefault(int(offsets.min()), int(offsets.max()) + record.slot_bytes)
            except MemoryError as error:
                logger.warning("the pool stays at %d of %d slots and pages: %s", self._next_slot, record.places, error)
                return
            news = self._next_slot < record.slots
            self._next_slot = last + 1
            count = per_piece
            if self._ended.is_set():
                return
            if news:
                self._inbox.post(Populated(self._epoch, min(self._next_slot, record.slots)))
            with suppress(OSError):
                # For the rest the loop comes first. Linux applies it to this thread alone.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
