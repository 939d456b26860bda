"""Copies and seals against sources that change under them, in one process: what moves when is the test's."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tests.sidecar.mover_rig import NAMESPACE, RESETS, Node, key_of
from tieredkv.brain.moves import Fetch, JobId, PeerId
from tieredkv.sidecar.mover import messages
from tieredkv.sidecar.mover.copying import PIECE_BYTES, copy
from tieredkv.sidecar.mover.messages import Loss
from tieredkv.sidecar.mover.places import Places
from tieredkv.sidecar.mover.pool import PoolMover
from tieredkv.sidecar.mover.sealing import Sealing
from tieredkv.sidecar.mover.traffic import Movement, Traffic
from tieredkv.types import Key


class Watched(Places):
    """Places that do something whenever a body is asked for, which is between reading and writing."""

    def __init__(self, node: Node, then: Callable[[int], None]) -> None:
        record = node.record
        pool = messages.PoolIs(
            1, NAMESPACE, record.geometry.body_bytes, record.slots, RESETS, record.offsets.astype(np.int64).tobytes()
        )
        super().__init__(node.arena.mapping.view, pool)
        self._then = then

    def body(self, place: int) -> npt.NDArray[np.uint8]:
        self._then(place)
        return super().body(place)


def copy_of(sources: list[int], generations: list[int], targets: list[int], given: list[int]) -> messages.Copy:
    """A job for the chunks whose numbers are those of their sources."""
    return messages.Copy(
        1, 1, (0,) * len(sources), tuple(map(key_of, sources)), (b"",) * len(sources), tuple(sources),
        tuple(sources), tuple(generations), tuple(targets), tuple(given), urgent=False,
    )  # fmt: skip


def test_a_slot_that_is_stored_again_while_it_is_copied_is_torn() -> None:
    node = Node(mover=False)
    generations = node.store([0], [0])
    given = node.give(1)

    def store_again(place: int) -> None:
        if place == 0:
            node.store([0], [0])

    assert copy(Watched(node, store_again), copy_of([0], generations, [16], given)) == {0: Loss.TORN}
    assert not node.pool.words.agree(np.array([16]), np.array(given, np.uint64))[0]
    node.close()


def test_a_target_is_nobodys_while_it_is_written() -> None:
    node = Node(mover=False)
    generations, old = node.store([0], [0]), node.store([5], [5])
    given = node.give(1)
    accepted: list[bool] = []

    def look(_: int) -> None:
        words = node.pool.words
        accepted.append(bool(words.agree(np.array([5, 5]), np.array([*old, *given], np.uint64)).any()))

    places = Watched(node, look)
    assert not copy(places, copy_of([0], generations, [5], given))
    assert accepted
    assert not any(accepted)
    assert node.holds(5, given[0], 0)
    node.close()


def test_a_pool_that_ends_in_the_middle_of_a_job_is_left_alone() -> None:
    node = Node(mover=False)
    generations = node.store([0, 1], [0, 1])
    given = node.give(2)

    def end(_: int) -> None:
        places.ended = True

    places = Watched(node, end)
    assert copy(places, copy_of([0, 1], generations, [16, 17], given)) == {1: Loss.CANCELLED}
    node.close()


def test_a_slot_that_is_stored_again_while_it_is_sealed_is_left_out() -> None:
    node = Node(mover=False)
    generations = node.store([0, 1], [0, 1])

    def store_again(place: int) -> None:
        if place == 0:
            node.store([0], [2])

    seal = messages.Seal(1, 1, np.array([0, 1]).tobytes(), np.array(generations, np.uint64).tobytes())
    sealing = Sealing(Watched(node, store_again), seal)
    while not sealing.over:
        sealing.seal_one()
    assert np.frombuffer(sealing.answer().places, np.int64).tolist() == [1]
    node.close()


def test_a_sealed_slot_is_copied_with_its_seal() -> None:
    node = Node(mover=False)
    generations = node.store([0], [0])
    first, second = node.give(1), node.give(1)
    places = Watched(node, lambda _: None)
    assert not copy(places, copy_of([0], generations, [16], first))
    node.seal([0], generations)
    assert not copy(places, copy_of([0], generations, [17], second))
    assert node.header(0)["checksum"] == node.header(16)["checksum"] == node.header(17)["checksum"] != 0
    assert node.holds(17, second[0], 0)
    node.close()


@pytest.mark.parametrize("damaged", [None, 0, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 99])
def test_every_piece_of_a_body_is_copied_and_proved(damaged: int | None) -> None:
    node = Node(slots=2, pages=1, body_bytes=2 * PIECE_BYTES + 100, mover=False)
    generations = node.store([0], [0])
    page, slot = node.give(1), node.give(1)
    places = Watched(node, lambda _: None)
    assert not copy(places, copy_of([0], generations, [2], page))
    node.seal([0], generations)
    assert node.header(0)["checksum"] == node.header(2)["checksum"], "the seal that a copy gets is the right one"
    if damaged is not None:
        node.body(2)[damaged] ^= 1
    job = messages.Copy(
        1, 1, (0,), (key_of(0),), (b"",), (0,), (2,), tuple(page), (1,), tuple(slot), urgent=True
    )  # fmt: skip
    assert copy(places, job) == ({} if damaged is None else {0: Loss.CORRUPT})
    assert node.holds(1, slot[0], 0) == (damaged is None)
    node.close()


def test_a_reading_has_time_to_wait_and_little_for_itself() -> None:
    node = Node(slots=8, pages=1, body_bytes=1 << 20, mover=False)
    sent: list[messages.Fetch] = []

    def send(message: messages.ToMover) -> bool:
        assert isinstance(message, messages.Fetch)
        sent.append(message)
        return True

    traffic = {movement: Traffic() for movement in Movement}
    mover = PoolMover(1, node.pool, traffic, send, lambda: True, fetch_deadline_s=1.0)
    for number in range(3):
        places, generations = (number,), (1,)
        assert mover.submit(
            Fetch(JobId(number), (0,), (key_of(1),), (Key(b""),), (1,), places, generations, PeerId(2), (0,), (5,))
        )
    # However much waits before it, a node that stalls is found out before the mover seems to hang.
    assert len({job.work_s for job in sent}) == 1
    assert [job.deadline_s - job.work_s for job in sent] == pytest.approx(
        [0.0, 1.0, 2.0] * np.array(sent[0].work_s - 1)
    )
    node.close()
