"""The mover killed, stopped and overrun: every job is answered once, and nothing is written after that."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tieredkv.brain.moves import JobId, PeerId
from tieredkv.sidecar.mover.messages import Loss
from tieredkv.sidecar.mover.pool import JOBS_MAX, SEALS_MAX
from tieredkv.sidecar.mover.traffic import Movement

from .mover_rig import Node
from .process import alive, wait_until

MIB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(slots=8, pages=8, body_bytes=MIB)
    yield node
    node.close()


def pid_of(node: Node) -> int:
    pid = node.held.pid
    assert pid is not None
    return pid


def stop(node: Node) -> None:
    """Stop the mover, and wait until it stands still."""
    pid = pid_of(node)
    os.kill(pid, signal.SIGSTOP)
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    wait_until(lambda: all(b") T " in (task / "stat").read_bytes() for task in tasks), "the mover stands still")


def some_jobs(node: Node) -> dict[int, tuple[list[int], list[int]]]:
    """Eight demotions of one chunk each, submitted: their pages and generations."""
    generations = node.store(list(range(8)), list(range(8)))
    jobs: dict[int, tuple[list[int], list[int]]] = {}
    for at in range(8):
        number, given = node.demote([at], [at], [generations[at]], [node.page(at)])
        jobs[number] = ([node.page(at)], given)
    return jobs


def test_a_killed_mover_is_answered_for_and_replaced(node: Node) -> None:
    first = pid_of(node)
    jobs = some_jobs(node)
    os.kill(first, signal.SIGKILL)
    for number in jobs:
        node.result(number)
    assert not alive(first)
    died = [number for number in jobs if node.moved[number].failed]
    assert node.held.traffic[Movement.DEMOTE].lost.total() == len(died)
    for number, (pages, given) in jobs.items():
        # A page whose result was lost may be whole; it is never half of something.
        agrees = node.pool.words.agree(np.array(pages), np.array(given, np.uint64)).all()
        assert number in died or agrees
        assert not agrees or node.holds(pages[0], given[0], pages[0] - 8)
    before = node.arena.mapping.view.copy()
    node.wait(lambda: node.held.ready)
    assert node.held.restarts == 1
    assert pid_of(node) != first
    assert (node.arena.mapping.view == before).all(), "somebody wrote after the answers"
    # The new process was told of the pool.
    number, given = node.demote([1], [1], [int(node.header(1)["generation"])], [node.page(0)])
    assert not node.result(number).failed
    assert node.holds(node.page(0), given[0], 1)


def test_a_hung_mover_is_killed(node: Node) -> None:
    node.turn()
    stop(node)
    hung = pid_of(node)
    jobs = some_jobs(node)
    node.turn()
    assert alive(hung)
    assert not node.moved
    node.skipped_s += 3.0
    node.turn()
    assert alive(hung), "it may be slow"
    node.skipped_s += 3.0
    for number in jobs:
        assert node.result(number).failed == {0}
    assert not alive(hung)
    assert node.held.traffic[Movement.DEMOTE].lost == {Loss.DIED: 8}


def test_a_mover_without_jobs_is_not_taken_for_hung(node: Node) -> None:
    idle = pid_of(node)
    for _ in range(5):
        node.skipped_s += 100.0
        node.turn()
    assert pid_of(node) == idle
    number, _ = node.demote([1], [1], node.store([1], [1]), [node.page(0)])
    node.skipped_s += 1.0
    assert not node.result(number).failed
    assert not node.held.restarts


def test_a_mover_that_keeps_dying_is_restarted_more_and_more_rarely(node: Node) -> None:
    now_s = 1e9  # the test's own time from here on
    for backoff_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        node.held.tick(now_s)
        os.kill(pid_of(node), signal.SIGKILL)
        wait_until(lambda: node.held.receive() or node.held.pid is None, "the mover is buried")
        node.held.tick(now_s)
        node.held.tick(now_s + 0.9 * backoff_s)
        assert node.held.pid is None
        now_s += 1.1 * backoff_s
        node.held.tick(now_s)
        assert node.held.pid is not None
    # One that lived for a while is restarted as if for the first time.
    node.held.tick(now_s)
    now_s += 20.0
    os.kill(pid_of(node), signal.SIGKILL)
    wait_until(lambda: node.held.receive() or node.held.pid is None, "the mover is buried")
    node.held.tick(now_s)
    node.held.tick(now_s + 0.11)
    assert node.held.pid is not None
    assert node.held.restarts == 9


def test_a_mover_that_does_not_read_is_killed(node: Node) -> None:
    node.turn()
    stop(node)
    deaf = pid_of(node)
    for peer in range(8):
        node.held.set_peer(node.jobs_of, PeerId(peer), "127.0.0.1", 1, np.arange(100_000, dtype=np.uint64))
    node.turn()
    node.skipped_s += 3.0
    node.turn()
    assert alive(deaf)
    node.skipped_s += 3.0
    node.wait(lambda: node.held.pid != deaf and node.held.ready)
    number, _ = node.demote([1], [1], node.store([1], [1]), [node.page(0)])
    assert not node.result(number).failed


def test_no_more_jobs_are_taken_than_the_bound(node: Node) -> None:
    other = node.held.open_pool(node.record, 2)
    stop(node)
    generations = node.store([0], [1])
    jobs = [node.demote([1], [0], generations, [node.page(at % 8)])[0] for at in range(JOBS_MAX)]
    with pytest.raises(AssertionError, match="refused"):
        node.demote([1], [0], generations, [node.page(0)])
    seals = [node.jobs_of.seal(np.array([0]), np.array(generations)) for _ in range(SEALS_MAX + 1)]
    assert seals == [True] * SEALS_MAX + [False]
    assert other.seal(np.array([0]), np.array(generations)), "another pool has its own bound"
    os.kill(pid_of(node), signal.SIGCONT)
    for number in jobs:
        assert not node.result(number).failed
    node.wait(lambda: not node.jobs_of.sealing)
    assert node.jobs_of.idle


def test_a_dead_mover_takes_no_jobs(node: Node) -> None:
    os.kill(pid_of(node), signal.SIGKILL)
    node.wait(lambda: node.held.pid is None)
    assert not node.held.ready
    with pytest.raises(AssertionError, match="refused"):
        node.demote([1], [0], [1], [node.page(0)])
    assert not node.jobs_of.seal(np.array([0]), np.array([1]))


def test_what_was_cancelled_before_it_began_is_not_touched(node: Node) -> None:
    node.turn()
    generations = node.store(list(range(8)), list(range(8)))
    first, given = node.demote([0], [0], generations[:1], [node.page(0)])
    # What is urgent comes first: the page has to be there.
    node.result(first)
    number, _ = node.demote(
        list(range(1, 8)), list(range(1, 8)), generations[1:], [node.page(at) for at in range(1, 8)]
    )
    last, _ = node.promote([0], [node.page(0)], [given[0]], [7])
    node.jobs_of.cancel(JobId(last))
    node.result(number)
    moved = node.result(last)
    # It may have been quicker; if not, the slot is as it was.
    trailer = int(node.pool.words.trailers()[7])
    assert (trailer == generations[7]) == (moved.failed == {0})


def test_a_place_is_never_accepted_before_it_is_whole() -> None:
    node = Node(slots=1, pages=1, body_bytes=16 * MIB)
    (generation,) = node.store([0], [1])
    rounds = seen_between = 0
    # On a busy machine the mover is often through before it is stopped.
    while rounds < 12 or (not seen_between and rounds < 500):
        rounds += 1
        number, (given,) = node.demote([1], [0], [generation], [1])
        while int(node.pool.words.trailers()[1]) != given:
            node.turn()
        stop(node)
        if int(node.pool.words.headers()[1]) == given:
            assert node.holds(1, given, 1)
        else:
            seen_between += 1
            assert number not in node.moved
        os.kill(pid_of(node), signal.SIGCONT)
        assert not node.result(number).failed
        assert node.holds(1, given, 1)
        node.body(1)[:] = 0
    assert seen_between > 0
    node.close()


def test_a_closed_pool_is_left_alone() -> None:
    node = Node(slots=8, pages=8, body_bytes=MIB)
    keep = node.held.open_pool(node.record, 2)
    jobs = some_jobs(node)
    assert node.jobs_of.seal(np.arange(8), np.arange(8))
    node.held.close_pool(node.jobs_of)
    with pytest.raises(AssertionError, match="refused"):
        node.demote([1], [0], [1], [node.page(0)])
    node.wait(lambda: node.jobs_of.idle)
    assert set(node.moved) == set(jobs)
    assert keep.idle
    node.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_mover_ends_with_its_sidecar(stopped: bool) -> None:
    script = Path(__file__).parent / "mover_orphan.py"
    sidecar = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert sidecar.stdout is not None
    mover = int(sidecar.stdout.readline())
    assert alive(mover)
    if stopped:
        os.kill(mover, signal.SIGSTOP)
    sidecar.kill()
    sidecar.wait()
    sidecar.stdout.close()
    wait_until(lambda: not alive(mover), "the mover ended")


def test_closing_answers_for_everything(node: Node) -> None:
    jobs = some_jobs(node)
    pid = pid_of(node)
    node.held.close()
    assert not alive(pid)
    node.take()
    assert set(node.moved) == set(jobs)
    node.mover = None


def test_a_thousand_jobs_with_random_kills() -> None:
    """Slots 0-15 and pages 16-31 under a model of what each may hold; the mover dies again and again."""
    draw = random.Random(11)
    node = Node(slots=16, pages=16, body_bytes=32 * 1024)
    # place -> (generation, chunk) of what was answered as right
    held: dict[int, tuple[int, int]] = {}
    busy: dict[int, tuple[list[int], list[int], list[int], list[int]]] = {}
    in_use: set[int] = set()
    struck: int | None = None
    submitted = kills = 0

    def settle() -> None:
        for number in [number for number in busy if number in node.moved]:
            sources, targets, given, chunks = busy.pop(number)
            in_use.difference_update(sources, targets)
            for row, target in enumerate(targets):
                if row not in node.moved[number].failed:
                    held[target] = (given[row], chunks[row])
                    assert node.holds(target, given[row], chunks[row])

    while submitted < 1000:
        free = [place for place in range(32) if place not in in_use]
        empty = [slot for slot in free if slot < 16 and slot not in held]
        if empty and draw.random() < 0.3:
            slot = draw.choice(empty)
            chunk = draw.randrange(1, 1000)
            held[slot] = (node.store([slot], [chunk])[0], chunk)
        down = draw.random() < 0.5
        sources = [place for place in free if place in held and (place < 16) == down]
        targets = [place for place in free if (place < 16) != down]
        count = min(len(sources), len(targets), draw.randint(1, 6))
        if count and node.held.ready and len(busy) < 8:
            sources, targets = draw.sample(sources, count), draw.sample(targets, count)
            chunks = [held[place][1] for place in sources]
            generations = [held[place][0] for place in sources]
            for target in targets:
                held.pop(target, None)
            submit = node.demote if down else node.promote
            number, given = submit(chunks, sources, generations, targets)
            busy[number] = (sources, targets, given, chunks)
            in_use.update(sources, targets)
            submitted += 1
            if draw.random() < 0.02:
                kills += 1
                struck = pid_of(node)
                os.kill(struck, draw.choice([signal.SIGKILL, signal.SIGSTOP]))
        elif not node.held.ready or draw.random() < 0.3:
            # Nothing can be begun: what hangs is found out, what has ended is started again. But one that starts, or
            # works, has the time that it takes: on a slow machine skipped seconds would be its end, for ever.
            node.wait_briefly()
            node.skipped_s += 1.0 if node.held.pid in {None, struck} else 0.0
        node.turn()
        settle()
    node.skipped_s += 6.0
    node.wait(lambda: not busy.keys() - node.moved.keys())
    settle()
    assert not busy
    assert kills > 3
    assert node.held.restarts > 3
    assert all(node.holds(place, generation, chunk) for place, (generation, chunk) in held.items())
    arrived = sum(node.held.traffic[kind].chunks for kind in (Movement.DEMOTE, Movement.PROMOTE))
    lost = node.held.traffic[Movement.DEMOTE].lost + node.held.traffic[Movement.PROMOTE].lost
    assert arrived > 500
    assert set(lost) <= {Loss.DIED}, "only the kills cost anything"
    node.close()
