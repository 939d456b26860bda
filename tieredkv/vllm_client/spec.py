"""Builds either side of the client from vLLM's normalized configuration."""

import logging
import os
from typing import Any

from tieredkv.clock import SystemClock
from tieredkv.config import Config, load_config
from tieredkv.protocol import PROTOCOL_MAX, PROTOCOL_MIN, Hello
from tieredkv.vllm_client.attaching import WorkerLink
from tieredkv.vllm_client.chunking import geometry_of, rank_bytes
from tieredkv.vllm_client.client import EngineClient, Handlers
from tieredkv.vllm_client.compat import (
    CanonicalKVCaches,
    OffloadingConfig,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
    VllmConfig,
)
from tieredkv.vllm_client.ledger import EngineLedger, metric_definitions
from tieredkv.vllm_client.manager import ManagerSettings, TieredKVManager
from tieredkv.vllm_client.namespace import describe_namespace, fingerprint, unshareable
from tieredkv.vllm_client.reporting import ReportingWorker
from tieredkv.vllm_client.reserve import LEASE_CHUNKS_MIN
from tieredkv.vllm_client.sidecar_choice import SidecarChoice, choose_sidecar

logger = logging.getLogger("tieredkv.client")

CONFIG_KEY = "tieredkv"
"""Key of kv_connector_extra_config under which our own settings may stand."""

LEASE_CHUNKS_MAX = 16384
LEASE_SHARE_MAX = 1 / 8
"""Of a pool, what is leased ahead unless the user says how much."""


def load_engine_config(extra_config: dict[str, Any]) -> Config:
    """The configuration of this engine; `extra_config["tieredkv"]` may hold settings of ours."""
    extra = extra_config.get(CONFIG_KEY, {})
    return load_config(None, environ=os.environ, extra=extra).config


class TieredKVSpec(OffloadingSpec):
    """vLLM's OffloadingSpec for the warm tier. The connector hands it `vllm_config` before use."""

    vllm_config: VllmConfig
    """Set by the connector class just before vLLM builds the spec (one connector per process and role)."""

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """All metrics that may appear on vLLM's /metrics."""
        return metric_definitions()

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        self.settings = load_engine_config(dict(config.extra_config))
        self.geometry = geometry_of(config)
        self.description = describe_namespace(self.vllm_config, config, self.geometry)
        self.refusal = unshareable(self.vllm_config) or loads_refused(self.vllm_config)
        self.ledger = EngineLedger()
        self.offload_prompt_only = not self.settings.engine.offload_decode or only_prefills(self.vllm_config)
        self._clock = SystemClock()
        self._choice: SidecarChoice | None = None

    @property
    def choice(self) -> SidecarChoice:
        """The sidecar of this engine; chosen (and perhaps started) at first use."""
        if self._choice is None:
            self._choice = choose_sidecar(self.settings, self.config.engine_id, self._clock)
        return self._choice

    def hello(self, role: str) -> Hello:
        """The greeting of this process."""
        return Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            role=role,
            engine_id=self.config.engine_id,
            rank=self.config.parallel.rank if role == "worker" else 0,
            world_size=self.config.parallel.world_size,
            namespace=fingerprint(self.description),
            description=self.description,
            body_bytes=self.geometry.body_bytes,
            chain_tokens=self.geometry.chain_tokens,
            group_strides=self.geometry.group_strides,
            wants_events=self.config.enable_kv_cache_events,
        )

    def get_manager(self) -> OffloadingManager:
        """The scheduler's side, attached if the sidecar answers in time."""
        settings = ManagerSettings(
            lookup_deadline_s=self.settings.engine.lookup_deadline_s,
            lease_chunks=self._lease_chunks(),
            lease_share_max=LEASE_SHARE_MAX if self.settings.engine.lease_chunks == "auto" else 1.0,
            tokens_per_hash=self.config.cache.tokens_per_hash,
            group_ids=tuple(group.group_id for group in self.config.groups),
            wants_events=self.config.enable_kv_cache_events,
            asks_at_arrival=self.settings.engine.prefetch == "arrival",
        )

        def connect(handlers: Handlers) -> EngineClient:
            return EngineClient(lambda: self.choice.socket_path, handlers, self._clock, self.choice.revive)

        manager = TieredKVManager(
            self.geometry, settings, lambda: self.hello("scheduler"), connect, self.ledger, self._clock
        )
        if self.refusal:
            logger.warning("tiering is off: %s", self.refusal)
            manager.disable()
        elif not manager.attach(self.settings.engine.attach_deadline_s):
            logger.warning("no warm tier yet (%s); vLLM serves on and keeps trying", manager.client.reason)
        logger.info(
            "chunks of %d tokens, %d bytes; up to %d slots leased ahead; sidecar at %s",
            self.geometry.chain_tokens * max(self.geometry.group_strides),
            self.geometry.body_bytes,
            settings.lease_chunks,
            self.choice.socket_path if not self.refusal else "none",
        )
        return manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """A rank's side: maps the arena and proves its layout with known bytes."""
        link = None
        if not self.refusal:
            link = WorkerLink(self.hello("worker"), lambda: self.choice.socket_path, self._clock, self.choice.revive)
        worker = ReportingWorker(
            kv_caches,
            link,
            blocks_per_chunk=self.blocks_per_chunk,
            rank=self.config.parallel.rank,
            world_size=self.config.parallel.world_size,
            rank_bytes=rank_bytes(self.config),
        )
        worker.start(self.settings.engine.attach_deadline_s)
        return worker

    def _lease_chunks(self) -> int:
        """Slots to hold ahead: what two full steps of prefill can fill, over all groups."""
        wanted = self.settings.engine.lease_chunks
        if wanted != "auto":
            return wanted
        batch_tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        chunks = 0
        for stride in self.geometry.group_strides:
            chunks += -(-2 * batch_tokens // (self.geometry.chain_tokens * stride)) + 1
        return min(max(chunks, LEASE_CHUNKS_MIN), LEASE_CHUNKS_MAX)


def only_prefills(vllm_config: VllmConfig) -> bool:
    """Whether another engine answers: what this one decodes is thrown away, so nobody needs its KV."""
    transfer = vllm_config.kv_transfer_config
    return transfer is not None and transfer.kv_role == "kv_producer"


def loads_refused(vllm_config: VllmConfig) -> str:
    """MLA where prefix caching was turned off: the platform cannot continue from a loaded prefix."""
    if vllm_config.model_config.use_mla and not vllm_config.cache_config.enable_prefix_caching:
        return "prefix caching is off for this MLA model on this platform"
    return ""
