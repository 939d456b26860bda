"""Time as a dependency: the core is given a clock and never reads one by itself."""

from time import monotonic
from typing import Protocol


class Clock(Protocol):
    """Seconds since an arbitrary start, never going back."""

    def now_s(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return monotonic()


class ManualClock:
    """A clock that moves only when told to: for tests and the simulator."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def set(self, now_s: float) -> None:
        """Make it exactly `now_s` (not earlier than now)."""
        assert now_s >= self._now_s
        self._now_s = now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (not negative)."""
        assert seconds >= 0
        self._now_s += seconds
