"""Where recorded managers write their calls, and the time that they share."""

from collections.abc import Callable
from typing import Final

from tieredkv.clock import Clock
from tieredkv.trace import LineFile
from tieredkv.trace.calls import Call, call_line
from tieredkv.trace.pseudonyms import Pseudonyms

NOTED_MAX: Final = 256
"""Calls that may wait to be written down; each may hold the chain of a long request."""

Line = Call | Callable[[Pseudonyms], Call]
"""A call as it is written, or how to write it once there is time to look for pseudonyms."""


class CallFile:
    """The calls of all managers of a process."""

    def __init__(self, file: LineFile, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._start_s = clock.now_s()
        self._names = Pseudonyms()
        self._noted: list[Line] = []
        self._pools = 0

    def now_s(self) -> float:
        """Seconds since the recording began."""
        return self._clock.now_s() - self._start_s

    def number(self) -> int:
        """The number of a new manager."""
        self._pools += 1
        return self._pools - 1

    def note(self, line: Line) -> None:
        """Remember a call that was made."""
        if not self._file.closed:
            self._noted.append(line)
            if len(self._noted) >= NOTED_MAX:
                self.write()

    def write(self) -> None:
        """Write down what is noted."""
        now_s = self.now_s()
        for line in self._noted:
            self._file.add(call_line(line if isinstance(line, Call) else line(self._names)), now_s)
        self._noted.clear()

    def close(self) -> None:
        """Write out what is left."""
        self.write()
        self._file.close()


class HeldClock:
    """A clock that stands still during a call, so that the call's time is one number."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def hold(self, now_s: float) -> float:
        """It is `now_s` until the next call; returns that."""
        self._now_s = now_s
        return now_s
