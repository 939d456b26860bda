"""A round trip of known bytes per KV group: the proof that the layout is what we believe it to be.

A checksum cannot catch a misread layout, because the same misreading takes bytes out and puts them
back. So known bytes are written through torch, which knows nothing of the plan; after the copy the body
is compared with what its definition says, and after the way back every byte of the blocks, of their
padding and of their neighbours.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.compat import GPULoadStoreSpec
from tieredkv.vllm_client.copyplan import ImpossibleJob, Ints
from tieredkv.vllm_client.copytask import Movement
from tieredkv.vllm_client.worker import TieredKVWorker

CHUNKS_MAX: Final = 3
"""Chunks per group: the first starts unaligned, the last is not full."""

Bytes = npt.NDArray[np.uint8]


def round_trip(worker: TieredKVWorker, attachment: Attachment, slots: Ints, *, seed: int = 0) -> str:
    """Empty if every KV group came back unchanged, else why tiering must be refused, in one line.

    `slots` (one at least) are leased for this and never published. Call it on the worker's thread,
    between steps, with no job in flight: it overwrites some blocks (never block 0) for a moment and
    restores them. Some milliseconds.
    """
    random = np.random.default_rng(seed)
    for group, refs in enumerate(worker.kv_caches.group_data_refs):
        total = min(worker.kv_caches.tensors[ref.tensor_idx].tensor.shape[0] for ref in refs)
        probe = _Probe(worker, attachment, slots, group, random.permutation(np.arange(1, total)))
        if not len(probe.blocks):
            return f"group {group}: {total} blocks and {len(slots)} slots leave nothing to test with"
        rows = _Rows([canonical.tensor for canonical in worker.kv_caches.tensors], probe.blocks)
        before = rows.read()
        try:
            reason = probe.run(rows, random)
        except ImpossibleJob as error:
            reason = str(error)
        rows.write(before)
        if reason:
            return f"group {group}: {reason}"
    return ""


class _Rows:
    """Some blocks of all tensors as rows of bytes, and the blocks beside them.

    Tensors may overlap (hybrid models): what was written through one is seen through another, so
    contents are always read back instead of remembered.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], blocks: Ints) -> None:
        self._tensors = [_with_gaps(tensor) for tensor in tensors]
        beside = np.unique(np.concatenate(([0], blocks - 1, blocks, blocks + 1)))
        self._blocks = [torch.as_tensor(blocks[blocks < len(tensor)]) for tensor in self._tensors]
        self._beside = [torch.as_tensor(beside[beside < len(tensor)]) for tensor in self._tensors]

    def read(self) -> list[Bytes]:
        """The blocks' bytes, per tensor (blocks, bytes)."""
        return self._take(self._blocks)

    def read_around(self) -> list[Bytes]:
        """The same, with the neighbours (and block 0)."""
        return self._take(self._beside)

    def write(self, contents: Sequence[Bytes]) -> None:
        """Set the blocks' bytes."""
        for tensor, index, content in zip(self._tensors, self._blocks, contents, strict=True):
            tensor[index] = torch.as_tensor(content).to(tensor.device)

    def write_pages(self, tensor_index: int, content: Bytes) -> None:
        """Set the first bytes of the blocks of one tensor."""
        tensor, index = self._tensors[tensor_index], self._blocks[tensor_index]
        tensor[index, : content.shape[1]] = torch.as_tensor(content).to(tensor.device)

    def describe(self, tensor_index: int, row: int) -> str:
        """Name a row of `read_around`."""
        return f"block {int(self._beside[tensor_index][row])} of tensor {tensor_index}"

    def _take(self, indices: Sequence[torch.Tensor]) -> list[Bytes]:
        return [tensor[index].cpu().numpy() for tensor, index in zip(self._tensors, indices, strict=True)]


class _Probe:
    """The round trip of one group, through as many of the candidate blocks as the slots can take."""

    def __init__(
        self, worker: TieredKVWorker, attachment: Attachment, slots: Ints, group: int, candidates: Ints
    ) -> None:
        per_chunk = worker.layout.blocks_per_chunk
        self._skip = per_chunk - 1
        fits = min(len(slots), CHUNKS_MAX) * per_chunk - self._skip
        if per_chunk > 1 and fits > 1:
            fits -= 1
        self.blocks = candidates[: max(fits, 0)]
        self._slots = slots[: -(-(len(self.blocks) + self._skip) // per_chunk)]
        self._worker = worker
        self._attachment = attachment
        self._group = group
        self._refs = worker.kv_caches.group_data_refs[group]

    def run(self, rows: _Rows, random: np.random.Generator) -> str:
        """Why it failed, or nothing. Leaves other bytes in the blocks."""
        rows.write([random.integers(0, 256, content.shape, np.uint8) for content in rows.read()])
        known = rows.read()
        if not self._copy(Movement.STORE):
            return "the copy into the slot failed"
        if reason := self._compare_bodies(known):
            return reason
        # Every byte of the blocks becomes another one, so that only a real copy can bring it back.
        others = [~content for content in known]
        rows.write(others)
        for ref in self._refs:
            rows.write_pages(ref.tensor_idx, known[ref.tensor_idx][:, : ref.page_size_bytes])
        expected = rows.read_around()
        rows.write(others)
        if not self._copy(Movement.LOAD):
            return "the copy out of the slot failed"
        for index, (found, right) in enumerate(zip(rows.read_around(), expected, strict=True)):
            wrong = np.argwhere(found != right)
            if len(wrong):
                row, byte = wrong[0].tolist()
                return f"{len(wrong)} bytes came back wrong, the first is byte {byte} of {rows.describe(index, row)}"
        return ""

    def _copy(self, movement: Movement) -> bool:
        groups = self._worker.layout.groups
        sizes = [len(self.blocks) if group == self._group else 0 for group in range(groups)]
        indices = [self._skip if group == self._group else 0 for group in range(groups)]
        spec = GPULoadStoreSpec(self.blocks.tolist(), sizes, indices)
        return self._worker.copy_probe(movement, self._attachment, spec, self._slots)

    def _compare_bodies(self, known: Sequence[Bytes]) -> str:
        """Read our region of the bodies page by page, by the definition of a body."""
        layout, attachment = self._worker.layout, self._attachment
        for row, block in enumerate(self.blocks.tolist()):
            chunk, place = divmod(self._skip + row, layout.blocks_per_chunk)
            at = int(attachment.offsets[self._slots[chunk]]) + attachment.body_offset
            at += layout.rank * layout.rank_bytes
            for ref in self._refs:
                size = ref.page_size_bytes
                page = attachment.arena[at + place * size : at + (place + 1) * size]
                if not np.array_equal(page, known[ref.tensor_idx][row, :size]):
                    return f"block {block} of tensor {ref.tensor_idx} did not arrive in its place of the slot"
                at += size * layout.blocks_per_chunk
        return ""


def _with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as rows of bytes that include what lies between its blocks, where that is stored."""
    rows = tensor.view(torch.uint8)
    blocks, stride = rows.shape[0], rows.stride(0)
    if rows.storage_offset() + blocks * stride > rows.untyped_storage().nbytes():
        return rows
    return rows.as_strided((blocks, stride), (stride, 1), rows.storage_offset())
