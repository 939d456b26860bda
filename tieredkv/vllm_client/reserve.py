"""Slots leased ahead, so that a store never waits for the sidecar."""

from typing import Final

import numpy as np
import numpy.typing as npt

ASK_AGAIN_S: Final = 0.1
LEASE_CHUNKS_MIN: Final = 16
"""What is held ahead however small the pool is, if so much is asked for."""


class SlotReserve:
    """Leased slots in the order in which they came. Empty means: store fewer, never wait."""

    def __init__(self, wanted: int, share_max: float = 1.0) -> None:
        """`wanted` is how many slots to hold ready, `share_max` what part of a pool at most (see `fit`)."""
        self._target = wanted
        self._wanted = wanted
        self._share_max = share_max
        self._slots: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._generations: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._next = 0
        self._asked = False
        self._ask_after_s = 0.0

    def fit(self, slots: int) -> None:
        """The pool has so many slots: what is held empty in a small one is missing there."""
        self._target = min(self._wanted, max(LEASE_CHUNKS_MIN, int(slots * self._share_max)))

    def __len__(self) -> int:
        return len(self._slots) - self._next

    @property
    def asked(self) -> bool:
        """An answer to a lease is due."""
        return self._asked

    def add(self, slots: npt.NDArray[np.int32], generations: npt.NDArray[np.uint64], now_s: float) -> None:
        """An answer to a lease: perhaps fewer slots than asked, then the next question waits a little."""
        self._slots = np.concatenate([self._slots[self._next :], slots])
        self._generations = np.concatenate([self._generations[self._next :], generations])
        self._next = 0
        self._asked = False
        self._ask_after_s = now_s if len(self) >= self._target // 2 else now_s + ASK_AGAIN_S

    def take(self, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Up to `count` slots and their generations."""
        start, end = self._next, min(self._next + count, len(self._slots))
        self._next = end
        return self._slots[start:end], self._generations[start:end]

    def wanted(self, now_s: float) -> int:
        """How many slots to ask for now: 0 while an answer is due or the reserve is well filled."""
        missing = self._target - len(self)
        if self._asked or now_s < self._ask_after_s or missing * 4 < self._target or missing <= 0:
            return 0
        self._asked = True
        return missing

    def clear(self) -> None:
        """The sidecar that leased them is gone: nothing is held, nothing is asked for."""
        self._slots = self._slots[:0]
        self._generations = self._generations[:0]
        self._next = 0
        self._asked = False
        self._ask_after_s = 0.0
