"""The bytes of a slot: header | body | trailer, and how a reader knows that they belong together.

The sidecar alone writes headers and trailers. Trailer = new generation when the slot is leased (from
then on header and trailer disagree), header with that generation when the chunk is published. A reader
accepts a body only if both hold the generation that it was told, before and after its copy. `resets` is
how often the pool's chunks were forgotten because the weights changed: chunks of different counts are
never interchangeable.
All numbers are little-endian; offsets are those of the slot's blob in the arena.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = int.from_bytes(b"TKVSLOT1", "little")
FORMAT: Final = 2
FLAG_SEALED: Final = 1
"""The header's checksum is valid: see tieredkv.tiers.proof."""
HEADER_BYTES: Final = 256
TRAILER_BYTES: Final = 64
ALIGN_BYTES: Final = 64

HEADER_DTYPE: Final = np.dtype(
    {
        "names": [
            "magic", "generation", "namespace", "body_bytes", "checksum", "flags", "group", "format",
            "position", "key_bytes", "parent_bytes", "key", "parent", "resets",
        ],
        "formats": ["<u8", "<u8", "V16", "<u8", "<u8", "<u4", "<u2", "<u2", "<u4", "u1", "u1", "V64", "V64", "<u8"],
        "offsets": [0, 8, 16, 32, 40, 48, 52, 54, 56, 60, 61, 64, 128, 192],
        "itemsize": HEADER_BYTES,
    }
)  # fmt: skip

GENERATION_OFFSET: Final = 8

Ints = npt.NDArray[np.int64]
Generations = npt.NDArray[np.uint64]


def slot_bytes(body_bytes: int) -> int:
    """Size of a slot whose body holds `body_bytes`."""
    return HEADER_BYTES + -(-body_bytes // ALIGN_BYTES) * ALIGN_BYTES + TRAILER_BYTES


class SlotWords:
    """Generations of many slots at once, read and written through a mapping of the arena.

    `arena` is a uint8 array over the whole mapping, `offsets` the slots' byte offsets in it (int64,
    multiples of 8). Not thread safe for writing; reading is safe beside a writer.
    """

    def __init__(self, arena: npt.NDArray[np.uint8], offsets: Ints, size_bytes: int) -> None:
        usable = len(arena) // 8 * 8
        self._words: Generations = arena[:usable].view(np.uint64)
        self._header = (offsets + GENERATION_OFFSET) // 8
        self._trailer = (offsets + size_bytes - TRAILER_BYTES) // 8

    def agree(self, slots: Ints, generations: Generations) -> npt.NDArray[np.bool_]:
        """Which of `slots` hold the published chunk of that generation right now."""
        header = self._words[self._header[slots]]
        trailer = self._words[self._trailer[slots]]
        same: npt.NDArray[np.bool_] = (header == generations) & (trailer == generations)
        return same

    def leased(self, slots: Ints, generations: Generations) -> npt.NDArray[np.bool_]:
        """Which of `slots` are in that tenancy, not yet published: their bodies may be written."""
        header = self._words[self._header[slots]]
        trailer = self._words[self._trailer[slots]]
        writable: npt.NDArray[np.bool_] = (trailer == generations) & (header != generations)
        return writable

    def headers(self) -> Generations:
        """Header generations of all slots."""
        return self._words[self._header]

    def trailers(self) -> Generations:
        """Trailer generations of all slots."""
        return self._words[self._trailer]

    def set_trailers(self, slots: Ints, generations: Generations) -> None:
        """Start a tenancy: from here on nobody accepts the old body."""
        self._words[self._trailer[slots]] = generations

    def set_headers(self, slots: Ints, generations: Generations) -> None:
        """End of a publication: the last word written of a header."""
        self._words[self._header[slots]] = generations
