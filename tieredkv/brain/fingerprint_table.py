"""A table of 64-bit fingerprints, open addressed, that grows and is tidied piece by piece.

Fingerprints that begin alike (after a hash with a secret seed: a peer cannot choose where they come to
lie) are in one segment of `SEGMENT_CELLS` cells. A directory by the leading bits names the segments; a
crowded one is split in two, alone, so that no insertion ever waits for the whole table. The segments'
limits differ: else they would all be split at the same time.

Within a segment a fingerprint is in the first bucket, from its home on, that had room: buckets are filled
from their left and nothing is taken out but by rewriting a segment, so a bucket with an empty last cell
ends a search. What was removed keeps its cell, without a value, until then.

`take` instead of brackets: numpy gathers whole lines with it in a third of the time.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Fingerprints = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.int32]

BUCKET_CELLS: Final = 8
"""64 bytes of fingerprints: one line of the processor's cache."""

SEGMENT_CELLS: Final = 4096
SEGMENT_BUCKETS: Final = SEGMENT_CELLS // BUCKET_CELLS
FIRST_DEPTH: Final = 6
LIMIT_MIN: Final = 0.55
LIMIT_MAX: Final = 0.75
CLEAN_MAX: Final = 0.75
"""A crowded segment that is this empty (of its limit) without what was removed need not be split."""

GROWTH_SEGMENTS: Final = 16
_GOLDEN: Final = 0.6180339887498949
_DEPTH_MAX: Final = 40
_MULTIPLIERS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))


def mixed(words: Fingerprints) -> Fingerprints:
    """A bijection of 64-bit words in which every bit depends on every bit (splitmix64's finish)."""
    result = words ^ (words >> _SHIFTS[0])
    result *= _MULTIPLIERS[0]
    result ^= result >> _SHIFTS[1]
    result *= _MULTIPLIERS[1]
    result ^= result >> _SHIFTS[2]
    return result


