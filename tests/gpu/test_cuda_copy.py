"""The CUDA back end on a real device."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.unit.rank import EPOCH, JOB_SLOTS, LOADED, MOVED_BYTES, STORED, Rank, after_load
from tieredkv.bench.transfer import KIB, Shape, measure_shape
from tieredkv.vllm_client.compat import GPULoadStoreSpec
from tieredkv.vllm_client.cuda_pin import Pinning
from tieredkv.vllm_client.selftest import round_trip
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(params=["pinned", "pageable"])
def rank(request: pytest.FixtureRequest) -> Iterator[Rank]:
    rank = Rank(device="cuda")
    if request.param == "pinned":
        assert rank.attachment is not None
        rank.worker.prepare(rank.attachment)
    yield rank
    rank.worker.shutdown()


def test_what_was_stored_is_loaded_and_nothing_else_changes(rank: Rank) -> None:
    before = rank.contents()
    spec = rank.lease(JOB_SLOTS, 100)
    assert rank.worker.submit_store(1, STORED, spec)
    stored = rank.finish(1)
    assert stored.success
    assert stored.transfer_size == MOVED_BYTES
    rank.publish(spec)
    assert rank.worker.submit_load(2, spec, LOADED)
    assert rank.finish(2).success
    assert rank.holds(after_load(before))


def test_a_store_sees_what_the_compute_stream_wrote_before_it(rank: Rank) -> None:
    pages = rank.caches.tensors[0].tensor
    for number in range(1, 20):
        filler = torch.randn(2048, 2048, device="cuda")
        for _ in range(4):
            filler = filler @ filler  # keeps the compute stream busy past the submission
        pages[3] = number
        spec = rank.lease([2], number)
        rank.worker.submit_store(2 * number, GPULoadStoreSpec([3], [1, 0], [0, 0]), spec)
        rank.worker.wait({2 * number})
        rank.publish(spec)
        rank.worker.submit_load(2 * number + 1, spec, GPULoadStoreSpec([5], [1, 0], [0, 0]))
        rank.worker.wait({2 * number + 1})
        assert all(result.success for result in rank.worker.get_finished())
        assert bool((pages[5] == number).all())


def test_failures_change_no_page(rank: Rank) -> None:
    before = rank.contents()
    spec = rank.lease(JOB_SLOTS, 100)
    rank.worker.submit_load(1, spec, LOADED)  # not published
    assert not rank.finish(1).success
    rank.worker.submit_load(2, SlotLoadStoreSpec(EPOCH + 1, spec.slots, spec.generations), LOADED)
    assert not rank.finish(2).success
    assert rank.holds(before)


def test_the_self_test_passes_and_restores_everything(rank: Rank) -> None:
    before = rank.contents()
    assert rank.attachment is not None
    assert round_trip(rank.worker, rank.attachment, np.array([1, 5, 2])) == ""
    assert rank.holds(before)


def test_an_arena_can_be_pinned_in_pieces_again_and_again() -> None:
    rank = Rank(device="cuda")
    assert rank.attachment is not None
    pinning = Pinning(torch.device("cuda", 0), piece_bytes_max=8192)
    for _ in range(3):
        pinned = pinning.pin(rank.attachment)
        assert pinned is not None
        assert len(pinned.addresses) > 2
        pinning.unpin(pinned)
    rank.worker.shutdown()


@pytest.mark.parametrize("shape", [Shape(32 * KIB, 1), Shape(32 * KIB, 2), Shape(32 * KIB, 8)])
def test_bandwidth_beside_one_contiguous_pinned_copy(shape: Shape) -> None:
    for row in measure_shape("cuda", shape, rounds=7):
        print(f"{row.movement} {row.chunk_bytes // KIB} KiB: {row.gbytes_per_s:.1f} GB/s, ratio {row.ratio:.2f}")
        # An arena that is not pinned, or copies one by one, end far below half.
        assert row.ratio > 0.5
