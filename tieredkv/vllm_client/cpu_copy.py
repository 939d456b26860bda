"""Copies between KV pages in host memory and slots, on one background thread.

Ownership: the worker's thread submits, polls and waits; the copy thread alone runs tasks, in order.
`_inbox` and `_ended` (with `_running`, under `_turn`) are the only shared objects. The inbox is bounded
by the host: its jobs cover disjoint blocks.
"""

import ctypes
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from queue import SimpleQueue
from threading import Condition, Thread
from time import perf_counter

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.copyplan import Ints
from tieredkv.vllm_client.copytask import CopyResult, CopyTask, Movement

logger = logging.getLogger(__name__)

Kernel = Callable[[Ints, Ints, Ints], None]
"""Copies sizes[i] bytes from sources[i] to destinations[i]: kernel(destinations, sources, sizes)."""


def copy_by_memmove(destinations: Ints, sources: Ints, sizes: Ints) -> None:
    """The kernel without numba: right, and slow for small pieces (a microsecond of Python for each)."""
    for destination, source, size in zip(destinations.tolist(), sources.tolist(), sizes.tolist(), strict=True):
        ctypes.memmove(destination, source, size)


def best_kernel() -> Kernel:
    """The compiled kernel (up to 2 s for import and the first compilation), else the plain one."""
    try:
        from tieredkv.vllm_client.cpu_kernel import copy_pieces
    except Exception as error:  # noqa: BLE001 - numba fails in many ways, and each leaves us the plain kernel
        logger.warning("tieredkv: copying without numba, slower for small pages: %s", error)
        return copy_by_memmove
    kernel: Kernel = copy_pieces
    return kernel


class CpuCopier:
    """CopyBackend for KV tensors in host memory."""

    def __init__(self, kernel: Kernel | None = None) -> None:
        """Start the thread, which compiles the best kernel first unless it is given one."""
        self._inbox: SimpleQueue[CopyTask | None] = SimpleQueue()
        self._turn = Condition()
        self._running: set[int] = set()
        self._ended: list[CopyResult] = []
        self._closing = False
        self._thread = Thread(target=self._run, args=(kernel,), name="tieredkv-copy", daemon=True)
        self._thread.start()

    def prepare(self, attachment: Attachment) -> None:
        """Nothing to do: the sidecar has faulted the pages in."""

    def submit(self, task: CopyTask) -> None:
        """Queue a task. Its job id must not be in flight."""
        with self._turn:
            assert not self._closing
            assert task.job_id not in self._running
            self._running.add(task.job_id)
        self._inbox.put(task)

    def poll(self) -> list[CopyResult]:
        """Tasks that ended since the last call."""
        if not self._ended:
            return []
        with self._turn:
            ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: AbstractSet[int]) -> None:
        """Block until none of these tasks is queued or running."""
        with self._turn:
            self._turn.wait_for(lambda: self._running.isdisjoint(job_ids))

    def shutdown(self) -> None:
        """Finish the running task, fail the queued ones, end the thread."""
        with self._turn:
            self._closing = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self, kernel: Kernel | None) -> None:
        kernel = kernel or best_kernel()
        while (task := self._inbox.get()) is not None:
            start_s = perf_counter()
            # Submitted before the end, so never read again: a queued store would only delay the exit.
            ok = not self._closing and self._copy(task, kernel)
            result = CopyResult(task.job_id, ok, task.pieces.total_bytes if ok else 0, perf_counter() - start_s)
            with self._turn:
                self._running.remove(task.job_id)
                self._ended.append(result)
                self._turn.notify_all()
            del task  # lets go of an old arena while waiting for the next task

    def _copy(self, task: CopyTask, kernel: Kernel) -> bool:
        try:
            return copy_checked(task, kernel)
        except Exception:  # a thread that died would leave the engine waiting for ever
            logger.exception("tieredkv: %s job %d failed", task.movement.value, task.job_id)
            return False


def copy_checked(task: CopyTask, kernel: Kernel) -> bool:
    """Copy; whether the slots were what the task was told, from before the first byte to after the last."""
    if not task.holds():
        return False
    pieces = task.pieces
    if task.movement is Movement.STORE:
        kernel(pieces.bodies, pieces.pages, pieces.sizes)
    else:
        kernel(pieces.pages, pieces.bodies, pieces.sizes)
    return task.holds()
