"""Which bytes a job moves: pointer lists between pages of KV tensors and bodies of slots.

A body holds the regions of all ranks, `rank_bytes` each. A rank's region of a chunk holds, for each
reference of the chunk's group in order, the pages of all `blocks_per_chunk` blocks of that reference
side by side; only the unpadded `page_bytes` of a page count. All addresses are bytes, as int64 (user
space ends far below 2**63, and torch takes int64).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.errors import TieredKVError

Ints = npt.NDArray[np.int64]

_NOTHING: Final[Ints] = np.empty(0, np.int64)


class ImpossibleLayout(TieredKVError, ValueError):
    """These KV tensors and groups cannot be stored in slots; tiering must be refused."""


class ImpossibleJob(TieredKVError, ValueError):
    """A job that does not fit the layout; it must fail without moving a byte."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A KV tensor: block b starts at base_ptr + b * block_stride_bytes."""

    base_ptr: int
    block_stride_bytes: int
    blocks: int


@dataclass(frozen=True, slots=True)
class GroupRef:
    """One layer's (or several layers') pages within a tensor; `page_bytes` is without padding."""

    tensor_index: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Contiguous pieces to copy: sizes[i] bytes between pages[i] and bodies[i], in body order."""

    pages: Ints
    bodies: Ints
    sizes: Ints

    @property
    def total_bytes(self) -> int:
        return int(self.sizes.sum())

    def cut(self, bounds: Ints) -> "Pieces":
        """The same bytes, with no piece reaching across one of the body addresses in `bounds`."""
        pages, bodies, sizes = self.pages, self.bodies, self.sizes
        for bound in bounds.tolist():
            across = np.flatnonzero((bodies < bound) & (bodies + sizes > bound))
            if len(across):
                kept = bound - bodies[across]
                pages = np.concatenate((pages, pages[across] + kept))
                bodies = np.concatenate((bodies, bodies[across] + kept))
                sizes = np.concatenate((sizes, sizes[across] - kept))
                sizes[across] = kept
        return Pieces(pages, bodies, sizes)


@dataclass(frozen=True, slots=True)
class _Group:
    """Per reference of one group, as arrays of shape (refs, 1): ready to broadcast over sub-blocks."""

    bases: Ints
    strides: Ints
    sizes: Ints
    offsets: Ints
    blocks: int


class CopyLayout:
    """The layout of one rank's KV tensors, and of their pages in slot bodies.

    `rank_bytes` is the size of a rank's region in a body. Raises ImpossibleLayout when a group does not
    fit into it or a description contradicts itself.
    """

    def __init__(
        self,
        tensors: Sequence[TensorShape],
        groups: Sequence[Sequence[GroupRef]],
        *,
        blocks_per_chunk: int,
        rank: int = 0,
        world_size: int = 1,
        rank_bytes: int,
    ) -> None:
        if blocks_per_chunk < 1 or not 0 <= rank < world_size:
            raise ImpossibleLayout(
                f"layout: blocks_per_chunk {blocks_per_chunk}, rank {rank} of {world_size}: must be >= 1 and in range"
            )
        self.blocks_per_chunk = blocks_per_chunk
        self.rank = rank
        self.rank_bytes = rank_bytes
        self.body_bytes = rank_bytes * world_size
        self._groups = tuple(self._lay_out(index, refs, tensors) for index, refs in enumerate(groups))

    @property
    def groups(self) -> int:
        """Number of KV groups."""
        return len(self._groups)

    def _lay_out(self, index: int, refs: Sequence[GroupRef], tensors: Sequence[TensorShape]) -> _Group:
        if not refs:
            raise ImpossibleLayout(f"layout: group {index} has no layers")
        for ref in refs:
            if not 0 <= ref.tensor_index < len(tensors):
                raise ImpossibleLayout(f"layout: group {index} refers to tensor {ref.tensor_index} of {len(tensors)}")
            stride_bytes = tensors[ref.tensor_index].block_stride_bytes
            if not 0 < ref.page_bytes <= stride_bytes:
                raise ImpossibleLayout(
                    f"layout: group {index} has pages of {ref.page_bytes} bytes in blocks of {stride_bytes} bytes"
                )
        sizes = np.array([ref.page_bytes for ref in refs], np.int64)
        used_bytes = int(sizes.sum()) * self.blocks_per_chunk
        if used_bytes > self.rank_bytes:
            raise ImpossibleLayout(
                f"layout: a chunk of group {index} has {used_bytes} bytes, a rank's region {self.rank_bytes}"
            )
        used = [tensors[ref.tensor_index] for ref in refs]
        return _Group(
            bases=np.array([tensor.base_ptr for tensor in used], np.int64)[:, None],
            strides=np.array([tensor.block_stride_bytes for tensor in used], np.int64)[:, None],
            sizes=sizes[:, None],
            offsets=((np.cumsum(sizes) - sizes) * self.blocks_per_chunk)[:, None],
            blocks=min(tensor.blocks for tensor in used),
        )

    def plan(
        self,
        block_ids: npt.NDArray[np.integer],
        group_sizes: Sequence[int],
        block_indices: Sequence[int],
        bodies: Ints,
    ) -> Pieces:
        """Pieces of a job, neighbours that are contiguous on both sides merged.

        `block_ids` are ordered by group, `group_sizes[g]` of them for group g, whose first block is the
        `block_indices[g]`-th of its request. `bodies` are the addresses of the slot bodies, ordered by
        group. Raises ImpossibleJob.
        """
        if not len(group_sizes) == len(block_indices) == len(self._groups):
            raise ImpossibleJob(
                f"job: {len(group_sizes)} sizes and {len(block_indices)} indices for {len(self._groups)} groups"
            )
        if min(group_sizes, default=0) < 0 or min(block_indices, default=0) < 0:
            raise ImpossibleJob("job: negative group size or block index")
        if sum(group_sizes) != len(block_ids):
            raise ImpossibleJob(f"job: {len(block_ids)} blocks, but groups of {sum(group_sizes)} together")
        per_chunk = self.blocks_per_chunk
        skips = [index % per_chunk for index in block_indices]
        chunks = [-(-(size + skip) // per_chunk) if size else 0 for size, skip in zip(group_sizes, skips, strict=True)]
        if sum(chunks) != len(bodies):
            raise ImpossibleJob(f"job: {len(bodies)} slots for {sum(chunks)} chunks")

        parts: list[tuple[Ints, Ints, Ints]] = []
        ids = block_ids.astype(np.int64, copy=False)
        block, chunk = 0, 0
        for group, size, skip, count in zip(self._groups, group_sizes, skips, chunks, strict=True):
            if size:
                parts.append(self._pieces(group, ids[block : block + size], skip, bodies[chunk : chunk + count]))
            block += size
            chunk += count
        if not parts:
            return Pieces(_NOTHING, _NOTHING, _NOTHING)
        if len(parts) == 1:
            return _merged(*parts[0])
        return _merged(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _pieces(self, group: _Group, ids: Ints, skip: int, bodies: Ints) -> tuple[Ints, Ints, Ints]:
        """Unmerged pieces of one group, shaped (chunks, refs, sub-blocks) while they are computed."""
        if ids.min() < 0 or ids.max() >= group.blocks:
            raise ImpossibleJob(f"job: blocks {ids.min()} to {ids.max()} of a tensor of {group.blocks}")
        per_chunk = self.blocks_per_chunk
        places = len(bodies) * per_chunk
        padded = np.zeros(places, np.int64)
        padded[skip : skip + len(ids)] = ids
        pages = group.bases + padded.reshape(-1, 1, per_chunk) * group.strides
        starts = bodies + self.rank * self.rank_bytes
        slots = starts[:, None, None] + (group.offsets + np.arange(per_chunk, dtype=np.int64) * group.sizes)
        sizes = np.broadcast_to(group.sizes, pages.shape)
        if places == len(ids):
            return pages.ravel(), slots.ravel(), sizes.flatten()
        filled = np.zeros(places, np.bool_)
        filled[skip : skip + len(ids)] = True
        chosen = np.broadcast_to(filled.reshape(-1, 1, per_chunk), pages.shape)
        return pages[chosen], slots[chosen], sizes[chosen]


def _merged(pages: Ints, bodies: Ints, sizes: Ints) -> Pieces:
    """Join each piece that continues its predecessor on both sides."""
    joined = np.diff(pages) == sizes[:-1]
    if joined.any():
        joined &= np.diff(bodies) == sizes[:-1]
    if not joined.any():
        return Pieces(pages, bodies, sizes)
    first = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    return Pieces(pages[first], bodies[first], np.add.reduceat(sizes, first))
