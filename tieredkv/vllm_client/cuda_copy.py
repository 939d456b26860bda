"""Copies between GPU pages and slots by DMA, on one side stream per direction.

Ownership: everything here belongs to the worker's thread, except pinning, which `prepare` may run on
another one; `_pins` is handed over under `_pin_lock`. Nothing of CUDA is touched by importing this.
"""

import logging
from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.copytask import CopyResult, CopyTask, Movement
from tieredkv.vllm_client.cuda_pin import PinnedArena, Pinning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A task in flight. The driver reads `lists` until `end` has passed."""

    task: CopyTask
    start: Any
    end: Any
    lists: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class CudaCopier:
    """CopyBackend for KV tensors on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {movement: torch.cuda.Stream(device) for movement in Movement}
        self._flights: dict[Movement, deque[_Flight]] = {movement: deque() for movement in Movement}
        self._ended: list[CopyResult] = []
        self._pins: list[PinnedArena] = []
        self._pin_lock = Lock()
        self._pinning = Pinning(device)

    def prepare(self, attachment: Attachment) -> None:
        """Pin the arena, so that copies run at the link's speed and beside the engine.

        Seconds for large arenas; without it (or if it fails) copies are right but slow. May be called on
        a thread of its own, once per attachment.
        """
        pinned = self._pinning.pin(attachment)
        if pinned is not None:
            with self._pin_lock:
                self._pins.append(pinned)

    def submit(self, task: CopyTask) -> None:
        """Queue a task on its direction's stream."""
        if not task.holds():
            self._ended.append(CopyResult(task.job_id, False, 0, 0.0))
            return
        from vllm._custom_ops import swap_blocks_batch

        stream = self._streams[task.movement]
        # Stores read what the model has just written; loads must come after whatever still writes to
        # their blocks, such as zeroing.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        if task.movement is Movement.LOAD and self._flights[Movement.STORE]:
            # A slot may be loaded right after it was stored: the two directions meet here.
            stream.wait_event(self._flights[Movement.STORE][-1].end)
        pieces = task.pieces
        for pinned in self._pins:
            if pinned.attachment is task.attachment:
                pieces = pieces.cut(pinned.bounds)
        store = task.movement is Movement.STORE
        sources, destinations = (pieces.pages, pieces.bodies) if store else (pieces.bodies, pieces.pages)
        lists = (torch.as_tensor(sources), torch.as_tensor(destinations), torch.as_tensor(pieces.sizes))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            start.record(stream)
            if len(pieces.sizes):
                # Nobody writes a slot that is being loaded, so its bytes may be read early; pages that
                # are stored must be read in the stream's order, after the model wrote them.
                swap_blocks_batch(*lists, is_src_access_order_any=not store)
            end.record(stream)
        self._flights[task.movement].append(_Flight(task, start, end, lists))

    def poll(self) -> list[CopyResult]:
        """Tasks that ended since the last call."""
        for flights in self._flights.values():
            while flights and flights[0].end.query():
                self._ended.append(_result_of(flights.popleft()))
        self._unpin_unused()
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: AbstractSet[int]) -> None:
        """Block until these tasks have ended on the device."""
        for flights in self._flights.values():
            for flight in flights:
                if flight.task.job_id in job_ids:
                    flight.end.synchronize()

    def shutdown(self) -> None:
        """Wait for all copies, then unpin the arenas."""
        for movement, flights in self._flights.items():
            self._streams[movement].synchronize()
            flights.clear()
        with self._pin_lock:
            pins, self._pins = self._pins, []
        for pinned in pins:
            self._pinning.unpin(pinned)

    def _unpin_unused(self) -> None:
        """Unpin all arenas but the newest once no task touches them."""
        if len(self._pins) < 2:
            return
        touched = {id(flight.task.attachment) for flights in self._flights.values() for flight in flights}
        with self._pin_lock:
            old = [pinned for pinned in self._pins[:-1] if id(pinned.attachment) not in touched]
            self._pins = [pinned for pinned in self._pins if pinned not in old]
        for pinned in old:
            self._pinning.unpin(pinned)


def _result_of(flight: _Flight) -> CopyResult:
    ok = flight.task.holds()
    seconds = flight.start.elapsed_time(flight.end) / 1e3
    return CopyResult(flight.task.job_id, ok, flight.task.pieces.total_bytes if ok else 0, seconds)
