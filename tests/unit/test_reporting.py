"""A failure that comes while the connector is looking must not pass for a success."""

from collections.abc import Sequence

import pytest

from tieredkv.vllm_client.compat import CanonicalKVCaches, GPULoadStoreSpec, TransferResult
from tieredkv.vllm_client.reporting import ReportingWorker
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec


class LateWorker:
    """Ends one job as failed, but only at the second time of asking."""

    def __init__(self) -> None:
        self._answers: list[list[TransferResult]] = [[], [TransferResult(7, success=False)]]

    def get_finished(self) -> Sequence[TransferResult]:
        return self._answers.pop(0) if self._answers else []


@pytest.fixture
def worker() -> ReportingWorker:
    """Without a sidecar to talk to: every job is refused."""
    return ReportingWorker(CanonicalKVCaches([], []), None, blocks_per_chunk=1, rank=0, world_size=1, rank_bytes=0)


def test_what_fails_after_the_connector_looked_waits_for_the_next_look(
    worker: ReportingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The moment between two calls of the connector cannot be hit from outside: the copies are replaced.
    monkeypatch.setattr(worker, "_worker", LateWorker())
    worker.collect()
    assert worker.failed_jobs == set()
    assert worker.get_finished() == [], "not told before it was looked at"
    worker.collect()
    assert worker.failed_jobs == {7}
    assert [(result.job_id, result.success) for result in worker.get_finished()] == [(7, True)]
    assert worker.take_failed_jobs() == {7}


def test_refused_jobs_fail(worker: ReportingWorker) -> None:
    assert worker.submit_load(3, SlotLoadStoreSpec.empty(), GPULoadStoreSpec([1], [1], [0]))
    worker.collect()
    assert worker.failed_jobs == {3}
    assert [result.job_id for result in worker.get_finished()] == [3]
