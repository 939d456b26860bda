"""The worker on CPU tensors, through a memfd arena with real slot words."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.unit.rank import (
    BLOCKS,
    EPOCH,
    JOB_SLOTS,
    LOADED,
    MOVED_BYTES,
    PAGE,
    PER_CHUNK,
    RANK_BYTES,
    SLOTS,
    STORED,
    Rank,
    after_load,
)
from tieredkv.vllm_client.compat import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec
from tieredkv.vllm_client.copyplan import CopyLayout, GroupRef, ImpossibleLayout, Ints, TensorShape
from tieredkv.vllm_client.cpu_copy import CpuCopier, Kernel, best_kernel, copy_by_memmove
from tieredkv.vllm_client.selftest import round_trip
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec
from tieredkv.vllm_client.worker import layout_of


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    compiled = best_kernel()
    assert compiled is not copy_by_memmove
    return compiled


@pytest.fixture
def rank(kernel: Kernel) -> Iterator[Rank]:
    rank = Rank(CpuCopier(kernel))
    yield rank
    rank.worker.shutdown()


def test_what_was_stored_is_loaded_and_nothing_else_changes(rank: Rank) -> None:
    before = rank.contents()
    spec = rank.lease(JOB_SLOTS, 100)
    assert rank.worker.submit_store(1, STORED, spec)
    stored = rank.finish(1)
    assert stored.success
    assert stored.transfer_size == MOVED_BYTES
    assert stored.transfer_time is not None

    rank.publish(spec)
    assert rank.worker.submit_load(2, spec, LOADED)
    assert rank.finish(2).success
    assert rank.holds(after_load(before))


def test_a_load_sees_the_stores_before_it(rank: Rank) -> None:
    spec = rank.lease([2], 5)
    rank.worker.submit_store(1, GPULoadStoreSpec([3, 4], [2, 0], [0, 0]), spec)
    rank.worker.wait({1})
    rank.publish(spec)
    rank.worker.submit_load(2, spec, GPULoadStoreSpec([5, 6], [2, 0], [0, 0]))
    rank.worker.wait({2, 999})
    assert sorted(result.job_id for result in rank.worker.get_finished()) == [1, 2]
    assert torch.equal(rank.caches.tensors[0].tensor[3], rank.caches.tensors[0].tensor[5])


@pytest.mark.parametrize(
    "wrong", ["epoch", "detached", "unpublished", "generation", "slot", "blocks", "slots", "unequal"]
)
def test_a_wrong_load_fails_and_changes_no_page(rank: Rank, wrong: str) -> None:
    before = rank.contents()
    spec = rank.lease(JOB_SLOTS, 100)
    loaded = LOADED
    if wrong != "unpublished":
        rank.publish(spec)
    if wrong == "epoch":
        spec = SlotLoadStoreSpec(EPOCH + 1, spec.slots, spec.generations)
    elif wrong == "detached":
        rank.attachment = None
    elif wrong == "generation":
        spec = SlotLoadStoreSpec(EPOCH, spec.slots, spec.generations + np.uint64(1))
    elif wrong == "slot":
        spec = SlotLoadStoreSpec(EPOCH, np.array([6, 0, SLOTS], np.int32), spec.generations)
    elif wrong == "blocks":
        loaded = GPULoadStoreSpec([9, 1, BLOCKS, 2, 11], [3, 2], [1, 4])
    elif wrong == "unequal":
        spec = SlotLoadStoreSpec(EPOCH, spec.slots, spec.generations[:2])
    elif wrong == "slots":
        spec = SlotLoadStoreSpec(EPOCH, spec.slots[:2], spec.generations[:2])
    assert rank.worker.submit_load(4, spec, loaded)
    result = rank.finish(4)
    assert not result.success
    assert result.transfer_size is None
    assert rank.holds(before)


@pytest.mark.parametrize("wrong", ["published", "reused", "negative"])
def test_a_store_into_a_slot_that_is_not_ours_fails(rank: Rank, wrong: str) -> None:
    spec = rank.lease(JOB_SLOTS, 100)
    if wrong == "published":
        rank.publish(spec)
    elif wrong == "reused":
        rank.lease(JOB_SLOTS, 200)
    else:
        spec = SlotLoadStoreSpec(EPOCH, np.array([6, 0, -1], np.int32), spec.generations)
    assert rank.attachment is not None
    before = rank.attachment.arena.copy()
    assert rank.worker.submit_store(4, STORED, spec)
    assert not rank.finish(4).success
    assert np.array_equal(rank.attachment.arena, before)


def test_a_slot_that_changes_hands_during_the_copy_fails_the_load() -> None:
    def slow_thief(destinations: Ints, sources: Ints, sizes: Ints) -> None:
        copy_by_memmove(destinations, sources, sizes)
        rank.lease(JOB_SLOTS[:1], 900)

    rank = Rank(CpuCopier(slow_thief))
    spec = rank.lease(JOB_SLOTS, 100)
    rank.publish(spec)
    rank.worker.submit_load(1, spec, LOADED)
    assert not rank.finish(1).success
    rank.worker.shutdown()


def test_a_kernel_that_raises_fails_its_job_only(caplog: pytest.LogCaptureFixture) -> None:
    def broken_once(destinations: Ints, sources: Ints, sizes: Ints) -> None:
        if not caplog.records:
            raise MemoryError
        copy_by_memmove(destinations, sources, sizes)

    rank = Rank(CpuCopier(broken_once))
    spec = rank.lease(JOB_SLOTS, 100)
    rank.worker.submit_store(1, STORED, spec)
    assert not rank.finish(1).success
    rank.worker.submit_store(2, STORED, spec)
    assert rank.finish(2).success
    rank.worker.shutdown()


def test_submitting_does_not_wait_and_waiting_does() -> None:
    go = threading.Event()

    def blocked(destinations: Ints, sources: Ints, sizes: Ints) -> None:
        assert go.wait(30)
        copy_by_memmove(destinations, sources, sizes)

    rank = Rank(CpuCopier(blocked))
    spec = rank.lease(JOB_SLOTS, 100)
    rank.worker.submit_store(1, STORED, spec)
    assert rank.worker.get_finished() == []
    old, rank.attachment = rank.attachment, None  # the sidecar is gone; the job goes on
    assert old is not None
    go.set()
    assert rank.finish(1).success
    rank.worker.shutdown()


def test_shutdown_fails_what_is_queued_and_touches_nothing_afterwards() -> None:
    go, running = threading.Event(), threading.Event()

    def blocked(destinations: Ints, sources: Ints, sizes: Ints) -> None:
        running.set()
        assert go.wait(30)
        copy_by_memmove(destinations, sources, sizes)

    copier = CpuCopier(blocked)
    rank = Rank(copier)
    rank.worker.submit_store(1, STORED, rank.lease(JOB_SLOTS, 100))
    assert running.wait(30)
    rank.worker.submit_store(2, STORED, rank.lease([1, 2, 4], 200))
    closer = threading.Thread(target=rank.worker.shutdown)
    closer.start()
    until_s = time.monotonic() + 30
    while not copier._closing:  # a thread that was started may not have run yet
        assert time.monotonic() < until_s
    go.set()
    closer.join(30)
    assert [(result.job_id, result.success) for result in rank.worker.get_finished()] == [(1, True), (2, False)]
    rank.worker.shutdown()


ALIKE = [192] * 19 + [200] * 9 + [64] * 8 + [40] * 8 + [16_384 + 64 * 3 + 7] * 17


def test_kernels_copy_any_alignment(kernel: Kernel) -> None:
    random = np.random.default_rng(1)
    source = random.integers(0, 256, 400_000, np.uint8)
    for each in (kernel, copy_by_memmove):
        target, expected = np.zeros_like(source), np.zeros_like(source)
        sizes, at = [], 0
        starts: list[tuple[int, int]] = []
        base = -target.ctypes.data % 64
        for size in [0, 1, 31, 32, 33, 127, 128, 129, 255, 257, 1000, 4096, 5001, *ALIKE]:
            # Equal sizes at aligned places are copied several at once.
            gap = int(random.integers(0, 70))
            to = base + -(-(at + gap) // 64) * 64 if size in ALIKE else base + at + gap
            start = int(random.integers(0, 30_000))
            expected[to : to + size] = source[start : start + size]
            starts.append((to, start))
            sizes.append(size)
            at = to + size - base
        to, start = (np.array(column, np.int64) for column in zip(*starts, strict=True))
        each(to + target.ctypes.data, start + source.ctypes.data, np.array(sizes, np.int64))
        assert np.array_equal(target, expected)


def test_the_self_test_passes_and_restores_everything(rank: Rank) -> None:
    before = rank.contents()
    assert rank.attachment is not None
    for slots in ([4], [1, 5], [0, 2, 7, 3]):
        assert round_trip(rank.worker, rank.attachment, np.array(slots)) == ""
    assert rank.holds(before)
    assert rank.worker.get_finished() == []


@pytest.mark.parametrize("kind", ["base", "stride", "page", "order", "tensor", "blocks"])
def test_the_self_test_refuses_a_misread_layout(rank: Rank, kind: str) -> None:
    tensors = [
        TensorShape(canonical.tensor.data_ptr(), canonical.tensor.stride(0), BLOCKS)
        for canonical in rank.caches.tensors
    ]
    groups = [[GroupRef(ref.tensor_idx, ref.page_size_bytes) for ref in refs] for refs in rank.caches.group_data_refs]
    if kind == "base":
        tensors[1] = TensorShape(tensors[1].base_ptr + 8, tensors[1].block_stride_bytes, BLOCKS)
    elif kind == "stride":
        tensors[1] = TensorShape(tensors[1].base_ptr, PAGE, BLOCKS)
    elif kind == "page":
        groups[0][2] = GroupRef(2, PAGE)
    elif kind == "order":
        groups[1].reverse()
    elif kind == "tensor":
        groups[1][1] = GroupRef(1, PAGE)
    elif kind == "blocks":
        tensors[0] = TensorShape(tensors[0].base_ptr, tensors[0].block_stride_bytes, 1)
    rank.worker.layout = CopyLayout(
        tensors, groups, blocks_per_chunk=PER_CHUNK, rank=1, world_size=2, rank_bytes=RANK_BYTES
    )
    before = rank.contents()
    assert rank.attachment is not None
    reason = round_trip(rank.worker, rank.attachment, np.array([1, 5, 2]))
    assert reason.startswith("group ")
    assert "\n" not in reason
    assert rank.holds(before)


def test_an_unknown_layout_is_refused() -> None:
    columns = torch.zeros((64, BLOCKS), dtype=torch.int8).t()
    caches = CanonicalKVCaches([CanonicalKVCacheTensor(columns, 64)], [[CanonicalKVCacheRef(0, 64)]])
    with pytest.raises(ImpossibleLayout, match="not rows of bytes"):
        layout_of(caches, blocks_per_chunk=1, rank=0, world_size=1, rank_bytes=64)
