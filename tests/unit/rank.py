"""A worker, the KV caches that it serves, and the sidecar's part: tenancies in the slots' words."""

import mmap
import os

import numpy as np
import torch

from tieredkv.tiers.slots import SlotWords, slot_bytes
from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.compat import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    TransferResult,
)
from tieredkv.vllm_client.copytask import CopyBackend
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec
from tieredkv.vllm_client.worker import TieredKVWorker, backend_for

BLOCKS = 12
PAGE = 320
SLOTS = 8
PER_CHUNK = 2
RANK_BYTES = 3 * PAGE * PER_CHUNK
EPOCH = 77


def random_rows(seed: int, device: str, stride: int = PAGE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-128, 128, (BLOCKS, stride), dtype=torch.int8, generator=generator)
    return rows.to(device)[:, :PAGE]


def hybrid_caches(device: str) -> CanonicalKVCaches:
    """Two groups: one of three layers with a padded page, one of two layers in the same tensors."""
    tensors = [random_rows(0, device), random_rows(1, device, stride=PAGE + 64), random_rows(2, device)]
    return CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PAGE) for tensor in tensors],
        [
            [CanonicalKVCacheRef(0, PAGE), CanonicalKVCacheRef(1, PAGE), CanonicalKVCacheRef(2, PAGE - 24)],
            [CanonicalKVCacheRef(2, PAGE), CanonicalKVCacheRef(0, PAGE)],
        ],
    )


def memfd_attachment(world_size: int = 2) -> Attachment:
    size = slot_bytes(RANK_BYTES * world_size)
    fd = os.memfd_create("tieredkv-test")
    try:
        os.ftruncate(fd, 64 + SLOTS * (size + 64))
        mapping = mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    offsets = 64 + np.arange(SLOTS, dtype=np.int64) * (size + 64)
    return Attachment.over(np.frombuffer(mapping, np.uint8), epoch=EPOCH, offsets=offsets, slot_bytes=size)


class Rank:
    """One rank (the second of two) and everything around it."""

    def __init__(self, backend: CopyBackend | None = None, *, device: str = "cpu") -> None:
        self.caches = hybrid_caches(device)
        self.attachment: Attachment | None = memfd_attachment()
        self.worker = TieredKVWorker(
            self.caches,
            blocks_per_chunk=PER_CHUNK,
            rank=1,
            world_size=2,
            rank_bytes=RANK_BYTES,
            current_attachment=lambda: self.attachment,
            backend=backend or backend_for(self.caches),
        )

    def lease(self, slots: list[int], generation: int) -> SlotLoadStoreSpec:
        generations = np.arange(generation, generation + len(slots), dtype=np.uint64)
        self.words.set_trailers(np.array(slots), generations)
        return SlotLoadStoreSpec(EPOCH, np.array(slots, np.int32), generations)

    def publish(self, spec: SlotLoadStoreSpec) -> None:
        self.words.set_headers(spec.slots.astype(np.int64), spec.generations)

    @property
    def words(self) -> SlotWords:
        assert self.attachment is not None
        return self.attachment.slot_words

    def finish(self, job_id: int) -> TransferResult:
        self.worker.wait({job_id})
        results = self.worker.get_finished()
        assert [result.job_id for result in results] == [job_id]
        assert self.worker.get_finished() == []
        return results[0]

    def contents(self) -> list[torch.Tensor]:
        """A copy of every KV tensor."""
        return [canonical.tensor.clone() for canonical in self.caches.tensors]

    def holds(self, contents: list[torch.Tensor]) -> bool:
        """Whether the KV tensors hold exactly that."""
        return all(map(torch.equal, self.contents(), contents))


# Group 0: blocks 3, 5, 4 from the second half of a chunk on; group 1: blocks 7, 8.
STORED = GPULoadStoreSpec([3, 5, 4, 7, 8], [3, 2], [1, 4])
LOADED = GPULoadStoreSpec([9, 1, 10, 2, 11], [3, 2], [1, 4])
JOB_SLOTS = [6, 0, 3]
MOVED_BYTES = 3 * (3 * PAGE - 24) + 2 * 2 * PAGE


def after_load(contents: list[torch.Tensor]) -> list[torch.Tensor]:
    """What `contents` become when LOADED gets what STORED gave."""
    expected = [content.clone() for content in contents]
    for source, target in zip([3, 5, 4], [9, 1, 10], strict=True):
        expected[0][target] = contents[0][source]
        expected[1][target] = contents[1][source]
        expected[2][target, : PAGE - 24] = contents[2][source, : PAGE - 24]
    for source, target in zip([7, 8], [2, 11], strict=True):
        expected[2][target] = contents[2][source]
        expected[0][target] = contents[0][source]
    return expected
