"""Capacities as people write them."""

import pytest

from tieredkv.errors import ConfigError
from tieredkv.sim.capacities import Size, parse_capacities

GIB = 1 << 30


def test_fractions_chunks_and_bytes() -> None:
    fraction, chunks, size, whole = parse_capacities("0.003, 5000c,64GiB,1")
    assert fraction.size(105_145, None) == Size(315, 0.003)
    assert chunks.size(10_000, None) == Size(5000, 0.5)
    assert size.size(1 << 20, 2 << 20) == Size(32_768, 1 / 32)
    assert whole.size(77, None) == Size(77, 1.0)


def test_each_once() -> None:
    assert len(parse_capacities("0.1,0.2,0.1")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "0", "-0.1", "1.5", "nan", "inf", "1e400", "5000", "0c", "-3c", "1.5c", "c", "0GiB", "lots", "1,,2", "64GiBc"],
)
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--capacity .*write a fraction of the trace's unique blocks"):
        parse_capacities(text)


def test_less_than_a_block() -> None:
    (fraction,) = parse_capacities("0.001")
    with pytest.raises(ConfigError, match=r"--capacity 0.001: of 900 unique blocks that is less than one block;"):
        fraction.size(900, None)
    (chunks,) = parse_capacities("3c")
    with pytest.raises(ConfigError, match=r"--capacity 3c: that is less than one block for each of 4 pools"):
        chunks.size(900, None, 4)
    (size,) = parse_capacities("1MiB")
    with pytest.raises(ConfigError, match=r"--capacity 1MiB: at 2097152 bytes a chunk that is less than one block"):
        size.size(900, 2 << 20)
    with pytest.raises(ConfigError, match=r"--capacity 1MiB: how many bytes is a chunk\? add --chunk-bytes"):
        size.size(900, None)
