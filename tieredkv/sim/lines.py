"""Lines of a trace file, each checked by itself and against the ones before."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, NoReturn

import msgspec

from tieredkv.errors import TieredKVError

BLOCK_TOKENS: Final = 512
"""Tokens of a block where neither the trace nor the caller says: those of Mooncake's traces."""

BLOCK_TOKENS_MAX: Final = 1 << 20
FORMAT_HINT: Final = (
    "write one JSON object a line with timestamp (milliseconds), input_length, output_length (tokens) and hash_ids "
    "(whole numbers)"
)
_PROGRESS_LINES: Final = 256
_GZIP_MAGIC: Final = b"\x1f\x8b"

Progress = Callable[[int, int], None]
"""Told how many bytes of the file were read, and how many there are."""


class TraceError(TieredKVError, ValueError):
    """A trace that cannot be used. Text: FILE:LINE: what; what would be right."""


Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


def _no_hints() -> dict[str, str | int | float | bool]:
    return {}


class Line(msgspec.Struct):
    """One request as Mooncake's traces write it (see tieredkv.sim.traces)."""

    timestamp: Milliseconds
    input_length: Count
    output_length: Count
    hash_ids: list[int]
    session_id: int | str | None = None
    block_tokens: Annotated[int, msgspec.Meta(ge=1, le=BLOCK_TOKENS_MAX)] | None = None
    hints: dict[str, str | int | float | bool] = msgspec.field(default_factory=_no_hints)


def numbered_lines(path: Path, on_progress: Progress | None) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line of a file, plain or gzip. Raises TraceError."""
    number = 0
    try:
        with path.open("rb") as raw:
            total = path.stat().st_size
            for number, text in enumerate(_unpacked(raw), 1):
                if on_progress is not None and number % _PROGRESS_LINES == 0:
                    on_progress(raw.tell(), total)
                yield number, text
            if on_progress is not None:
                on_progress(total, total)
    except EOFError:
        raise TraceError(f"{path}:{number + 1}: the gzip file is cut off; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(
            f"{path}:{number + 1}: the gzip file is damaged ({error}); copy or download it again"
        ) from None
    except OSError as error:
        raise TraceError(f"{path}: cannot read it: {error.strerror}; name a trace file") from None


def _unpacked(raw: BinaryIO) -> BinaryIO | io.BufferedReader:
    magic = raw.read(len(_GZIP_MAGIC))
    raw.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if magic == _GZIP_MAGIC else raw


class LineReader:
    """The lines of one file, each checked by itself and against the ones before."""

    def __init__(self, path: Path, block_tokens: int | None) -> None:
        self.block_tokens = block_tokens or BLOCK_TOKENS
        self._path = path
        self._asked = block_tokens
        self._stated: int | None = None
        self._line = 1
        self._checked = False
        self._first_ms = 0.0
        self._last_ms = -1.0

    @property
    def number(self) -> int:
        """Number of the line that was read last, from 1."""
        return self._line

    def fail(self, text: str) -> NoReturn:
        raise TraceError(f"{self._path}:{self._line}: {text}")

    def lines(self, on_progress: Progress | None) -> Iterator[Line]:
        """Every line that is not blank, checked but for its ids."""
        decode = msgspec.json.Decoder(Line).decode
        for number, text in numbered_lines(self._path, on_progress):
            self._line = number
            if text.isspace():
                continue
            try:
                line = decode(text)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                cut = "" if text.endswith(b"\n") else " (the file may be cut off here)"
                self.fail(f"not a request: {error}{cut}; {FORMAT_HINT}")
            self._check(line)
            yield line

    def time_s(self, timestamp_ms: float) -> float:
        """Seconds since the first request."""
        if self._last_ms < 0:
            self._first_ms = timestamp_ms
        elif timestamp_ms < self._last_ms:
            self.fail(
                f"timestamp: {timestamp_ms:.15g} comes after {self._last_ms:.15g}; sort the lines by timestamp "
                "(milliseconds)"
            )
        self._last_ms = timestamp_ms
        return (timestamp_ms - self._first_ms) / 1000

    def _check(self, line: Line) -> None:
        stated = line.block_tokens
        if stated is not None and stated != (self._stated or self._asked or stated):
            where = "a line before" if self._stated else "asked for"
            self.fail(f"block_tokens: {stated}, but {self._stated or self._asked} was {where}; all must agree")
        if stated is not None and self._stated is None:
            if self._checked and stated != self.block_tokens:
                self.fail(f"block_tokens: {stated}, but the lines before have none; write it in every line")
            self._stated = self.block_tokens = stated
        self._checked = True
        whole, rest = divmod(line.input_length, self.block_tokens)
        if len(line.hash_ids) not in {whole, whole + (rest > 0)}:
            right = f"{whole}" if not rest else f"{whole + 1} (or {whole} without the partial one)"
            self.fail(
                f"hash_ids: {len(line.hash_ids)} ids for input_length {line.input_length}; blocks of "
                f"{self.block_tokens} tokens make {right}; is the block size right?"
            )
