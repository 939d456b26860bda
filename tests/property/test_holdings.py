"""What followers are told makes them know what is held, however slow they are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredkv.brain.holdings import Follower, Holdings

PLACES = 8


class Told:
    """What a follower knows."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.known: dict[int, tuple[int, int]] = {}

    def take(self, rows_max: int) -> int:
        changes = self.follower.take(rows_max)
        assert len(changes) <= rows_max
        assert len(set(changes.places.tolist())) == len(changes)
        columns = (changes.places.tolist(), changes.fingerprints.tolist(), changes.generations.tolist())
        for place, fingerprint, generation in zip(*columns, strict=True):
            self.known.pop(place, None)
            if fingerprint:
                self.known[place] = (fingerprint, generation)
        return len(changes)


places = st.lists(st.integers(0, PLACES - 1), max_size=PLACES, unique=True)
operation = st.one_of(
    st.tuples(st.just("hold"), places),
    st.tuples(st.just("drop"), places),
    st.tuples(st.just("follow"), st.just([])),
    st.tuples(st.just("leave"), st.just([])),
    st.tuples(st.just("take"), st.lists(st.integers(0, 3), min_size=1, max_size=1)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(operation, max_size=40))
def test_as_a_dictionary(operations: list[tuple[str, list[int]]]) -> None:
    holdings = Holdings(PLACES)
    model: dict[int, tuple[int, int]] = {}
    followers: list[Told] = []
    for number, (kind, numbers) in enumerate(operations):
        rows = np.array(numbers, np.int64)
        match kind:
            case "hold":
                holdings.hold(rows, (rows + number + 1).astype(np.uint64), np.full(len(rows), number, np.uint64))
                model |= {place: (place + number + 1, number) for place in numbers}
            case "drop":
                holdings.drop(rows)
                model = {place: held for place, held in model.items() if place not in numbers}
            case "follow":
                followers.append(Told(holdings.follow()))
                assert followers[-1].follower.snapshot_left == len(holdings)
            case "leave" if followers:
                holdings.leave(followers.pop(0).follower)
            case _ if followers and numbers:
                followers[numbers[0] % len(followers)].take(numbers[0] + 1)
        holdings.check()
        assert len(holdings) == len(model)
        assert all(told.follower.waiting <= PLACES for told in followers)
    for told in followers:
        while told.follower.waiting:
            assert told.take(3)
        assert not told.take(3)
        assert told.known == model


def test_a_place_that_changes_often_waits_once() -> None:
    holdings = Holdings(100)
    follower = holdings.follow()
    for number in range(1, 1000):
        holdings.hold(np.array([7]), np.array([number], np.uint64), np.array([number], np.uint64))
    assert follower.waiting == 1
    assert follower.take(10).generations.tolist() == [999]


def test_the_snapshot_comes_before_what_changed_since() -> None:
    holdings = Holdings(10)
    first = np.array([1, 2, 3])
    holdings.hold(first, first.astype(np.uint64), first.astype(np.uint64))
    follower = holdings.follow()
    holdings.hold(np.array([9]), np.array([5], np.uint64), np.array([6], np.uint64))
    assert follower.snapshot_left == 3
    assert follower.take(2).places.tolist() == [1, 2]
    assert follower.snapshot_left == 1
    assert follower.take(9).places.tolist() == [3, 9]
    assert follower.snapshot_left == 0