class FingerprintTable:
    """Fingerprint (never 0) -> a number from 0 on. Cells are valid until the next `reserve`."""

    def __init__(self, seed: int) -> None:
        """`seed`: 64 bits that no peer knows."""
        self._seed = np.uint64(seed)
        self._depth = FIRST_DEPTH
        self._segments = 1 << FIRST_DEPTH
        self._directory = np.arange(self._segments)
        self._fingerprints: Fingerprints = np.zeros(self._segments * SEGMENT_CELLS, np.uint64)
        # One more than the value, so that a fresh cell, which nobody touched, has none.
        self._values: Values = np.zeros(self._segments * SEGMENT_CELLS, np.int32)
        self._filled: npt.NDArray[np.uint8] = np.zeros(self._segments * SEGMENT_BUCKETS, np.uint8)
        self._used = np.zeros(self._segments, np.int64)
        self._limits = _limits(0, self._segments)
        self._depths = np.full(self._segments, FIRST_DEPTH)

    @property
    def size_bytes(self) -> int:
        """Memory of the table."""
        by_segment = (self._directory, self._used, self._limits, self._depths)
        by_cell = (self._fingerprints, self._values, self._filled)
        return sum(array.nbytes for array in (*by_cell, *by_segment))

    def locate(self, fingerprints: Fingerprints) -> Rows:
        """Cells of `fingerprints`, -1 where there is none."""
        hashes = self._hashes(fingerprints)
        firsts = self._segments_of(hashes) * SEGMENT_BUCKETS
        homes = (hashes & np.uint64(SEGMENT_BUCKETS - 1)).view(np.int64)
        buckets = self._fingerprints.reshape(-1, BUCKET_CELLS)
        cells: Rows = np.full(len(fingerprints), -1)
        rows: Rows = np.arange(len(fingerprints))
        while len(rows):
            at = firsts + homes
            lines = buckets.take(at, axis=0)
            matches = np.flatnonzero(lines == fingerprints[:, None])
            matched = matches // BUCKET_CELLS
            cells[rows[matched]] = at[matched] * BUCKET_CELLS + matches % BUCKET_CELLS
            onward = lines[:, -1] != 0
            onward[matched] = False
            rows, fingerprints, firsts = rows[onward], fingerprints[onward], firsts[onward]
            homes = (homes[onward] + 1) % SEGMENT_BUCKETS
        return cells

    def values(self, cells: Rows) -> Rows:
        """The numbers in `cells`; -1 where there is none, or the cell is -1."""
        found: Rows = self._values.take(cells).astype(np.int64) - 1
        found[cells < 0] = -1
        return found

    def put(self, cells: Rows, values: Rows) -> None:
        """Write numbers into cells; -1 for none, which ends the fingerprint's being known."""
        self._values[cells] = values + 1

    def reserve(self, fingerprints: Fingerprints) -> Rows:
        """Cells for `fingerprints`, which are all different; new ones have no number yet."""
        while True:
            cells = self.locate(fingerprints)
            missing = np.flatnonzero(cells < 0)
            if not len(missing):
                return cells
            segments = self._segments_of(self._hashes(fingerprints[missing]))
            wanted = np.bincount(segments, minlength=self._segments)
            crowded = np.flatnonzero(self._used[: self._segments] + wanted > self._limits[: self._segments])
            if not len(crowded):
                cells[missing] = self._place(fingerprints[missing])
                return cells
            self._relieve(crowded, wanted[crowded])

    def items(self) -> tuple[Fingerprints, Rows]:
        """All fingerprints that have a number, and the numbers."""
        cells = np.flatnonzero(self._values)
        return self._fingerprints[cells], self._values[cells].astype(np.int64) - 1

    def check(self) -> None:
        """Assert what is said above. Takes as long as the table is large."""
        end = self._segments * SEGMENT_CELLS
        filled = self._fingerprints[:end] != 0
        assert not self._fingerprints[end:].any()
        assert not self._values[end:].any()
        assert not self._values[:end][~filled].any()
        assert (filled.reshape(-1, SEGMENT_CELLS).sum(1) == self._used[: self._segments]).all()
        assert (self._used[: self._segments] <= self._limits[: self._segments]).all()
        buckets = filled.reshape(-1, BUCKET_CELLS)
        assert (buckets[:, 1:] <= buckets[:, :-1]).all(), "filled from the left"
        assert (buckets.sum(1) == self._filled[: len(buckets)]).all()
        cells = np.flatnonzero(filled)
        assert (self.locate(self._fingerprints[cells]) == cells).all(), "found again, and only there"
        sizes = np.bincount(self._directory, minlength=self._segments)
        assert (sizes == 1 << (self._depth - self._depths[: self._segments])).all()

    def _hashes(self, fingerprints: Fingerprints) -> Fingerprints:
        return mixed(fingerprints ^ self._seed)

    def _segments_of(self, hashes: Fingerprints) -> Rows:
        segments: Rows = self._directory.take((hashes >> np.uint64(64 - self._depth)).view(np.int64))
        return segments

    def _place(self, fingerprints: Fingerprints) -> Rows:
        """Write new fingerprints into empty cells of segments that have room."""
        hashes = self._hashes(fingerprints)
        segments = self._segments_of(hashes)
        self._used[: self._segments] += np.bincount(segments, minlength=self._segments)
        firsts = segments * SEGMENT_BUCKETS
        homes = (hashes & np.uint64(SEGMENT_BUCKETS - 1)).view(np.int64)
        cells: Rows = np.empty(len(fingerprints), np.int64)
        rows: Rows = np.arange(len(fingerprints))
        while len(rows):
            buckets = firsts + homes
            # Of those that come to one bucket each takes the cell after the one before it.
            order = np.argsort(buckets, kind="stable")
            ordered = buckets[order]
            begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
            counts = np.diff(np.append(begins, len(ordered)))
            wanted = np.arange(len(ordered)) - np.repeat(begins, counts) + self._filled[ordered]
            placed = wanted < BUCKET_CELLS
            cells[rows[order[placed]]] = ordered[placed] * BUCKET_CELLS + wanted[placed]
            found = ordered[begins]
            self._filled[found] = np.minimum(self._filled[found] + counts, BUCKET_CELLS)
            left = order[~placed]
            rows, firsts = rows[left], firsts[left]
            homes = (homes[left] + 1) % SEGMENT_BUCKETS
        self._fingerprints[cells] = fingerprints
        return cells

    def _relieve(self, segments: Rows, wanted: Rows) -> None:
        """Make room in segments: without what was removed one may be empty enough, else it is split."""
        values = self._values.reshape(-1, SEGMENT_CELLS).take(segments, axis=0)
        fingerprints = self._fingerprints.reshape(-1, SEGMENT_CELLS).take(segments, axis=0)
        kept = values != 0
        for segment in segments[kept.sum(1) + wanted > CLEAN_MAX * self._limits[segments]].tolist():
            self._split(segment)
        self._fingerprints.reshape(-1, SEGMENT_CELLS)[segments] = 0
        self._values.reshape(-1, SEGMENT_CELLS)[segments] = 0
        self._filled.reshape(-1, SEGMENT_BUCKETS)[segments] = 0
        self._used[segments] = 0
        self._values[self._place(fingerprints[kept])] = values[kept]

    def _split(self, segment: int) -> None:
        """Give the upper half of what a segment is responsible for to a new one."""
        depth = int(self._depths[segment])
        assert depth < _DEPTH_MAX, "fingerprints that are alike after a hash"
        if depth == self._depth:
            self._directory = np.repeat(self._directory, 2)
            self._depth += 1
        if self._segments == len(self._used):
            self._grow()
        # By leading bits: what one segment is responsible for is contiguous.
        share = 1 << (self._depth - depth)
        first = int(np.argmax(self._directory == segment))
        self._directory[first + share // 2 : first + share] = self._segments
        self._depths[[segment, self._segments]] = depth + 1
        self._segments += 1

    def _grow(self) -> None:
        """Room for more segments. In place: large memory is moved by its page table, not copied."""
        before = len(self._used)
        after = before + max(GROWTH_SEGMENTS, before // 16)
        for cells in (self._fingerprints, self._values):
            cells.resize(after * SEGMENT_CELLS, refcheck=False)
        self._filled.resize(after * SEGMENT_BUCKETS, refcheck=False)
        for numbers in (self._used, self._depths):
            numbers.resize(after, refcheck=False)
        self._limits = np.concatenate((self._limits, _limits(before, after)))


def _limits(first: int, end: int) -> Rows:
    """Most used cells of the segments from `first` on: spread evenly, whatever range is looked at."""
    fractions = LIMIT_MIN + (LIMIT_MAX - LIMIT_MIN) * (np.arange(first, end) * _GOLDEN % 1.0)
    limits: Rows = (fractions * SEGMENT_CELLS).astype(np.int64)
    return limits
