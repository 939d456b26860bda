"""Sequences of numbers as runs (start, step, count): one run for a whole pool, usually."""

from collections.abc import Iterable, Sequence

Runs = list[tuple[int, int, int]]


def runs(numbers: Iterable[int]) -> Runs:
    """The runs of a sequence."""
    found: Runs = []
    for number in numbers:
        if found:
            start, step, count = found[-1]
            if count == 1 or number == start + step * count:
                found[-1] = (start, number - start if count == 1 else step, count + 1)
                continue
        found.append((number, 0, 1))
    return found


def expanded(found: Sequence[tuple[int, int, int]], count_max: int) -> list[int]:
    """The sequence of these runs. Raises ValueError when it would have more than `count_max` numbers."""
    if any(count < 1 for _, _, count in found) or sum(count for _, _, count in found) > count_max:
        raise ValueError("a run of numbers makes no sense")
    return [start + step * index for start, step, count in found for index in range(count)]
