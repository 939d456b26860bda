import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.config.units import approximate_size, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64GiB", 64 << 30),
        ("64Gi", 64 << 30),
        ("64 gib", 64 << 30),
        ("512MB", 512_000_000),
        ("512M", 512_000_000),
        ("1.5KiB", 1536),
        ("2Ti", 2 << 40),
        ("17", 17),
        ("17B", 17),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes_in_the_units_that_people_use(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "value", ["", "GiB", "64 Gib x", "64GX", "-1GiB", "1e9", "0.3B", "1,5GiB", -1, True, 1.5, None, []]
)
def test_what_is_not_a_size_is_refused_with_what_would_be(value: object) -> None:
    with pytest.raises(ValueError, match="64GiB"):
        parse_size(value)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_formatted_size_reads_back_exactly(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("2s", 2.0), ("1.5min", 90.0), ("250 us", 0.00025), ("1h", 3600.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [50, 0.05, "50.0", "ms", "50 mss", "-1s", None, True])
def test_a_duration_without_a_unit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="50ms"):
        parse_duration(value)


@given(st.floats(min_value=1e-6, max_value=1e5))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-8)


def test_sizes_for_people() -> None:
    assert approximate_size(25_125_558_681) == "23.4 GiB"
    assert approximate_size(12) == "12 B"
