"""Many replays of one trace, in as many processes as are wanted."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tieredkv.config import PolicyConfig
from tieredkv.errors import TieredKVError
from tieredkv.sim.replay import ONE_ENGINE, Fleet, Outcome, replay
from tieredkv.sim.traces import Trace
from tieredkv.trace import Hints

OnRefs = Callable[[int, int], None]
Setting = tuple[PolicyConfig, int]
"""A policy and a capacity in chunks."""

POLL_INTERVAL_S: Final = 0.2
REFS_PER_PROCESS: Final = 250_000
"""Less work than this is not worth the start of a process."""


class ReplayDied(TieredKVError):
    """A process that replayed is gone."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Replays:
    """What all replays have in common."""

    trace: Trace
    fleet: Fleet = ONE_ENGINE
    seed: int = 1
    hints: Sequence[Hints] | None = None

    @contextmanager
    def started(
        self, settings: Sequence[Setting], jobs: int, on_refs: OnRefs | None = None
    ) -> Generator[Callable[[], Iterator[Outcome]]]:
        """Replay each of `settings`; the function that the block gets returns their outcomes in order.

        With more than one process they run while the block does other things. Raises ConfigError,
        ReplayDied.
        """
        work = len(settings) * self.trace.block_refs
        processes = min(jobs, len(settings), 1 + work // REFS_PER_PROCESS)
        if processes <= 1:
            yield lambda: self._here(settings, on_refs)
            return
        context = multiprocessing.get_context("spawn")
        done = context.Array("q", len(settings), lock=False)
        with ProcessPoolExecutor(processes, context, _prepare, (self, done)) as executor:
            futures = [executor.submit(_replay, number, *setting) for number, setting in enumerate(settings)]
            try:
                yield lambda: self._collected(futures, done, on_refs)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def run(self, policy: PolicyConfig, capacity_chunks: int, on_progress: Callable[[int], None]) -> Outcome:
        """One of them, here and now. `on_progress` is told the number of requests that are done."""
        return replay(
            self.trace,
            policy,
            capacity_chunks,
            fleet=self.fleet,
            seed=self.seed,
            hints=self.hints,
            on_progress=on_progress,
        )

    def _here(self, settings: Sequence[Setting], on_refs: OnRefs | None) -> Iterator[Outcome]:
        total = len(settings) * len(self.trace.requests)
        for number, (policy, capacity_chunks) in enumerate(settings):
            before = number * len(self.trace.requests)

            def on_progress(requests: int, before: int = before) -> None:
                if on_refs is not None:
                    on_refs(*self._refs(before + requests, total))

            yield self.run(policy, capacity_chunks, on_progress)
            on_progress(len(self.trace.requests))

    def _collected(self, futures: "Sequence[Future[Outcome]]", done: Any, on_refs: OnRefs | None) -> Iterator[Outcome]:
        waiting = set(futures)
        total = len(futures) * len(self.trace.requests)
        while waiting:
            _, waiting = wait(waiting, timeout=POLL_INTERVAL_S)
            if on_refs is not None:
                on_refs(*self._refs(sum(done), total))
        try:
            return iter([future.result() for future in futures])
        except BrokenProcessPool:
            raise ReplayDied(
                "a process that replayed was killed; is there enough memory? use fewer with --jobs"
            ) from None

    def _refs(self, requests: int, total: int) -> tuple[int, int]:
        """Requests done and in all, in block refs, which people can compare with us per block ref."""
        refs = self.trace.block_refs / max(1, len(self.trace.requests))
        return int(requests * refs), int(total * refs)


_of_process: list[tuple[Replays, Any]] = []


def _prepare(replays: Replays, done: Any) -> None:
    """In a new process: what its replays have in common, and where they say how far they are."""
    # An interrupt at the terminal reaches all processes; only the first has something to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _of_process.append((replays, done))


def _replay(number: int, policy: PolicyConfig, capacity_chunks: int) -> Outcome:
    replays, done = _of_process[0]

    def on_progress(requests: int) -> None:
        done[number] = requests

    outcome = replays.run(policy, capacity_chunks, on_progress)
    done[number] = len(replays.trace.requests)
    return outcome
