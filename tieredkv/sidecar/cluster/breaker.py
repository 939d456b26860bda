"""Whether a peer is worth asking. Pure; time is given.

Closed: ask. The first failed batch opens it: nobody asks until a while has passed, which doubles with
each trial that fails. Then it is half open: one batch may try, and its result closes or opens it again.
So a peer that hangs costs one deadline, not one for every request.
"""

from enum import IntEnum
from typing import Final

BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0


class BreakerState(IntEnum):
    """Values of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Of one peer."""

    def __init__(self, backoff_min_s: float = BACKOFF_MIN_S, backoff_max_s: float = BACKOFF_MAX_S) -> None:
        assert 0 < backoff_min_s <= backoff_max_s
        self._min_s = backoff_min_s
        self._max_s = backoff_max_s
        self._backoff_s = backoff_min_s
        self._until_s = 0.0
        self._open = False
        self._trying = False
        self.opened = 0
        """How often it opened out of closed."""

    def state(self, now_s: float) -> BreakerState:
        """For the metric and for people."""
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._until_s and not self._trying else BreakerState.HALF_OPEN

    def usable(self, now_s: float) -> bool:
        """Whether a batch may be begun. A trial whose result never came may be followed by another."""
        return not self._open or now_s >= self._until_s

    def begin(self, now_s: float) -> None:
        """A batch begins: of a peer that is usable, and in the half-open state the only one."""
        assert self.usable(now_s)
        if self._open:
            self._trying = True
            self._until_s = now_s + self._backoff_s

    def succeed(self) -> None:
        """A batch ended well. One that began before it opened proves nothing."""
        if self._open and not self._trying:
            return
        self._open = False
        self._trying = False
        self._backoff_s = self._min_s

    def hurry(self, now_s: float) -> None:
        """The peer has connected anew: it may be tried at once. If that fails, the wait is no shorter."""
        self._trying = False
        self._until_s = min(self._until_s, now_s)

    def fail(self, now_s: float) -> None:
        """A batch failed, or the connection was lost. Of several that were under way the first counts."""
        if self._open and not self._trying:
            return
        if self._open:
            self._backoff_s = min(2 * self._backoff_s, self._max_s)
        else:
            self.opened += 1
        self._open = True
        self._trying = False
        self._until_s = now_s + self._backoff_s

    def check(self) -> None:
        """Assert the invariants."""
        assert self._open or not self._trying
        assert self._min_s <= self._backoff_s <= self._max_s
        assert self._open or self._backoff_s == self._min_s
