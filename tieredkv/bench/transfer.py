"""`tieredkv bench transfer`: pages to slots and back, beside one contiguous copy of the same bytes.

What is timed is a job as vLLM gives it: plan, proof of tenancy, hand-over to the copy thread, copy,
proof again. Blocks and slots are drawn at random, so that hardly a piece is longer than a page; all
memory was touched before. The floor is a single memcpy (CUDA: a single copy between the device and
pinned memory) of as many bytes, from and to the same kinds of memory, in turns with the jobs.
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tieredkv.bench.machine import describe_machine
from tieredkv.tiers.slots import slot_bytes
from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.compat import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec
from tieredkv.vllm_client.worker import TieredKVWorker

KIB: Final = 1024
MIB: Final = 1024 * KIB
BATCH: Final = 64
ROUNDS: Final = 15
WARM_UP_ROUNDS: Final = 2
TENSORS: Final = 32
POOL_BYTES_MIN: Final = 512 * MIB
"""Pages and slots are drawn from at least this much, far more than any cache holds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Chunks of `blocks_per_chunk` blocks, each with one page in each of 32 tensors."""

    page_bytes: int
    blocks_per_chunk: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of KV in a chunk."""
        return self.page_bytes * self.blocks_per_chunk * TENSORS


SHAPES: Final = (
    Shape(8 * KIB, 1),
    Shape(8 * KIB, 4),
    Shape(32 * KIB, 1),
    Shape(8 * KIB, 8),
    Shape(32 * KIB, 2),
    Shape(8 * KIB, 32),
    Shape(32 * KIB, 8),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One movement of one shape: medians over the rounds; `ratio` = ours / floor, within each round."""

    movement: str
    device: str
    chunk_bytes: int
    batch: int
    page_bytes: int
    gbytes_per_s: float
    floor: str
    floor_gbytes_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes."""

    machine: dict[str, str]
    results: list[Row]


def measure(console: Console) -> Result:
    """Run every shape on every device here; less than a minute for the CPU."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    machine = describe_machine()
    if "cuda" in devices:
        machine["gpu"] = torch.cuda.get_device_name()
    cases = [(device, shape) for device in devices for shape in SHAPES]
    rows: list[Row] = []
    for device, shape in track(cases, "transfer", console=console):
        rows += measure_shape(device, shape)
    return Result(machine, rows)


def report(result: Result, console: Console) -> None:
    """A table for people."""
    table = Table(title=f"batches of {BATCH} chunks, {TENSORS} tensors, median of {ROUNDS} rounds")
    for heading in ("movement", "device", "chunk", "page", "GB/s", "floor GB/s", "ratio"):
        table.add_column(heading, justify="left" if heading in ("movement", "device") else "right")
    for row in result.results:
        table.add_row(
            row.movement,
            row.device,
            f"{row.chunk_bytes // KIB} KiB",
            f"{row.page_bytes // KIB} KiB",
            f"{row.gbytes_per_s:.2f}",
            f"{row.floor_gbytes_per_s:.2f}",
            f"{row.ratio:.2f}",
        )
    console.print(table)
    for floor in sorted({row.floor for row in result.results}):
        console.print(f"floor: {floor}")


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    return {"machine": result.machine, "results": [asdict(row) for row in result.results]}


def measure_shape(device: str, shape: Shape, *, rounds: int = ROUNDS) -> list[Row]:
    """Both movements of one shape."""
    bed = _TestBed(device, shape)
    try:
        moved_bytes = shape.chunk_bytes * BATCH
        times: dict[str, list[tuple[float, float]]] = {"store": [], "load": []}
        for number in range(WARM_UP_ROUNDS + rounds):
            for movement, taken in times.items():
                # In turns, and each of the two is first as often as the other.
                if number % 2:
                    floor_s, ours_s = bed.floor_s(movement), bed.job_s(movement)
                else:
                    ours_s, floor_s = bed.job_s(movement), bed.floor_s(movement)
                if number >= WARM_UP_ROUNDS:
                    taken.append((ours_s, floor_s))
        return [
            Row(
                movement=movement,
                device=device,
                chunk_bytes=shape.chunk_bytes,
                batch=BATCH,
                page_bytes=shape.page_bytes,
                gbytes_per_s=moved_bytes / median(ours for ours, _ in taken) / 1e9,
                floor=bed.floor_name,
                floor_gbytes_per_s=moved_bytes / median(floor for _, floor in taken) / 1e9,
                ratio=median(floor / ours for ours, floor in taken),
            )
            for movement, taken in times.items()
        ]
    finally:
        bed.close()


class _TestBed:
    """KV tensors, an arena laid out as vineyardd does it, the worker between them, and the floor."""

    def __init__(self, device: str, shape: Shape) -> None:
        self._device = device
        self._shape = shape
        self._random = np.random.default_rng(1)
        chunk_bytes = shape.chunk_bytes
        chunks = max(POOL_BYTES_MIN // chunk_bytes, 2 * BATCH)
        self._blocks = chunks * shape.blocks_per_chunk
        pages = torch.randint(-128, 128, (TENSORS * self._blocks * shape.page_bytes,), dtype=torch.int8)
        self._pages = pages.to(device)
        caches = CanonicalKVCaches(
            [
                CanonicalKVCacheTensor(tensor, shape.page_bytes)
                for tensor in self._pages.view(TENSORS, self._blocks, shape.page_bytes)
            ],
            [[CanonicalKVCacheRef(index, shape.page_bytes) for index in range(TENSORS)]],
        )
        self._attachment, self._spare = _arena(chunks, slot_bytes(chunk_bytes), chunk_bytes * BATCH)
        self._worker = TieredKVWorker(
            caches,
            blocks_per_chunk=shape.blocks_per_chunk,
            rank=0,
            world_size=1,
            rank_bytes=chunk_bytes,
            current_attachment=lambda: self._attachment,
        )
        self._worker.prepare(self._attachment)
        self._jobs = 0
        self._copy_once = self._cuda_floor() if device == "cuda" else self._cpu_floor()
        self.floor_name = (
            "one copy between the device and pinned memory"
            if device == "cuda"
            else "one memcpy between private memory and the arena"
        )

    def job_s(self, movement: str) -> float:
        """Seconds of one job, from its submission to its end."""
        self._jobs += 1
        count = BATCH * self._shape.blocks_per_chunk
        blocks = GPULoadStoreSpec(self._random.permutation(self._blocks)[:count].tolist(), [count], [0])
        slots = self._random.permutation(self._attachment.slots)[:BATCH]
        generations = np.full(BATCH, self._jobs, np.uint64)
        words = self._attachment.slot_words
        words.set_trailers(slots, generations)
        words.set_headers(slots, generations if movement == "load" else np.zeros(BATCH, np.uint64))
        spec = SlotLoadStoreSpec(self._attachment.epoch, slots, generations)
        start_s = perf_counter()
        if movement == "store":
            self._worker.submit_store(self._jobs, blocks, spec)
        else:
            self._worker.submit_load(self._jobs, spec, blocks)
        self._worker.wait({self._jobs})
        taken_s = perf_counter() - start_s
        (ended,) = self._worker.get_finished()
        assert ended.success
        return taken_s

    def floor_s(self, movement: str) -> float:
        """Seconds of one contiguous copy of as many bytes."""
        spare = len(self._pages) - self._shape.chunk_bytes * BATCH
        offset = int(self._random.integers(0, spare // mmap.PAGESIZE + 1)) * mmap.PAGESIZE
        start_s = perf_counter()
        self._copy_once(movement, offset)
        return perf_counter() - start_s

    def close(self) -> None:
        """End the copy thread and free the memory."""
        self._worker.shutdown()

    def _cpu_floor(self) -> Callable[[str, int], None]:
        memcpy = ctypes.CDLL(None).memcpy
        memcpy.argtypes = (ctypes.c_size_t,) * 3
        pages, spare, size = self._pages.data_ptr(), int(self._spare.ctypes.data), len(self._spare)

        def copy_once(movement: str, offset: int) -> None:
            if movement == "store":
                memcpy(spare, pages + offset, size)
            else:
                memcpy(pages + offset, spare, size)

        return copy_once

    def _cuda_floor(self) -> Callable[[str, int], None]:
        size = len(self._spare)
        pinned = torch.zeros(size, dtype=torch.int8, pin_memory=True)

        def copy_once(movement: str, offset: int) -> None:
            span = self._pages[offset : offset + size]
            if movement == "store":
                pinned.copy_(span, non_blocking=True)
            else:
                span.copy_(pinned, non_blocking=True)
            torch.cuda.synchronize()

        return copy_once


def _arena(
    slots: int, size_bytes: int, spare_bytes: int
) -> tuple[Attachment, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """An attachment over a new memfd with every page touched, and as much of it beside the slots."""
    stride = size_bytes + 64  # vineyardd puts 64 bytes between blobs
    start = 64
    spare_start = -(-(start + slots * stride) // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("tieredkv-bench")
    try:
        os.ftruncate(fd, spare_start + spare_bytes)
        arena = np.frombuffer(mmap.mmap(fd, spare_start + spare_bytes), np.uint8)
    finally:
        os.close(fd)
    arena[:] = 1
    offsets = start + np.arange(slots, dtype=np.int64) * stride
    attachment = Attachment.over(arena, epoch=1, offsets=offsets, slot_bytes=size_bytes)
    return attachment, arena[spare_start:]
