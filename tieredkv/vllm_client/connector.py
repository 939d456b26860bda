"""The connector that vLLM loads: its own OffloadingConnector, with our spec, and failures that are misses."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, PromMetric, PromMetricT
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from tieredkv.vllm_client import compat
from tieredkv.vllm_client.chunking import choose_blocks_per_chunk
from tieredkv.vllm_client.compat import (
    KVConnectorTransferResults,
    OffloadingConnector,
    OffloadingWorkerMetadata,
    VllmConfig,
    build_offloading_config,
)
from tieredkv.vllm_client.ledger import forget_metrics
from tieredkv.vllm_client.manager import TieredKVManager
from tieredkv.vllm_client.reporting import ReportingWorker
from tieredkv.vllm_client.spec import TieredKVSpec, load_engine_config
from tieredkv.vllm_client.stores import StoreBatch

logger = logging.getLogger("tieredkv.client")

SPEC_NAME = "TieredKVSpec"


@dataclass
class TieredWorkerMetadata(OffloadingWorkerMetadata):
    """Completed jobs of a step, and which of them failed on some rank."""

    failed_jobs: set[int] = field(default_factory=set[int])

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "TieredWorkerMetadata":
        """Sum over ranks."""
        assert isinstance(other, TieredWorkerMetadata)
        merged = super().aggregate(other)
        assert isinstance(merged, OffloadingWorkerMetadata)
        return TieredWorkerMetadata(merged.completed_jobs, merged.transfer_stats, self.failed_jobs | other.failed_jobs)


class TieredKVConnector(OffloadingConnector):
    """vLLM's OffloadingConnector over the warm tier of this node's sidecar."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        compat.refuse_other_versions(compat.vllm_version())
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        _apply_defaults(transfer.kv_connector_extra_config)
        _set_chunk_size(vllm_config, kv_cache_config)
        TieredKVSpec.vllm_config = vllm_config
        self._dropped_stores: dict[int, tuple[int, list[StoreBatch]]] = {}
        super().__init__(vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            former = compat.recompute_failed_loads(vllm_config)
            if former != "recompute":
                logger.info("kv_load_failure_policy set to recompute (was %s): a failed load is a miss", former)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics:
        """Runs in the front end, where no connector was built: the defaults are needed there too."""
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        _apply_defaults(transfer.kv_connector_extra_config)
        forget_metrics()
        return super().build_prom_metrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- scheduler ---------------------------------------------------------------------------------

    @property
    def _manager(self) -> TieredKVManager:
        manager = self.scheduler.manager
        assert isinstance(manager, TieredKVManager)
        return manager

    def on_new_request(self, request: Request) -> None:
        """Ask for the whole prefix at once, while the request is still queued."""
        super().on_new_request(request)
        self._manager.enqueue(request)
        self._manager.poll()

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """vLLM's own matching, over answers that are in memory."""
        manager = self._manager
        manager.poll()
        manager.refresh(request)
        matched, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if matched is not None:
            manager.note_prefix(request, num_computed_tokens, matched)
        return matched, is_async

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """The request was admitted: without a load, the split of its prompt is final."""
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if num_external_tokens == 0:
            self._manager.commit_prefix(request.request_id)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """A step begins."""
        self._manager.prefill.begin(scheduler_output.num_scheduled_tokens.values())
        metadata: KVConnectorMetadata = super().build_connector_meta(scheduler_output)
        return metadata

    def take_events(self) -> Iterable[KVCacheEvent]:
        """vLLM asks once for each step that ended."""
        self._manager.prefill.end()
        events: Iterable[KVCacheEvent] = super().take_events()
        return events

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Failures first, so that no failed store is published and no failed load is offered again."""
        manager = self._manager
        for request_id in connector_output.failed_recving or ():
            manager.deny(request_id)
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, TieredWorkerMetadata):
            for job_id in meta.failed_jobs:
                keys = compat.job_keys(self.scheduler, job_id)
                if keys is not None:
                    manager.fail_store(keys)
            self._settle_dropped_stores(meta.completed_jobs)
            for movement, stats in (("load", meta.transfer_stats.load), ("store", meta.transfer_stats.store)):
                manager.count_moved(movement, stats.bytes, stats.time)
        super().update_connector_output(connector_output)
        for request_id in connector_output.finished_recving or ():
            manager.commit_prefix(request_id)

    def _settle_dropped_stores(self, completed: dict[int, int]) -> None:
        """Slots of stores that a reset dropped are free once every rank stopped writing them."""
        for job_id in completed.keys() & self._dropped_stores.keys():
            pending, batches = self._dropped_stores.pop(job_id)
            if pending > completed[job_id]:
                self._dropped_stores[job_id] = (pending - completed[job_id], batches)
            else:
                self._manager.settle_stores(batches)

    def reset_cache(self) -> bool | None:
        """Weights changed: nothing that was stored may be served again."""
        for job_id, (pending, keys) in compat.stores_in_flight(self.scheduler).items():
            self._dropped_stores[job_id] = (pending, self._manager.drop_stores(keys))
        done: bool | None = super().reset_cache()
        return done

    # --- worker ------------------------------------------------------------------------------------

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Completions of this rank; a failed load also names its request, which then recomputes."""
        assert self.connector_worker is not None
        worker = self.connector_worker.worker
        assert isinstance(worker, ReportingWorker)
        worker.collect()
        failed = {
            request
            for job_id in worker.failed_jobs
            if (request := compat.loading_request(self.connector_worker, job_id)) is not None
        }
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving |= failed
        return results

    def build_connector_worker_meta(self) -> OffloadingWorkerMetadata | None:
        """Completed jobs since the last call, with those that failed."""
        meta = super().build_connector_worker_meta()
        if meta is None or self.connector_worker is None:
            return meta
        worker = self.connector_worker.worker
        assert isinstance(worker, ReportingWorker)
        return TieredWorkerMetadata(meta.completed_jobs, meta.transfer_stats, worker.take_failed_jobs())


def _apply_defaults(extra_config: dict[str, Any]) -> None:
    extra_config.setdefault("spec_name", SPEC_NAME)
    extra_config.setdefault("spec_module_path", "tieredkv.vllm_client.spec")
    extra_config.setdefault("self_describing_kv_events", True)


def _set_chunk_size(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Resolve `chunk_tokens: auto`, before vLLM fixes the chunk size; the same on every rank."""
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    extra_config = transfer.kv_connector_extra_config
    if "blocks_per_chunk" in extra_config or "block_size" in extra_config:
        return
    one_block = build_offloading_config(vllm_config, kv_cache_config)
    block_bytes = one_block.worker_kv_bytes_per_block * one_block.parallel.world_size
    settings = load_engine_config(extra_config)
    extra_config["blocks_per_chunk"] = choose_blocks_per_chunk(
        settings.engine.chunk_tokens, tuple(group.tokens_per_block for group in one_block.groups), block_bytes
    )
