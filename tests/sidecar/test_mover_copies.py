"""Copies between slots and pages: bytes are kept, checksums taken and verified, damage is refused."""

from collections.abc import Iterator

import numpy as np
import pytest

from tieredkv.sidecar.mover.messages import Loss
from tieredkv.sidecar.mover.traffic import Movement
from tieredkv.tiers.slots import FLAG_SEALED

from .mover_rig import RESETS, Node


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


def demoted(node: Node, chunks: list[int], pages: list[int]) -> list[int]:
    """Store chunks in the first slots and demote them; the generations of the pages."""
    slots = list(range(len(chunks)))
    number, given = node.demote(chunks, slots, node.store(slots, chunks), pages)
    assert not node.result(number).failed
    return given


def test_a_chunk_goes_to_a_page_and_back(node: Node) -> None:
    chunks, pages = [1, 2, 3, 4], [node.page(at) for at in range(4)]
    given = demoted(node, chunks, pages)
    assert all(map(node.holds, pages, given, chunks))
    assert all(node.header(page)["flags"] == FLAG_SEALED for page in pages)
    number, generations = node.promote(chunks, pages, given, [8, 9, 10, 11])
    assert not node.result(number).failed
    assert all(map(node.holds, [8, 9, 10, 11], generations, chunks))
    assert [node.header(slot)["checksum"] for slot in range(8, 12)] == [node.header(page)["checksum"] for page in pages]
    # The clean copies stay.
    assert all(map(node.holds, pages, given, chunks))


def test_each_kind_of_damage_is_refused_and_counted(node: Node) -> None:
    chunks, pages = list(range(20, 26)), [node.page(at) for at in range(6)]
    given = demoted(node, chunks, pages)
    lost = node.held.traffic[Movement.PROMOTE].lost
    before = lost.copy()
    node.body(pages[0])[100] ^= 4
    node.place(pages[1])[48] ^= FLAG_SEALED
    node.place(pages[2])[64] ^= 1  # the key
    node.place(pages[3])[-64] ^= 1  # the trailer's generation
    node.place(pages[4])[192] ^= 1  # resets
    number, generations = node.promote(chunks, pages, given, list(range(8, 14)))
    moved = node.result(number)
    assert moved.failed == moved.unproven == {0, 1, 2, 3, 4}
    assert lost - before == {Loss.CORRUPT: 1, Loss.UNSEALED: 1, Loss.OTHER: 1, Loss.TORN: 1, Loss.FOREIGN: 1}
    assert node.holds(13, generations[5], 25)
    agree = node.pool.words.agree(np.arange(8, 13), np.array(generations[:5], np.uint64))
    assert not agree.any(), "a reader would accept what was refused"


def test_a_slot_in_another_tenancy_is_not_demoted(node: Node) -> None:
    old = node.store([0], [30])
    node.store([0], [31])
    number, _ = node.demote([30], [0], old, [node.page(0)])
    assert node.result(number).failed == {0}


def test_a_damaged_chunk_that_was_sealed_is_not_demoted(node: Node) -> None:
    given = demoted(node, [40], [node.page(0)])
    number, generations = node.promote([40], [node.page(0)], given, [5])
    assert not node.result(number).failed
    node.body(5)[7] ^= 1
    number, _ = node.demote([40], [5], generations, [node.page(1)])
    assert node.result(number).unproven == {0}


def test_chunks_of_other_weights_are_not_copied(node: Node) -> None:
    number, _ = node.demote([50], [0], node.store([0], [50], resets=RESETS + 1), [node.page(0)])
    assert node.result(number).failed == {0}
    node.held.set_resets(node.jobs_of, RESETS + 1)
    number, given = node.demote([51], [0], node.store([0], [51], resets=RESETS + 1), [node.page(0)])
    assert not node.result(number).failed
    assert node.holds(node.page(0), given[0], 51)
    node.held.set_resets(node.jobs_of, RESETS)


def test_traffic_is_counted(node: Node) -> None:
    traffic = node.held.traffic[Movement.DEMOTE]
    jobs, chunks, moved_bytes = traffic.jobs, traffic.chunks, traffic.bytes
    demoted(node, [60, 61], [node.page(0), node.page(1)])
    assert (traffic.jobs, traffic.chunks) == (jobs + 1, chunks + 2)
    assert traffic.bytes == moved_bytes + 2 * node.record.slot_bytes
    assert traffic.seconds > 0


def test_slots_are_sealed_in_place(node: Node) -> None:
    slots, chunks = np.arange(4), [70, 71, 72, 73]
    generations = np.array(node.store(slots.tolist(), chunks), np.uint64)
    assert node.jobs_of.seal(slots, generations)
    assert node.jobs_of.sealing == 4
    node.wait(lambda: not node.jobs_of.sealing)
    # One of them is leased again before the sidecar gets to the answer.
    node.store([2], [74])
    places, of = node.jobs_of.take_sealed()
    assert (places.tolist(), of.tolist()) == ([0, 1, 3], generations[[0, 1, 3]].tolist())
    assert [int(node.header(slot)["flags"]) for slot in range(4)] == [1, 1, 0, 1]
    # What is sealed is verified when it is demoted.
    node.body(3)[9] ^= 1
    pages = [node.page(at) for at in range(3)]
    number, given = node.demote([70, 71, 73], [0, 1, 3], of.tolist(), pages)
    assert node.result(number).failed == {2}
    assert node.holds(pages[0], given[0], 70)
    assert node.holds(pages[1], given[1], 71)


def test_a_slot_that_changed_before_its_turn_is_not_sealed(node: Node) -> None:
    old = np.array(node.store([0, 1], [80, 81]), np.uint64)
    node.store([0], [82])
    assert node.jobs_of.seal(np.array([0, 1]), old)
    node.wait(lambda: not node.jobs_of.sealing)
    assert node.jobs_of.take_sealed()[0].tolist() == [1]
