"""The seam to vLLM: all that moves between its versions is named here and nowhere else."""

from typing import Any

import vllm
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LoadStoreSpec,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingGaugeMetadata,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    TransferResult,
)
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

from tieredkv.errors import UnsupportedVLLM
from tieredkv.vllm_client.supported import VLLM_BELOW, VLLM_MIN, is_supported

__all__ = [
    "CanonicalKVCacheRef",
    "CanonicalKVCacheTensor",
    "CanonicalKVCaches",
    "GPULoadStoreSpec",
    "KVConnectorTransferResults",
    "LoadStoreSpec",
    "LookupResult",
    "Medium",
    "OffloadKey",
    "OffloadingConfig",
    "OffloadingConnector",
    "OffloadingConnectorStats",
    "OffloadingCounterMetadata",
    "OffloadingEvent",
    "OffloadingGaugeMetadata",
    "OffloadingManager",
    "OffloadingMetricMetadata",
    "OffloadingSpec",
    "OffloadingSpecFactory",
    "OffloadingWorker",
    "OffloadingWorkerMetadata",
    "PrepareStoreOutput",
    "ReqContext",
    "RequestOffloadingContext",
    "ScheduleEndContext",
    "TransferResult",
    "VllmConfig",
    "build_offloading_config",
    "group_suffix",
    "host_source",
    "job_keys",
    "kv_layout",
    "loading_request",
    "recompute_failed_loads",
    "refuse_other_versions",
    "stores_in_flight",
    "vllm_version",
]


def host_source() -> Any:
    """vLLM's name for chunks that come from this host's memory; a plain word before 0.32, which has no names."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ModuleNotFoundError:
        return "host"
    return CacheHitSource.HOST


def kv_layout(config: OffloadingConfig) -> str:
    """Name of the KV cache's memory layout; before 0.32 vLLM has a single one for us."""
    return str(getattr(config, "kv_cache_layout", None))


def vllm_version() -> str:
    """The running vLLM's version, without its local part."""
    return str(vllm.__version__).partition("+")[0]


def refuse_other_versions(version: str) -> None:
    """Raise UnsupportedVLLM unless the seam was tested with `version`."""
    if not is_supported(version):
        raise UnsupportedVLLM(
            f"vLLM {version}: tieredkv is tested with >={VLLM_MIN},<{VLLM_BELOW}; install one of these"
        )


def recompute_failed_loads(vllm_config: VllmConfig) -> str:
    """Make a failed load a recomputation, whatever the user set; return the former policy.

    Must run in the connector's constructor: the scheduler reads the value right after it.
    """
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    former: str = transfer.kv_load_failure_policy
    transfer.kv_load_failure_policy = "recompute"
    return former


def group_suffix(group_id: int) -> bytes:
    """What follows the block hash in an OffloadKey of that KV group."""
    return group_id.to_bytes(4, "big", signed=False)


def job_keys(scheduler: Any, job_id: int) -> set[OffloadKey] | None:
    """Keys of a store job in flight; None when vLLM does not know the job (or it is a load)."""
    status = scheduler._jobs.get(job_id)
    if status is None or not status.is_store:
        return None
    keys: set[OffloadKey] = status.keys
    return keys


def stores_in_flight(scheduler: Any) -> dict[int, tuple[int, set[OffloadKey]]]:
    """All store jobs: job id -> (ranks that did not answer yet, keys)."""
    return {
        job_id: (status.pending_count, status.keys) for job_id, status in scheduler._jobs.items() if status.is_store
    }


def loading_request(worker: Any, job_id: int) -> str | None:
    """The request of a load job in flight on this rank."""
    request: str | None = worker._load_jobs.get(job_id)
    return request
