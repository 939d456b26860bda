"""The fuzz of the wire in the size that CI can afford; the long form is a command."""

import gc

import pytest

from . import wire_fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_frames_neither_crash_nor_hang_nor_leak(seed: int) -> None:
    gc.collect()
    report = wire_fuzz.run(seed, 0, 3000)
    assert report.descriptors_left <= 0
    assert report.growth_bytes < wire_fuzz.GROWTH_BYTES_MAX
    for target, outcomes in report.outcomes.items():
        # Mutations that are all refused, or all harmless, would test little.
        assert outcomes["refused"] > 100, target
        assert outcomes["accepted"] > 20, target


def test_the_same_seed_makes_the_same_frames() -> None:
    assert wire_fuzz.run(7, 0, 300).outcomes == wire_fuzz.run(7, 0, 300).outcomes
