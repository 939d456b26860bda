"""A process' mapping of the arena, as handed out by the sidecar for one epoch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tieredkv.tiers.slots import HEADER_BYTES, SlotWords

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """One pool of slots in the arena. It must outlive every copy that was planned with it.

    `arena` is a uint8 array over the whole mapping and keeps it mapped; `offsets` are the slots' byte
    offsets in it.
    """

    epoch: int
    arena: npt.NDArray[np.uint8]
    offsets: Ints
    slot_words: SlotWords
    body_offset: int = HEADER_BYTES

    @classmethod
    def over(cls, arena: npt.NDArray[np.uint8], *, epoch: int, offsets: Ints, slot_bytes: int) -> "Attachment":
        """The attachment of slots of `slot_bytes` each at `offsets` of `arena`."""
        assert len(offsets) == 0 or 0 <= offsets.min() <= offsets.max() <= len(arena) - slot_bytes
        return cls(epoch, arena, offsets, SlotWords(arena, offsets, slot_bytes))

    @property
    def arena_address(self) -> int:
        """Address of the mapping's first byte."""
        return int(self.arena.ctypes.data)

    @property
    def arena_bytes(self) -> int:
        return len(self.arena)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.offsets)

    def bodies(self, slots: Ints) -> Ints:
        """Addresses of the bodies of `slots`. Raises IndexError for a slot that does not exist."""
        if len(slots) and slots.min() < 0:
            raise IndexError(f"slot {slots.min()}")
        return self.offsets[slots] + (self.arena_address + self.body_offset)
