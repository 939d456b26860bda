"""How long the machine itself kept this process waiting, so that this is not laid at the product's door.

A thread that only sleeps notes whenever it was woken late: then the processors (or the interpreter's
lock) were another's. What something took beyond that is its own. Times are those of `perf_counter`.
"""

from collections import deque
from heapq import heappush, heappushpop
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Final, Self

import numpy as np
import numpy.typing as npt

PERIOD_S: Final = 0.001
LATE_S: Final = 0.002
LATE_MAX: Final = 200_000
SPANS_MAX: Final = 1000


class Longest:
    """The SPANS_MAX longest spans of time of some kind. Used by several threads."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._lock = Lock()

    def add(self, start_s: float, end_s: float) -> None:
        """Something took that long."""
        span = (end_s - start_s, start_s)
        with self._lock:
            if len(self._spans) < SPANS_MAX:
                heappush(self._spans, span)
            else:
                heappushpop(self._spans, span)

    @property
    def wall_s(self) -> float:
        """The longest, whatever the reason."""
        return max((seconds for seconds, _ in self._spans), default=0.0)

    def own_s(self, hiccups: "Hiccups") -> float:
        """The longest when what the machine took is left out."""
        own_s = (seconds - hiccups.within_s(start_s, start_s + seconds) for seconds, start_s in self._spans)
        return max(own_s, default=0.0)


class Hiccups:
    """Measures between `__enter__` and `__exit__`."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._late: deque[tuple[float, float]] = deque(maxlen=LATE_MAX)
        self._columns: npt.NDArray[np.float64] | None = None
        self._over = Event()
        self._thread = Thread(target=self._run, name="hiccups", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def within_s(self, start_s: float, end_s: float) -> float:
        """How much of that time it was. Only after the end."""
        if self._columns is None:
            assert self._over.is_set()
            self._columns = np.array(self._late).reshape(-1, 2)
        late = self._columns
        overlaps = np.minimum(late[:, 1], end_s) - np.maximum(late[:, 0], start_s)
        return float(overlaps[overlaps > 0].sum())

    def _run(self) -> None:
        while not self._over.is_set():
            before_s = perf_counter()
            self._over.wait(PERIOD_S)
            after_s = perf_counter()
            late_s = after_s - before_s - PERIOD_S
            self.longest_s = max(self.longest_s, late_s)
            if late_s > LATE_S:
                self._late.append((before_s + PERIOD_S, after_s))
