"""Lines of a trace file as plain numbers: what generators make and converters turn around."""

import gzip
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

import msgspec

from tieredkv.errors import TieredKVError
from tieredkv.sim.traces import KEY_BYTES, Request, Trace
from tieredkv.types import Key

PROGRESS_RECORDS: Final = 1000


class TraceWriteError(TieredKVError):
    """A trace file cannot be written."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. `ids` are prefix-chained numbers of its blocks; the last one may be a partial block."""

    time_ms: int
    input_tokens: int
    output_tokens: int
    ids: Sequence[int]
    session: str = ""
    hints: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, str | int | float | bool])


def write_records(
    path: Path,
    records: Iterable[Record],
    block_tokens: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Write a Mooncake JSONL file (gzip when the name ends in .gz); return the number of lines.

    Equal records give equal bytes. Raises TraceWriteError when the file cannot be written.
    """
    count = 0
    encode = msgspec.json.encode
    try:
        with _opened(path) as file:
            for record in records:
                line: dict[str, object] = {
                    "timestamp": record.time_ms,
                    "input_length": record.input_tokens,
                    "output_length": record.output_tokens,
                    "hash_ids": record.ids,
                    "block_tokens": block_tokens,
                }
                if record.session:
                    line["session_id"] = record.session
                if record.hints:
                    line["hints"] = record.hints
                file.write(encode(line) + b"\n")
                count += 1
                if on_progress is not None and count % PROGRESS_RECORDS == 0:
                    on_progress(count)
    except OSError as error:
        raise TraceWriteError(f"{path}: cannot be written: {error.strerror}; name a file that you may write") from None
    return count


def as_trace(records: Iterable[Record], name: str, block_tokens: int) -> Trace:
    """What `read_trace` makes of the file that `write_records` writes: full blocks only."""
    keys: dict[int, Key] = {}
    requests: list[Request] = []
    refs = 0
    start_ms: int | None = None
    for record in records:
        start_ms = record.time_ms if start_ms is None else start_ms
        chain: list[Key] = []
        for number in record.ids[: record.input_tokens // block_tokens]:
            key = keys.get(number)
            if key is None:
                key = keys[number] = Key(number.to_bytes(KEY_BYTES, "big"))
            chain.append(key)
        time_s = (record.time_ms - start_ms) / 1000
        requests.append(Request(time_s, chain, record.input_tokens, record.output_tokens, record.session, record.hints))
        refs += len(chain)
    return Trace(name, block_tokens, requests, refs, len(keys))


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    with path.open("wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        # Without the name and the time of writing in it, equal content is equal bytes.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield cast(IO[bytes], packed)
