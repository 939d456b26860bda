"""Reuse by the book: a stack of all blocks, searched from the top. The referee of the fast one."""

from tieredkv.sim.traces import Trace


def brute_reuse(trace: Trace) -> list[tuple[int, int, int]]:
    """(request, position, distance) of every reference to a block that was used before."""
    stack: list[bytes] = []
    found: list[tuple[int, int, int]] = []
    for number, request in enumerate(trace.requests):
        for position, key in enumerate(request.keys):
            if key in stack:
                found.append((number, position, len(stack) - 1 - stack.index(key)))
                stack.remove(key)
            stack.append(key)
    return found
