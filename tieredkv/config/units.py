"""Sizes and durations as people write them: 64GiB, Kubernetes' 64Gi, 512MB, 50ms, 2s."""

import re
from typing import Final

SIZE_HINT: Final = "write a size such as 64GiB, 64Gi, 512MB, or a whole number of bytes"
DURATION_HINT: Final = "write a duration with its unit, such as 50ms, 2s or 1.5min"

_BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE_UNITS: Final = (
    {"": 1, "b": 1}
    | _BINARY
    | {f"{prefix}b": factor for prefix, factor in _BINARY.items()}
    | _DECIMAL
    | {f"{prefix}b": factor for prefix, factor in _DECIMAL.items()}
)
_DURATION_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_NUMBER_AND_UNIT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Bytes of a size. Raises ValueError with what would be right."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"a size is not negative; {SIZE_HINT}")
        return value
    match = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"not a size; {SIZE_HINT}")
    size_bytes = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    if size_bytes != int(size_bytes):
        raise ValueError(f"not a whole number of bytes; {SIZE_HINT}")
    return int(size_bytes)


def parse_duration(value: object) -> float:
    """Seconds of a duration. A bare number is refused: its unit would be a guess. Raises ValueError."""
    match = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
    factor = _DURATION_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"not a duration; {DURATION_HINT}")
    return float(match[1]) * factor


def format_size(size_bytes: int) -> str:
    """The shortest exact text that `parse_size` reads back as `size_bytes`."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def approximate_size(size_bytes: int) -> str:
    """A size for a person to read, with one decimal: 23.4 GiB."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def format_duration(seconds: float) -> str:
    """A text that `parse_duration` reads back as `seconds` (to 9 digits)."""
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.9g}s"
    return f"{seconds * 1e3:.9g}ms" if seconds >= 1e-3 else f"{seconds * 1e6:.9g}us"
