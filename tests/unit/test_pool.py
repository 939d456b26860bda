"""Headers in bulk: what is published is found by a scan, what is torn, foreign or unfinished is not."""

import os

import numpy as np
import pytest

from tieredkv.errors import VineyardError
from tieredkv.tiers.arena import PAGE_BYTES, populated
from tieredkv.tiers.pool import GENERATION_MAX, Pool, PoolRecord
from tieredkv.tiers.slots import HEADER_DTYPE, slot_bytes
from tieredkv.types import Geometry

GEOMETRY = Geometry(body_bytes=100, chain_tokens=16, group_strides=(1, 2))
SLOTS = 8
EVERY = np.arange(SLOTS)
STRIDE = slot_bytes(GEOMETRY.body_bytes) + 64


def make_pool(arena: np.ndarray | None = None, namespace: bytes = b"n" * 16) -> tuple[Pool, np.ndarray]:
    if arena is None:
        arena = np.zeros(SLOTS * STRIDE + 64, np.uint8)
    offsets = np.arange(SLOTS, dtype=np.int64) * STRIDE + 64
    return Pool(PoolRecord(namespace, {}, GEOMETRY, tuple(range(SLOTS)), offsets), arena), arena


def publish(pool: Pool, slots: list[int], first: int, group: int = 0, keys: list[bytes] | None = None) -> None:
    index, generations = np.array(slots), np.arange(first, first + len(slots), dtype=np.uint64)
    keys = keys if keys is not None else [b"%032d" % (first + row) for row in range(len(slots))]
    pool.start_tenancy(index, generations)
    pool.publish(index, generations, group=group, keys=keys, parents=[b"", *keys[:-1]], positions=np.arange(len(slots)))


def test_published_chunks_are_found_as_they_were_written() -> None:
    pool, arena = make_pool()
    publish(pool, [3, 1, 6], 5, group=1)
    again, _ = make_pool(arena)
    scan = again.scan(EVERY, resets=0)
    assert [(chunk.slot, chunk.generation, chunk.group, chunk.position) for chunk in scan.ready] == [
        (3, 5, 1, 0),
        (1, 6, 1, 1),
        (6, 7, 1, 2),
    ]
    assert [chunk.key for chunk in scan.ready] == [b"%032d" % number for number in (5, 6, 7)]
    assert [chunk.parent for chunk in scan.ready] == [b"", b"%032d" % 5, b"%032d" % 6]
    assert scan.next_generation == 8
    assert not len(scan.unsettled)


@pytest.mark.parametrize("size", [16, 32, 63, 64])
def test_keys_of_every_size_with_zeros_at_the_end_come_back_whole(size: int) -> None:
    pool, _ = make_pool()
    key = b"k" + b"\0" * (size - 1)
    publish(pool, [0], 1, keys=[key])
    assert pool.scan(EVERY, resets=0).ready[0].key == key


def test_a_leased_slot_is_unsettled_and_its_old_chunk_gone() -> None:
    pool, _ = make_pool()
    publish(pool, [0, 1], 1)
    pool.start_tenancy(np.array([1, 5]), np.array([9, 10], np.uint64))
    scan = pool.scan(EVERY, resets=0)
    assert [chunk.slot for chunk in scan.ready] == [0]
    assert scan.unsettled.tolist() == [1, 5]
    assert scan.unsettled_generations.tolist() == [9, 10]
    assert scan.next_generation == 11


def test_invalid_and_wiped_chunks_are_not_found() -> None:
    pool, _ = make_pool()
    publish(pool, [0, 1, 2], 1)
    pool.invalidate(np.array([1]))
    assert [chunk.slot for chunk in pool.scan(EVERY, resets=0).ready] == [0, 2]
    pool.wipe()
    scan = pool.scan(EVERY, resets=0)
    assert not scan.ready
    assert not len(scan.unsettled)


