"""The worker side: vLLM's store and load jobs become copies between its KV pages and our slots.

All methods are called on the worker's main thread, and only `wait` and `copy_probe` may block. A job is
never refused (vLLM asserts that): one that cannot be done ends as failed, at the next `get_finished`.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.compat import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from tieredkv.vllm_client.copyplan import (
    CopyLayout,
    GroupRef,
    ImpossibleJob,
    ImpossibleLayout,
    Ints,
    Pieces,
    TensorShape,
)
from tieredkv.vllm_client.copytask import CopyBackend, CopyResult, CopyTask, Movement, Tenancies
from tieredkv.vllm_client.cpu_copy import CpuCopier
from tieredkv.vllm_client.cuda_copy import CudaCopier
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec

logger = logging.getLogger(__name__)

_PROBE_JOB = -1  # vLLM counts its jobs from 0


def layout_of(
    kv_caches: CanonicalKVCaches, *, blocks_per_chunk: int, rank: int, world_size: int, rank_bytes: int
) -> CopyLayout:
    """The copy layout of vLLM's canonical KV caches. Raises ImpossibleLayout."""
    tensors: list[TensorShape] = []
    for index, canonical in enumerate(kv_caches.tensors):
        tensor = canonical.tensor
        if tensor.ndim != 2 or tensor.element_size() != 1 or tensor.stride(1) != 1:
            raise ImpossibleLayout(
                f"layout: KV tensor {index} is not rows of bytes: "
                f"{tensor.dtype}, shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            )
        tensors.append(TensorShape(tensor.data_ptr(), tensor.stride(0), tensor.shape[0]))
    groups = [[GroupRef(ref.tensor_idx, ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs]
    return CopyLayout(
        tensors,
        groups,
        blocks_per_chunk=blocks_per_chunk,
        rank=rank,
        world_size=world_size,
        rank_bytes=rank_bytes,
    )


def backend_for(kv_caches: CanonicalKVCaches) -> CopyBackend:
    """The back end of the device that holds the KV caches. Raises ImpossibleLayout."""
    devices = {canonical.tensor.device for canonical in kv_caches.tensors}
    if len(devices) != 1:
        raise ImpossibleLayout(f"layout: KV tensors on {len(devices)} devices, must be on one")
    device: torch.device = devices.pop()
    if device.type == "cpu":
        return CpuCopier()
    if device.type == "cuda":
        return CudaCopier(device)
    raise ImpossibleLayout(f"layout: KV tensors on device {device}, only cpu and cuda can be copied")


class TieredKVWorker(OffloadingWorker):
    """Copies between the KV caches of one rank and the slots of whatever it is attached to.

    `rank_bytes` is the size of a rank's region in a slot body, `current_attachment` tells the mapping
    to use for new jobs (None while there is none). `backend` replaces the one of the caches' device.
    Raises ImpossibleLayout.
    """

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        *,
        blocks_per_chunk: int,
        rank: int,
        world_size: int,
        rank_bytes: int,
        current_attachment: Callable[[], Attachment | None],
        backend: CopyBackend | None = None,
    ) -> None:
        self.kv_caches = kv_caches
        self.layout = layout_of(
            kv_caches,
            blocks_per_chunk=blocks_per_chunk,
            rank=rank,
            world_size=world_size,
            rank_bytes=rank_bytes,
        )
        self._current_attachment = current_attachment
        self._backend = backend or backend_for(kv_caches)
        self._ended: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Start copying blocks into leased slots. Always True."""
        assert isinstance(dst_spec, SlotLoadStoreSpec)
        self._submit(job_id, Movement.STORE, src_spec, dst_spec)
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Start copying published slots into blocks. Always True."""
        assert isinstance(src_spec, SlotLoadStoreSpec)
        self._submit(job_id, Movement.LOAD, dst_spec, src_spec)
        return True

    def get_finished(self) -> list[TransferResult]:
        """Jobs that ended since the last call, failed ones too."""
        self._collect()
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: set[int]) -> None:
        """Block until these jobs no longer read or write a block."""
        self._backend.wait(job_ids)

    def shutdown(self) -> None:
        """End: no block and no slot is touched after this returns. May be repeated."""
        self._backend.shutdown()

    def prepare(self, attachment: Attachment) -> None:
        """Make copies with a new attachment fast (CUDA: pin it, which may take seconds)."""
        self._backend.prepare(attachment)

    def copy_probe(
        self,
        movement: Movement,
        attachment: Attachment,
        blocks: GPULoadStoreSpec,
        slots: Ints,
    ) -> bool:
        """Copy now, without the proof of tenancy, which slots that are never published cannot give."""
        pieces = self._plan(attachment, blocks, slots)
        self._backend.submit(CopyTask(_PROBE_JOB, movement, pieces, attachment, None))
        self._backend.wait({_PROBE_JOB})
        probes = self._collect()
        assert len(probes) == 1
        return probes[0].ok

    def _submit(self, job_id: int, movement: Movement, blocks: GPULoadStoreSpec, spec: SlotLoadStoreSpec) -> None:
        attachment = self._current_attachment()
        if attachment is None or attachment.epoch != spec.epoch:
            logger.debug("tieredkv: %s job %d is of another epoch", movement.value, job_id)
            self._fail(job_id)
            return
        slots = spec.slots.astype(np.int64, copy=False)
        try:
            tenancies = Tenancies.of(slots, spec.generations)
            pieces = self._plan(attachment, blocks, slots)
        except ImpossibleJob as error:
            logger.warning("tieredkv: %s job %d fails: %s", movement.value, job_id, error)
            self._fail(job_id)
            return
        self._backend.submit(CopyTask(job_id, movement, pieces, attachment, tenancies))

    def _plan(self, attachment: Attachment, blocks: GPULoadStoreSpec, slots: Ints) -> Pieces:
        try:
            bodies = attachment.bodies(slots)
        except IndexError as error:
            raise ImpossibleJob(f"job: no such slot: {error}") from None
        block_ids: npt.NDArray[np.int32] = blocks.block_ids
        group_sizes: Sequence[int] = blocks.group_sizes
        return self.layout.plan(block_ids, group_sizes, blocks.block_indices, bodies)

    def _fail(self, job_id: int) -> None:
        self._ended.append(TransferResult(job_id, success=False))

    def _collect(self) -> list[CopyResult]:
        """Take over what the back end ended; the probes among it are returned instead."""
        probes: list[CopyResult] = []
        for result in self._backend.poll():
            if result.job_id == _PROBE_JOB:
                probes.append(result)
            elif result.ok:
                self._ended.append(
                    TransferResult(
                        result.job_id,
                        success=True,
                        transfer_size=result.moved_bytes,
                        transfer_time=result.seconds,
                    )
                )
            else:
                self._fail(result.job_id)
        return probes
