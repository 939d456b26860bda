"""Stores between vLLM's prepare and complete: which slot each chunk is written to, and its publication."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.protocol import Publish, Return
from tieredkv.vllm_client.compat import OffloadKey, ReqContext

SUFFIX_BYTES: Final = 4
"""What vLLM appends to a block hash to name the KV group."""

Slots = npt.NDArray[np.int32]


@dataclass(slots=True, eq=False)
class StoreBatch:
    """Chunks of one store job: rows are aligned, sorted by group, head of the prefix first."""

    keys: list[OffloadKey]
    hashes: list[bytes]
    parents: list[bytes]
    positions: list[int]
    groups: list[int]
    slots: Slots
    epoch: int = 0
    failed: bool = False

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        for column in (self.keys, self.hashes, self.parents, self.positions, self.groups):
            del column[count:]

    def messages(self) -> Iterable[Publish]:
        """One publication per group."""
        start = 0
        while start < len(self.keys):
            group = self.groups[start]
            # Rows are sorted by group; with one group, the usual case, there is nothing to look for.
            end = len(self.keys) if self.groups[-1] == group else bisect_right(self.groups, group, start)
            yield Publish(
                group,
                self.hashes[start:end],
                self.parents[start:end],
                np.array(self.positions[start:end], dtype="<i4").tobytes(),
                self.slots[start:end].tobytes(),
            )
            start = end

    def give_back(self) -> Return:
        """Nothing of it may be published."""
        return Return(self.slots.tobytes())


class StoreBook:
    """All chunks being stored, by key."""

    def __init__(self, chain_tokens: int, suffixes: Sequence[bytes]) -> None:
        """`suffixes[g]` is what vLLM appends to the hashes of group g."""
        self._chain_tokens = chain_tokens
        self._group_of = {suffix: group for group, suffix in enumerate(suffixes)}
        self._storing: dict[bytes, StoreBatch] = {}
        # No longer vLLM's, but still ours to answer for: dropped by a reset while ranks may write them, or
        # written while there was no sidecar to be told.
        self._lingering: list[StoreBatch] = []

    def __len__(self) -> int:
        return len(self._storing)

    def fresh(self, keys: Iterable[OffloadKey], resident: Collection[bytes]) -> list[OffloadKey]:
        """Those of `keys` that are neither resident nor being stored."""
        storing = self._storing
        return [key for key in keys if key not in resident and key not in storing]

    def plan(self, keys: list[OffloadKey], context: ReqContext, chain: list[bytes]) -> StoreBatch:
        """Rows for `keys` (ordered by group and, within one, from the head on); no slots yet."""
        position_of = context.get_offload_key_position
        first, last = position_of(keys[0]), position_of(keys[-1])
        empty = np.empty(0, dtype=np.int32)
        if len(self._group_of) == 1 and first is not None and last is not None:
            start, end = first // self._chain_tokens - 1, last // self._chain_tokens
            if end - start == len(keys) and end <= len(chain):
                # The usual case, a contiguous stretch of the chain: no work per key.
                parents = chain[start - 1 : end - 1] if start else [b"", *chain[: end - 1]]
                return StoreBatch(keys, chain[start:end], parents, list(range(start, end)), [0] * len(keys), empty)
        batch = StoreBatch([], [], [], [], [], empty)
        for key in keys:
            tokens = position_of(key)
            group = self._group_of.get(key[-SUFFIX_BYTES:])
            # A partial tail ends between two positions of the chain: it has no place in it.
            if tokens is None or group is None or tokens % self._chain_tokens:
                continue
            position = tokens // self._chain_tokens - 1
            if position >= len(chain):
                continue
            batch.keys.append(key)
            batch.hashes.append(key[:-SUFFIX_BYTES])
            batch.parents.append(chain[position - 1] if position else b"")
            batch.positions.append(position)
            batch.groups.append(group)
        return batch

    def begin(self, batch: StoreBatch, slots: Slots, epoch: int) -> None:
        """The batch is handed to the workers."""
        batch.slots, batch.epoch = slots, epoch
        self._storing.update(dict.fromkeys(batch.keys, batch))

    def of(self, keys: Iterable[bytes]) -> list[StoreBatch]:
        """The batches that hold any of `keys`, each once."""
        batches = {id(batch): batch for key in keys if (batch := self._storing.get(key)) is not None}
        return list(batches.values())

    def end(self, keys: Collection[OffloadKey]) -> list[StoreBatch]:
        """All ranks wrote these: take their batches out. vLLM completes the keys of a job together."""
        if not keys:
            return []
        batch = self._storing.get(next(iter(keys)))
        whole = batch is not None and len(batch.keys) == len(keys)
        batches = [batch] if batch is not None and whole else self.of(keys)
        storing = self._storing
        for ended in batches:
            for key in ended.keys:
                del storing[key]
        return batches

    def linger(self, batches: Iterable[StoreBatch]) -> None:
        """Keep answering for these after `end`."""
        self._lingering += batches

    def settle(self, batches: Iterable[StoreBatch]) -> None:
        """They need no answer any more."""
        for batch in batches:
            self._lingering.remove(batch)

    def held(self, epoch: int) -> Slots:
        """Slots of that epoch that a rank may be writing, or that a publication is owed for."""
        batches = [*self.of(self._storing), *self._lingering]
        parts = [batch.slots for batch in batches if batch.epoch == epoch]
        return np.concatenate(parts).astype("<i4") if parts else np.empty(0, dtype="<i4")