def test_only_the_slots_asked_for_are_read() -> None:
    pool, _ = make_pool()
    publish(pool, [0, 7], 1)
    assert [chunk.slot for chunk in pool.scan(np.array([0, 5]), resets=0).ready] == [0]
    assert pool.scan(EVERY[:0], resets=0).next_generation == 1


def test_of_two_with_the_same_name_the_newer_counts() -> None:
    pool, _ = make_pool()
    publish(pool, [4], 7, keys=[b"k" * 32])
    publish(pool, [2], 3, keys=[b"k" * 32])
    assert [chunk.slot for chunk in pool.scan(EVERY, resets=0).ready] == [4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", 0),
        ("format", 1),
        ("body_bytes", 101),
        ("group", 2),
        ("key_bytes", 0),
        ("key_bytes", 65),
        ("parent_bytes", 65),
    ],
)
def test_a_header_that_is_not_ours_is_not_believed(field: str, value: int) -> None:
    pool, arena = make_pool()
    publish(pool, [0], 1)
    header = arena[64 : 64 + HEADER_DTYPE.itemsize].view(HEADER_DTYPE)
    header[field] = value
    assert not pool.scan(EVERY, resets=0).ready


def test_another_namespace_adopts_nothing() -> None:
    pool, arena = make_pool()
    publish(pool, [0, 1], 1)
    other, _ = make_pool(arena, b"m" * 16)
    assert not other.scan(EVERY, resets=0).ready


def test_generations_that_were_never_given_mean_a_damaged_pool() -> None:
    pool, _ = make_pool()
    pool.start_tenancy(np.array([0]), np.array([GENERATION_MAX + 1], np.uint64))
    with pytest.raises(VineyardError, match="damaged"):
        pool.scan(EVERY, resets=0)


def test_populated_places_are_those_before_the_first_one_with_a_gap() -> None:
    pool, arena = make_pool()
    size = slot_bytes(GEOMETRY.body_bytes)

    def populated(*extents: tuple[int, int]) -> int:
        return pool.populated(np.array(extents, np.int64).reshape(-1, 2))

    assert populated() == 0
    assert populated((0, 64 + size - 1)) == 0
    assert populated((65, len(arena))) == 0
    assert populated((0, 64 + size)) == 1
    assert populated((0, 64 + STRIDE + 10), (64 + STRIDE + 11, len(arena))) == 1
    assert populated((0, len(arena))) == SLOTS


def test_touched_places_are_those_with_any_memory() -> None:
    pool, arena = make_pool()
    size = slot_bytes(GEOMETRY.body_bytes)

    def touched(*extents: tuple[int, int]) -> list[int]:
        return pool.touched(np.array(extents, np.int64).reshape(-1, 2)).tolist()

    assert touched() == []
    assert touched((0, 64)) == []
    assert touched((0, 65)) == [0]
    assert touched((64 + 3 * STRIDE + size - 1, 64 + 3 * STRIDE + size), (64 + 6 * STRIDE - 1, 64 + 7 * STRIDE)) == [
        3,
        6,
    ]
    assert touched((0, len(arena))) == list(range(SLOTS))


def test_populated_extents_are_what_was_written() -> None:
    page = PAGE_BYTES
    fd = os.memfd_create("extents")
    try:
        os.ftruncate(fd, 32 * page)
        assert populated(fd, 0, 32 * page).tolist() == []
        for first, last in ((2, 4), (4, 5), (9, 10), (31, 32)):
            os.pwrite(fd, bytes((last - first) * page), first * page)
        assert populated(fd, 0, 32 * page).tolist() == [
            [2 * page, 5 * page],
            [9 * page, 10 * page],
            [31 * page, 32 * page],
        ]
        assert populated(fd, 3 * page + 7, 9 * page + 1).tolist() == [
            [3 * page + 7, 5 * page],
            [9 * page, 9 * page + 1],
        ]
        assert populated(fd, 10 * page, 31 * page).tolist() == []
    finally:
        os.close(fd)
