"""vLLM's own offloading managers, built as vLLM builds them, to be measured beside ours.

`CPUOffloadingManager` is a plain host buffer; `TieringOffloadingManager` adds a secondary tier (vLLM's
example one, in memory), which is what ours must be compared with.
"""

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from vllm.v1.kv_offload.base import OffloadingManager, OffloadingSpec
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.example.manager import ExampleSecondaryTierManager
from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager, TieringOffloadingManager


@contextmanager
def cpu_peer(chunks: int) -> Generator[OffloadingManager]:
    """vLLM's host-memory manager with room for `chunks`."""
    yield CPUOffloadingManager(num_chunks=chunks)


@contextmanager
def tiering_peer(chunks: int) -> Generator[OffloadingManager]:
    """vLLM's tiering manager over one secondary tier, with room for `chunks` in the primary one."""
    page = SharedOffloadRegion.BLOCK_SIZE_ALIGNMENT
    region = SharedOffloadRegion(
        engine_id=f"bench-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        num_chunks=chunks,
        rank=0,
        kv_bytes_per_chunk=page,
        cpu_page_size=page,
        barrier=lambda: None,
    )
    primary = CPUPrimaryTierOffloadingManager(num_chunks=chunks, mmap_region=region)
    secondary = ExampleSecondaryTierManager(
        cast(OffloadingSpec, None), primary.get_kv_memoryview(), tier_type="example"
    )
    manager = TieringOffloadingManager(primary, [secondary])
    try:
        yield manager
    finally:
        manager.shutdown()
