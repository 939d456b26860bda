"""The worker as vLLM drives it: attached to the sidecar, self-tested, and failing softly.

vLLM asserts that every transfer succeeds. Failures are kept aside here, and the connector tells them to
the scheduler: a failed store is not published, a failed load is recomputed.
"""

import logging
from dataclasses import replace

from tieredkv.vllm_client.attaching import PROBE_SLOTS, WorkerLink
from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.compat import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from tieredkv.vllm_client.copyplan import ImpossibleLayout
from tieredkv.vllm_client.selftest import round_trip
from tieredkv.vllm_client.worker import TieredKVWorker

logger = logging.getLogger("tieredkv.worker")


class ReportingWorker(OffloadingWorker):
    """Wraps a TieredKVWorker; without one (layout refused, sharing refused) every job fails."""

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        link: WorkerLink | None,
        *,
        blocks_per_chunk: int,
        rank: int,
        world_size: int,
        rank_bytes: int,
    ) -> None:
        self.failed_jobs: set[int] = set()
        self._ended: list[TransferResult] = []
        self._link = link
        self._verdict = ""
        self._tested = link is None
        self._worker: TieredKVWorker | None = None
        if link is None:
            return
        try:
            self._worker = TieredKVWorker(
                kv_caches,
                blocks_per_chunk=blocks_per_chunk,
                rank=rank,
                world_size=world_size,
                rank_bytes=rank_bytes,
                current_attachment=lambda: link.current,
            )
        except ImpossibleLayout as error:
            self._verdict = str(error)

    @property
    def attachment(self) -> Attachment | None:
        """The mapping that new jobs use."""
        return None if self._link is None else self._link.current

    def start(self, attach_deadline_s: float) -> None:
        """Attach, prove the layout with known bytes, and keep attached. Waits at most the deadline."""
        if self._link is None:
            return
        self._link.set_on_attach(self._prepare)
        attached = self._link.attach(attach_deadline_s)
        worker = self._worker
        if worker is None:
            self._settle(self._verdict)
        elif attached:
            verdict = self._link.probe(PROBE_SLOTS, lambda at, slots: round_trip(worker, at, slots))
            if verdict is not None:
                self._settle(verdict)
        self._link.watch()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Start copying blocks into leased slots."""
        if self._worker is None:
            return self._refuse(job_id)
        return self._worker.submit_store(job_id, src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Start copying published slots into blocks."""
        if self._worker is None:
            return self._refuse(job_id)
        return self._worker.submit_load(job_id, src_spec, dst_spec)

    def collect(self) -> None:
        """Take over what ended; failed jobs go to `failed_jobs`."""
        if self._worker is None:
            return
        if not self._tested:
            self._test_late(self._worker)
        for result in self._worker.get_finished():
            if not result.success:
                self.failed_jobs.add(result.job_id)
            self._ended.append(replace(result, success=True))

    def get_finished(self) -> list[TransferResult]:
        """Jobs that `collect` took over, all told as successes: see the module.

        It must not collect by itself: the connector has looked for failures among what was collected,
        and a load that failed since would pass for a good one.
        """
        ended, self._ended = self._ended, []
        return ended

    def take_failed_jobs(self) -> set[int]:
        """Failed jobs since the last call."""
        failed, self.failed_jobs = self.failed_jobs, set()
        return failed

    def wait(self, job_ids: set[int]) -> None:
        """Block until these jobs no longer touch a block (vLLM's fence before it reuses blocks)."""
        if self._worker is not None:
            self._worker.wait(job_ids)

    def shutdown(self) -> None:
        """End all copies, then let go of the arena."""
        if self._worker is not None:
            self._worker.shutdown()
        if self._link is not None:
            self._link.close()

    def _settle(self, verdict: str) -> None:
        """The self-test is over, for good: its outcome cannot change while the process lives."""
        assert self._link is not None
        self._tested = True
        if verdict:
            logger.warning("tiering refused: %s", verdict)
        self._link.report(verdict)
        unused = self._link.take_offer()
        if unused is not None:
            self._link.return_offer(unused)

    def _test_late(self, worker: TieredKVWorker) -> None:
        """The sidecar came after the start: test now, between two steps, before there can be any job."""
        assert self._link is not None
        offer = self._link.take_offer()
        if offer is not None:
            verdict = round_trip(worker, offer.attachment, offer.slots)
            self._link.return_offer(offer)
            self._settle(verdict)

    def _prepare(self, attachment: Attachment) -> None:
        if self._worker is not None:
            self._worker.prepare(attachment)

    def _refuse(self, job_id: int) -> bool:
        self.failed_jobs.add(job_id)
        self._ended.append(TransferResult(job_id, success=True))
        return True
