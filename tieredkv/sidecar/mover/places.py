"""The places of one pool as the mover sees them, and the order in which it writes one.

Trailer with the new generation first: from then on it and the header disagree. Then header and body in any
order, the header's generation excepted, which comes last. So a reader accepts a place before the mover
touched it, or when it is whole, and a mover that dies leaves places that nobody accepts.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.sidecar.mover.messages import PoolIs
from tieredkv.tiers import proof
from tieredkv.tiers.proof import Expected, Proof
from tieredkv.tiers.slots import GENERATION_OFFSET, HEADER_BYTES, TRAILER_BYTES, slot_bytes

_FLAGS_OFFSET: Final = 48
_AFTER_GENERATION: Final = GENERATION_OFFSET + 8


class Places:
    """A pool's places, by number. `resets` and `ended` are written by the thread that reads messages only.

    Different places may be used by different threads at a time.
    """

    def __init__(self, arena: npt.NDArray[np.uint8], pool: PoolIs) -> None:
        offsets = np.frombuffer(pool.offsets, np.int64)
        self.size_bytes = slot_bytes(pool.body_bytes)
        assert not (offsets % 8).any()
        assert int(offsets.min()) >= 0
        assert int(offsets.max()) + self.size_bytes <= len(arena)
        self.number = pool.pool
        self.body_bytes = pool.body_bytes
        self.slots = pool.slots
        self.resets = pool.resets
        self.ended = False
        self._namespace = pool.namespace
        self._offsets: list[int] = offsets.tolist()
        self._arena = arena
        self._bytes = arena.data
        # A word is read and written at once.
        self._words = self._bytes[: len(arena) // 8 * 8].cast("Q")
        self._header: list[int] = ((offsets + GENERATION_OFFSET) // 8).tolist()
        self._trailer: list[int] = ((offsets + self.size_bytes - TRAILER_BYTES) // 8).tolist()

    # --- reading ------------------------------------------------------------------------------------

    def agrees(self, place: int, generation: int) -> bool:
        """Whether it holds the whole chunk of that generation right now."""
        return self._words[self._header[place]] == generation == self._words[self._trailer[place]]

    def header(self, place: int) -> bytes:
        """A copy of its header. What that says of the seal is true for its checksum."""
        start = self._offsets[place]
        # The sidecar writes the checksum, then the flag: a flag that was there first has its checksum.
        flags = bytes(self._bytes[start + _FLAGS_OFFSET : start + _FLAGS_OFFSET + 4])
        header = bytes(self._bytes[start : start + HEADER_BYTES])
        return header if header[_FLAGS_OFFSET : _FLAGS_OFFSET + 4] == flags else proof.unsealed(header)

    def trailer(self, place: int) -> bytes:
        """A copy of its trailer."""
        end = self._offsets[place] + self.size_bytes
        return bytes(self._bytes[end - TRAILER_BYTES : end])

    def body(self, place: int) -> npt.NDArray[np.uint8]:
        """The body, where it lies."""
        start = self._offsets[place] + HEADER_BYTES
        return self._arena[start : start + self.body_bytes]

    def room(self, place: int) -> memoryview:
        """All between header and trailer: the body and what pads it."""
        start = self._offsets[place]
        return self._bytes[start + HEADER_BYTES : start + self.size_bytes - TRAILER_BYTES]

    # --- judging ------------------------------------------------------------------------------------

    def describes(self, header: bytes, trailer: bytes, expected: Expected) -> Proof:
        """As tieredkv.tiers.proof.describes, for this pool."""
        return proof.describes(
            header, trailer, expected, namespace=self._namespace, resets=self.resets, body_bytes=self.body_bytes
        )

    def prove(self, header: bytes, body_checksum: int, trailer: bytes, expected: Expected) -> Proof:
        """As tieredkv.tiers.proof.prove, for this pool; the whole body went into `body_checksum`."""
        return proof.prove(
            header,
            body_checksum,
            trailer,
            expected,
            namespace=self._namespace,
            resets=self.resets,
            body_bytes=self.body_bytes,
        )

    # --- writing ------------------------------------------------------------------------------------

    def begin(self, places: Sequence[int], generations: Sequence[int]) -> None:
        """Nobody accepts these places from here on."""
        for place, generation in zip(places, generations, strict=True):
            self._words[self._trailer[place]] = generation

    def finish(self, place: int, generation: int, header: bytes) -> None:
        """The body is written: with `header`, but of this generation, it can be read."""
        start = self._offsets[place]
        self._bytes[start : start + GENERATION_OFFSET] = header[:GENERATION_OFFSET]
        self._bytes[start + _AFTER_GENERATION : start + HEADER_BYTES] = header[_AFTER_GENERATION:]
        self._words[self._header[place]] = generation
