"""Hints from the future: true where they should be, and otherwise as wrong as asked."""

from collections import Counter

import pytest

from tests.sim.trees import chain_trace
from tieredkv.policy import parse_hints
from tieredkv.policy.hints import HINT_NAMES
from tieredkv.sim.generate import generate
from tieredkv.sim.oracle_hints import Truth, oracle_hints

# Two turns of a session, a prompt whose head is used again, one of which nothing is, and an empty one.
TRACE = chain_trace([[0, 1], [0, 1, 2], [5, 6], [9], [5, 7], []], gap_s=3.0, sessions=["a", "a", "b", "c", "d", "e"])


def test_the_truth() -> None:
    true = oracle_hints(TRACE, Truth.TRUTHFUL, seed=1)
    assert [{k: v for k, v in hints.items() if k != "session"} for hints in true] == [
        {"return_within_s": 4.0},
        {"session_closed": True, "one_shot": True},
        {"session_closed": True},
        {"session_closed": True, "one_shot": True},
        {"session_closed": True, "one_shot": True},
        {"session_closed": True, "one_shot": True},
    ]
    names = [hints["session"] for hints in true]
    assert names[0] == names[1]
    assert len(set(names)) == 5


@pytest.mark.parametrize("truth", Truth)
def test_all_are_hints_that_are_understood_and_the_same_for_a_seed(truth: Truth) -> None:
    trace = generate("chat", seed=1, requests=400)
    hints = oracle_hints(trace, truth, seed=3)
    assert len(hints) == len(trace.requests)
    assert hints == oracle_hints(trace, truth, seed=3)
    for each in hints:
        assert each.keys() <= set(HINT_NAMES)
        parsed = parse_hints(each)
        assert parsed.session
        assert parsed.closed != (parsed.return_within_s is not None)


def test_how_much_truth_there_is() -> None:
    trace = generate("chat", seed=1, requests=2000)
    closed = {
        truth: [bool(hints.get("session_closed")) for hints in oracle_hints(trace, truth, seed=3)] for truth in Truth
    }
    true = closed[Truth.TRUTHFUL]

    def agreement(truth: Truth) -> float:
        return sum(a == b for a, b in zip(true, closed[truth], strict=True)) / len(true)

    assert agreement(Truth.LYING) == 0
    assert agreement(Truth.MOSTLY) == pytest.approx(0.8, abs=0.03)
    # Blind guesses of the right rate: right as often as two independent draws agree.
    rate = sum(true) / len(true)
    assert agreement(Truth.USELESS) == pytest.approx(rate**2 + (1 - rate) ** 2, abs=0.04)
    assert Counter(closed[Truth.USELESS]) == Counter(true)
