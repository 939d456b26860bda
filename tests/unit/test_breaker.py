"""The breaker of a peer: one deadline for a peer that hangs, and back by itself."""

from hypothesis import given
from hypothesis import strategies as st

from tieredkv.sidecar.cluster.breaker import Breaker, BreakerState


def test_the_first_failure_opens_it() -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    breaker.begin(0)
    breaker.fail(10)
    assert not breaker.usable(10.9)
    assert breaker.state(10.9) is BreakerState.OPEN
    assert breaker.usable(11)
    assert breaker.state(11) is BreakerState.HALF_OPEN
    assert breaker.opened == 1


def test_one_trial_at_a_time() -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    breaker.fail(0)
    breaker.begin(1)
    assert not breaker.usable(1.5)
    assert breaker.state(1.5) is BreakerState.HALF_OPEN
    assert breaker.usable(2), "the result of a trial may be lost"
    breaker.succeed()
    assert breaker.state(1.6) is BreakerState.CLOSED


def test_waits_double_up_to_a_bound_and_start_again() -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    breaker.fail(0)
    now_s = 0.0
    for wait_s in (1, 2, 4, 4):
        assert not breaker.usable(now_s + wait_s - 0.1)
        now_s += wait_s
        breaker.begin(now_s)
        breaker.fail(now_s)
        breaker.check()
    now_s += 4
    breaker.begin(now_s)
    breaker.succeed()
    breaker.fail(now_s)
    assert breaker.usable(now_s + 1)
    assert breaker.opened == 2


def test_late_results_say_nothing() -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    breaker.fail(0)
    breaker.fail(0.5)
    breaker.succeed()
    assert breaker.state(0.6) is BreakerState.OPEN
    assert breaker.usable(1)


def test_a_peer_that_connects_anew_is_tried_at_once() -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    breaker.hurry(0)
    assert breaker.state(0) is BreakerState.CLOSED
    breaker.fail(0)
    breaker.begin(1)
    breaker.fail(1)
    breaker.hurry(1.5)
    assert breaker.state(1.5) is BreakerState.HALF_OPEN
    breaker.begin(1.5)
    breaker.fail(1.5)
    breaker.check()
    assert not breaker.usable(5.4)
    assert breaker.usable(5.5)


@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "begin", "hurry", "wait"]), st.floats(0, 3))))
def test_it_never_stays_open(operations: list[tuple[str, float]]) -> None:
    breaker = Breaker(backoff_min_s=1, backoff_max_s=4)
    now_s = 0.0
    for kind, seconds in operations:
        now_s += seconds
        match kind:
            case "fail":
                breaker.fail(now_s)
            case "succeed":
                breaker.succeed()
            case "hurry":
                breaker.hurry(now_s)
            case "begin" if breaker.usable(now_s):
                breaker.begin(now_s)
            case _:
                pass
        breaker.check()
        assert breaker.usable(now_s + 4)
        assert breaker.usable(now_s) or breaker.state(now_s) is not BreakerState.CLOSED
