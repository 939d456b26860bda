"""A process's mapping of the arena, the one memfd that holds all slots of a node.

The memfd cannot be sealed: whoever holds it can shrink it under everybody's feet, so it goes only to
processes that are trusted with all of its bytes.
"""

import ctypes
import errno
import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.errors import VineyardError
from tieredkv.tiers.slots import Ints

MADV_POPULATE_WRITE: Final = 23
PAGE_BYTES: Final = mmap.PAGESIZE

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.restype = ctypes.c_int


class Arena:
    """A shared mapping of the whole arena, readable and writable.

    `view` is a uint8 array over it. The mapping stays until the last array made from it is gone, also
    after `close`, so that no copy in flight can ever touch unmapped memory.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Map `size_bytes` of the memfd; `fd` stays the caller's. Raises VineyardError."""
        held_bytes = os.fstat(fd).st_size
        if not 0 < size_bytes <= held_bytes:
            raise VineyardError(f"the arena is {held_bytes} bytes long instead of {size_bytes}")
        mapping = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.size_bytes = size_bytes
        self._view: npt.NDArray[np.uint8] | None = np.frombuffer(mapping, np.uint8)
        self.address: int = self._view.ctypes.data

    @property
    def view(self) -> npt.NDArray[np.uint8]:
        """All bytes of the arena."""
        assert self._view is not None, "the arena is closed"
        return self._view

    def prefault(self, start: int, end: int) -> None:
        """Make the kernel allocate the pages of bytes `start` to `end`, without changing them.

        Takes 0.7 to 1.8 s per GiB, without the GIL (`mmap.madvise` would hold it). Safe from any thread
        that keeps an array of the arena alive.
        Raises MemoryError when there is no memory left to allocate.
        """
        assert 0 <= start <= end <= self.size_bytes
        first = start // PAGE_BYTES * PAGE_BYTES
        if first == end:
            return
        if _libc.madvise(self.address + first, end - first, MADV_POPULATE_WRITE) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            raise MemoryError(f"prefault of {end - first} bytes: {os.strerror(code)}")
        # Linux before 5.14 does not know the advice; for shared memory a read allocates the page too.
        view = self._view
        if view is not None:
            view[first:end:PAGE_BYTES].max()

    def close(self) -> None:
        """Let go of the mapping; it ends with the last array that looks into it. May be repeated."""
        self._view = None


def populated(fd: int, start: int, end: int) -> Ints:
    """Where the memfd's pages are allocated from `start` to `end`: begin and end of each extent, rising (n x 2)."""
    extents: list[tuple[int, int]] = []
    at = start
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break  # nothing but a hole follows
        if first >= end:
            break
        at = os.lseek(fd, first, os.SEEK_HOLE)
        extents.append((first, min(at, end)))
    return np.array(extents, np.int64).reshape(-1, 2)
