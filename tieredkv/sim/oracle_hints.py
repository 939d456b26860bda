"""Hints that an application could have given, made from the future of a trace, with some truth in them.

The truth of a request: whether its last block is used again, and when. If it is, the application says
within what time (to the next power of two seconds: nobody knows better); if not, that the session is
closed, and that the prompt is a one-shot when nothing of what it added is used again either.
"""

from enum import StrEnum
from math import ceil, log2
from typing import Final

from numpy.random import Generator, default_rng

from tieredkv.sim.bounds import foresee
from tieredkv.sim.reuse import measure_reuse
from tieredkv.sim.session_structure import find_sessions
from tieredkv.sim.traces import Trace
from tieredkv.trace import Hints

MOSTLY: Final = 0.8


class Truth(StrEnum):
    """What the hints are worth.

    TRUTHFUL: all are right. MOSTLY: each with a probability of 0.8, else the opposite. USELESS: those of
    another request, drawn blindly, so that they are given as often and mean nothing. LYING: the opposite.
    """

    TRUTHFUL = "truthful"
    MOSTLY = "80"
    USELESS = "useless"
    LYING = "lying"


def oracle_hints(trace: Trace, truth: Truth, seed: int) -> list[Hints]:
    """Hints for each request of `trace`. The same for the same seed."""
    random = default_rng(seed)
    true = _true_hints(trace)
    if truth is Truth.TRUTHFUL:
        return true
    if truth is Truth.USELESS:
        return [true[other] for other in random.permutation(len(true)).tolist()]
    waits = [hints["return_within_s"] for hints in true if "return_within_s" in hints]
    right = MOSTLY if truth is Truth.MOSTLY else 0.0
    return [hints if random.random() < right else _opposite(hints, waits, random) for hints in true]


def _true_hints(trace: Trace) -> list[Hints]:
    future = foresee(trace)
    sessions = find_sessions(trace, measure_reuse(trace)).of_request.tolist()
    times_s = [request.time_s for request in trace.requests]
    true: list[Hints] = []
    for number, request in enumerate(trace.requests):
        hints: dict[str, str | int | float | bool] = {"session": f"session-{sessions[number]}"}
        first, end = int(future.start[number]), int(future.start[number + 1])
        following = int(future.following[end - 1]) if request.keys else len(times_s)
        if following < len(times_s):
            hints["return_within_s"] = _rounded(times_s[following] - times_s[number])
        else:
            added = first + int(future.seen[first:end].sum())
            hints["session_closed"] = True
            if not (future.following[added:end] < len(times_s)).any():
                hints["one_shot"] = True
        true.append(hints)
    return true


def _rounded(wait_s: float) -> float:
    return float(2 ** ceil(log2(max(1.0, wait_s))))


def _opposite(hints: Hints, waits: "list[str | int | float | bool]", random: Generator) -> Hints:
    """One that closes comes back after some other request's time; one that comes back closes."""
    said = {"session": hints["session"]}
    if "session_closed" not in hints:
        return said | {"session_closed": True, "one_shot": True}
    return said | ({"return_within_s": waits[int(random.integers(len(waits)))]} if waits else {})
