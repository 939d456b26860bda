"""The mover's threads: each has its queue of jobs, and answers each of them once.

Ownership: the thread that reads messages calls the public methods; what both touch is behind the
condition. Whatever goes wrong in a lane ends the process: the sidecar then answers for its jobs.
"""

import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tieredkv.sidecar.mover.messages import Checksums, Copy, Done, Fetch, Loss
from tieredkv.sidecar.mover.places import Places
from tieredkv.sidecar.mover.sealing import Sealing
from tieredkv.tiers.slots import Generations

Answer = Callable[[Done | Checksums], None]


@dataclass(slots=True, eq=False)
class LocalTask:
    """A copy on its way."""

    places: Places
    job: Copy
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class PeerTask:
    """A fetch on its way: `blob_ids` are those of the peer's places; it is over at `until_s` (monotonic)."""

    places: Places
    job: Fetch
    blob_ids: Generations
    until_s: float
    cancelled: bool = False


Task = LocalTask | PeerTask


class Lane:
    """A thread that carries out tasks in their order, the urgent ones first, and seals when it has none."""

    def __init__(
        self,
        name: str,
        work: Callable[[Task], dict[int, Loss]],
        answer: Answer,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """`work` gives the rows that failed; `close` is called by the thread at its end."""
        self._work = work
        self._answer = answer
        self._close = close
        self._condition = threading.Condition()
        self._urgent: deque[Task] = deque()
        self._others: deque[Task] = deque()
        self._sealings: deque[Sealing] = deque()
        self._current: Task | None = None
        self._ended = False
        threading.Thread(target=self._guarded, name=name, daemon=True).start()

    def put(self, task: Task, *, urgent: bool) -> None:
        """Queue a task."""
        with self._condition:
            (self._urgent if urgent else self._others).append(task)
            self._condition.notify()

    def seal(self, sealing: Sealing) -> None:
        """Queue a sealing."""
        with self._condition:
            self._sealings.append(sealing)
            self._condition.notify()

    def cancel(self, pool: int, number: int | None = None) -> None:
        """Answer that job, or all of the pool, unless it was begun: then it is asked to stop."""
        self._drop(lambda task: task.job.pool == pool and number in {None, task.job.number}, Loss.CANCELLED)

    def end(self) -> None:
        """End the thread; what it does now is asked to stop."""
        self._drop(lambda _: True, Loss.UNREACHABLE)
        with self._condition:
            self._ended = True
            self._condition.notify()

    def _drop(self, unwanted: Callable[[Task], bool], why: Loss) -> None:
        with self._condition:
            dropped = [task for queue in (self._urgent, self._others) for task in queue if unwanted(task)]
            for task in dropped:
                (self._urgent if task in self._urgent else self._others).remove(task)
            if self._current is not None and unwanted(self._current):
                self._current.cancelled = True
        for task in dropped:
            job = task.job
            self._answer(Done(job.pool, job.number, dict.fromkeys(range(len(job)), why), 0.0))

    # --- the thread ---------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            while (work := self._next()) is not None:
                if isinstance(work, Sealing):
                    self._seal_some(work)
                else:
                    self._carry_out(work)
            self._close()
        except BaseException:  # noqa: BLE001 - nobody knows what was written: end at once, and be restarted
            traceback.print_exc()
            os._exit(1)

    def _next(self) -> Task | Sealing | None:
        """Wait for what is to be done next; None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._urgent or self._others or self._sealings or self._ended)
            if self._ended:
                return None
            if self._urgent or self._others:
                self._current = (self._urgent or self._others).popleft()
                return self._current
            return self._sealings[0]

    def _carry_out(self, task: Task) -> None:
        start_s = monotonic()
        failed = self._work(task)
        seconds = monotonic() - start_s
        with self._condition:
            self._current = None
        self._answer(Done(task.job.pool, task.job.number, failed, seconds))

    def _seal_some(self, sealing: Sealing) -> None:
        """One slot, so that a task never waits for more than that."""
        if sealing.over:
            self._sealings.popleft()
            self._answer(sealing.answer())
        else:
            sealing.seal_one()
