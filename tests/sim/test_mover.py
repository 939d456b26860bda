"""The simulated mover: time per byte, order, a bounded queue, and what a cancelled job comes to."""

import math

import pytest

from tieredkv.brain.moves import Demote, JobId, Promote
from tieredkv.clock import ManualClock
from tieredkv.sim.mover import Link, SimMover
from tieredkv.types import Key

CHUNK_BYTES = 1000


def job(kind: type[Demote] | type[Promote], number: int, rows: int = 1) -> Demote | Promote:
    some = tuple(range(rows))
    keys = tuple(Key(b"%016d" % (number * 100 + row)) for row in range(rows))
    return kind(JobId(number), some, keys, keys, some, some, some, some, some)


def make(**links: Link) -> tuple[ManualClock, SimMover]:
    clock = ManualClock()
    chosen = {"promote": Link(1000.0), "demote": Link(1000.0)} | links
    return clock, SimMover(clock, CHUNK_BYTES, **chosen)


def ends(mover: SimMover, clock: ManualClock) -> list[tuple[float, int]]:
    found: list[tuple[float, int]] = []
    while (next_s := mover.next_s()) < math.inf:
        clock.set(max(next_s, clock.now_s()))
        found += [(round(clock.now_s(), 6), moved.number) for moved in mover.poll(100)]
    return found


def test_jobs_of_a_link_follow_each_other_and_links_go_side_by_side() -> None:
    clock, mover = make()
    for each in (job(Promote, 1, 2), job(Demote, 2), job(Promote, 3)):
        assert mover.submit(each)
    assert not mover.poll(100)
    assert ends(mover, clock) == [(1.0, 2), (2.0, 1), (3.0, 3)]
    assert mover.promoted.chunks == 3
    assert mover.demoted.chunks == 1


def test_latency_delays_the_result_and_not_the_next_job() -> None:
    clock, mover = make(promote=Link(1000.0, latency_s=0.5))
    mover.submit(job(Promote, 1))
    mover.submit(job(Promote, 2))
    assert ends(mover, clock) == [(1.5, 1), (2.5, 2)]


def test_a_full_queue_refuses() -> None:
    clock, mover = make(demote=Link(1000.0, queue_max=2))
    assert [mover.submit(job(Demote, number)) for number in (1, 2, 3)] == [True, True, False]
    clock.advance(1.0)
    assert mover.submit(job(Demote, 4))
    assert mover.demoted.refused == 1
    assert [number for _, number in ends(mover, clock)] == [1, 2, 4]


def test_a_cancelled_job_that_waits_moves_nothing_and_one_that_runs_ends() -> None:
    clock, mover = make()
    for number in (1, 2, 3):
        mover.submit(job(Promote, number, 2))
    mover.cancel(JobId(1))
    mover.cancel(JobId(2))
    (moved,) = mover.poll(100)
    assert (moved.number, moved.failed) == (2, frozenset({0, 1}))
    assert ends(mover, clock) == [(2.0, 1), (4.0, 3)]


def test_no_more_results_than_asked_for() -> None:
    clock, mover = make()
    for number in range(1, 6):
        mover.submit(job(Demote, number))
    clock.advance(10.0)
    assert [len(mover.poll(2)) for _ in range(4)] == [2, 2, 1, 0]
    assert mover.next_s() == math.inf


@pytest.mark.parametrize("bad", [{"bytes_per_s": 0.0}, {"bytes_per_s": 1.0, "latency_s": -1.0}])
def test_links_that_cannot_be(bad: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        Link(**bad)
