"""Sizes of a simulated tier as people write them: 0.03 (of a trace's unique blocks), 5000c, 64GiB."""

from dataclasses import dataclass
from typing import Final

from tieredkv.config.units import parse_size
from tieredkv.errors import ConfigError

CAPACITY_HINT: Final = (
    "write a fraction of the trace's unique blocks such as 0.03, a number of chunks such as 5000c, "
    "or a size such as 64GiB"
)


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """A capacity for one trace: in blocks, and as a fraction of its unique blocks (as written, if it was)."""

    blocks: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """One of the three is set. `text` is what was written."""

    text: str
    fraction: float | None = None
    chunks: int | None = None
    size_bytes: int | None = None

    def size(self, unique_blocks: int, chunk_bytes: int | None, pools: int = 1) -> Size:
        """How many blocks of a trace fit. Raises ConfigError when that is not one for each of `pools`."""
        if self.fraction is not None:
            blocks, of = int(self.fraction * unique_blocks), f"of {unique_blocks} unique blocks "
        elif self.chunks is not None:
            blocks, of = self.chunks, ""
        else:
            assert self.size_bytes is not None
            if chunk_bytes is None:
                raise ConfigError(
                    f"--capacity {self.text}: how many bytes is a chunk? add --chunk-bytes 2MiB or --bytes-per-token"
                )
            blocks, of = self.size_bytes // chunk_bytes, f"at {chunk_bytes} bytes a chunk "
        if blocks < pools:
            least = "one block" if pools == 1 else f"one block for each of {pools} pools"
            raise ConfigError(f"--capacity {self.text}: {of}that is less than {least}; {CAPACITY_HINT}")
        return Size(blocks, blocks / max(1, unique_blocks) if self.fraction is None else self.fraction)


def parse_capacities(text: str) -> list[Capacity]:
    """The capacities of a list with commas, each once. Raises ConfigError."""
    parsed = {part.strip(): _parse(part.strip()) for part in text.split(",")}
    return list(parsed.values())


def _parse(text: str) -> Capacity:
    try:
        if text.endswith("c"):
            return Capacity(text, chunks=_positive(int(text[:-1])))
        try:
            fraction = float(text)
        except ValueError:
            return Capacity(text, size_bytes=_positive(parse_size(text)))
    except ValueError:
        raise ConfigError(f"--capacity {text}: not a capacity; {CAPACITY_HINT}") from None
    if not 0 < fraction <= 1:
        raise ConfigError(f"--capacity {text}: a fraction is above 0 and at most 1; {CAPACITY_HINT}")
    return Capacity(text, fraction=fraction)


def _positive(number: int) -> int:
    if number < 1:
        raise ValueError
    return number
