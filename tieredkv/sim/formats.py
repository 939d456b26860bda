"""Formats of traces that can be read besides our own, each down to plain numbers.

Mooncake's (see tieredkv.sim.traces); Qwen-Bailian's JSON lines (alibaba-edu/qwen-bailian-usagetraces-anon:
times in seconds, blocks of 16 tokens, sessions as parents of chats); CSV with a header; and the log of a
vLLM server that logs requests at level DEBUG, whose tokens are hashed here and not kept.
"""

import csv
import re
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, NoReturn

import msgspec

from tieredkv.errors import ConfigError
from tieredkv.sim.lines import BLOCK_TOKENS, Count, LineReader, Progress, TraceError, numbered_lines

BAILIAN_BLOCK_TOKENS: Final = 16
_LINES_TO_GUESS: Final = 2000
_CSV_TIMES_MS: Final = {"timestamp_ms": 1.0, "timestamp_s": 1000.0}
# vLLM escapes line ends in prompts, so a request is one line; the ids come behind the prompt's text.
_LOGGED: Final = re.compile(
    rb"(?P<time>\d\d-\d\d \d\d:\d\d:\d\d).*prompt_token_ids: \[(?P<tokens>[\d, ]*)\], prompt_embeds shape"
)


@dataclass(frozen=True, slots=True)
class Imported:
    """One request. `names` number its blocks by whatever the file calls them, prefixes or contents."""

    line: int
    time_ms: float
    input_tokens: int
    output_tokens: int
    names: "array[int]"
    session: str
    hints: Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Import:
    """The requests of a file in its order, in blocks of `block_tokens`."""

    block_tokens: int
    requests: list[Imported]


def read_format(path: Path, source: str, block_tokens: int | None, on_progress: Progress | None = None) -> Import:
    """Read `path` in the format `source`, one of FORMATS. Raises TraceError, ConfigError.

    `block_tokens` is the size of the file's blocks where it does not say and the format's usual is wrong.
    """
    if source not in FORMATS:
        raise ConfigError(f"--from {source}: no such format; there are auto, {', '.join(FORMATS)}")
    imported = FORMATS[source](path, block_tokens, on_progress)
    if not imported.requests:
        raise TraceError(f"{path}: no request in it that {source} could mean; is --from right?")
    return imported


@dataclass(slots=True)
class _Names:
    """Numbers for whatever the file calls its blocks, in the order of first sight."""

    _numbers: dict[Hashable, int] = field(default_factory=dict[Hashable, int])

    def numbered(self, names: "list[int] | list[str] | list[tuple[int, ...]]") -> "array[int]":
        return array("q", [self._numbers.setdefault(name, len(self._numbers)) for name in names])


def guess_format(path: Path) -> str:
    """The format of `path` by its first lines. Raises TraceError."""
    for number, text in numbered_lines(path, None):
        if text.lstrip().startswith(b"{"):
            return "bailian" if b'"chat_id"' in text else "mooncake"
        if number == 1 and b"," in text and b"hash_ids" in text:
            return "csv"
        if b"prompt_token_ids: [" in text:
            return "vllm-log"
        if number == _LINES_TO_GUESS:
            break
    raise TraceError(f"{path}: its format cannot be told; say --from {', '.join(FORMATS)}")


def _mooncake(path: Path, block_tokens: int | None, on_progress: Progress | None) -> Import:
    reader = LineReader(path, block_tokens)
    names = _Names()
    requests = [
        Imported(
            reader.number,
            line.timestamp,
            line.input_length,
            line.output_length,
            names.numbered(line.hash_ids),
            "" if line.session_id is None else str(line.session_id),
            line.hints,
        )
        for line in reader.lines(on_progress)
    ]
    return Import(reader.block_tokens, requests)


class _Chat(msgspec.Struct):
    """A line of Qwen-Bailian's traces. `parent_chat_id` is -1 for the first turn."""

    chat_id: int
    parent_chat_id: int
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    input_length: Count
    output_length: Count
    hash_ids: list[int]


def _bailian(path: Path, block_tokens: int | None, on_progress: Progress | None) -> Import:
    size = block_tokens or BAILIAN_BLOCK_TOKENS
    decode = msgspec.json.Decoder(_Chat).decode
    names = _Names()
    root: dict[int, int] = {}
    requests: list[Imported] = []
    for number, text in numbered_lines(path, on_progress):
        if text.isspace():
            continue
        try:
            chat = decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            _fail(path, number, f"not a chat: {error}; see the format of qwen-bailian-usagetraces-anon")
        root[chat.chat_id] = root.get(
            chat.parent_chat_id, chat.parent_chat_id if chat.parent_chat_id >= 0 else chat.chat_id
        )
        if len(chat.hash_ids) < chat.input_length // size:
            _fail(path, number, _too_few(len(chat.hash_ids), chat.input_length, size))
        ids = chat.hash_ids[: -(-chat.input_length // size)]
        session = str(root[chat.chat_id])
        requests.append(
            Imported(
                number, chat.timestamp * 1000, chat.input_length, chat.output_length, names.numbered(ids), session, {}
            )
        )
    return Import(size, requests)


def _csv(path: Path, block_tokens: int | None, on_progress: Progress | None) -> Import:
    size = block_tokens or BLOCK_TOKENS
    names = _Names()
    requests: list[Imported] = []
    columns: list[str] = []
    for number, row in _rows(path, on_progress):
        if not columns:
            columns = [name.strip() for name in row]
            _check_header(path, number, columns)
            continue
        if len(row) != len(columns):
            _fail(path, number, f"{len(row)} values for {len(columns)} columns; quote what has a comma in it")
        cells = dict(zip(columns, row, strict=True))
        time_column = next(name for name in _CSV_TIMES_MS if name in columns)
        time_ms = _number(path, number, time_column, cells) * _CSV_TIMES_MS[time_column]
        tokens = int(_number(path, number, "input_length", cells))
        output_tokens = int(_number(path, number, "output_length", cells)) if "output_length" in cells else 0
        ids = cells["hash_ids"].split()
        if len(ids) not in {tokens // size, -(-tokens // size)}:
            _fail(path, number, _too_few(len(ids), tokens, size))
        session = cells.get("session_id", "").strip()
        requests.append(Imported(number, time_ms, tokens, output_tokens, names.numbered(ids), session, {}))
    return Import(size, requests)


def _rows(path: Path, on_progress: Progress | None) -> Iterator[tuple[int, list[str]]]:
    for number, text in numbered_lines(path, on_progress):
        try:
            (row,) = csv.reader([text.decode()]) if text.strip() else ([],)
        except (UnicodeDecodeError, csv.Error, ValueError) as error:
            _fail(path, number, f"not a row of CSV: {error}; write UTF-8, one request a line")
        if row:
            yield number, row


def _check_header(path: Path, number: int, columns: list[str]) -> None:
    right = "write timestamp_ms (or timestamp_s), input_length, hash_ids, and if known output_length, session_id"
    if len({*columns} & {*_CSV_TIMES_MS}) != 1:
        _fail(path, number, f"not one column of times among {', '.join(columns)}; {right}")
    missing = [name for name in ("input_length", "hash_ids") if name not in columns]
    if missing:
        _fail(path, number, f"no column {' and no '.join(missing)}; {right}")
    if len(set(columns)) < len(columns):
        _fail(path, number, f"a column comes twice; {right}")


def _number(path: Path, number: int, column: str, cells: Mapping[str, str]) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = -1.0
    whole = column in _CSV_TIMES_MS or value.is_integer()
    if not 0 <= value <= 1e15 or not whole:
        kind = "a time" if column in _CSV_TIMES_MS else "a whole number of tokens"
        _fail(path, number, f"{column}: {cells[column]!r} is not {kind} of at least 0")
    return value


def _vllm_log(path: Path, block_tokens: int | None, on_progress: Progress | None) -> Import:
    size = block_tokens or BLOCK_TOKENS
    names = _Names()
    requests: list[Imported] = []
    for number, text in numbered_lines(path, on_progress):
        match = _LOGGED.search(text)
        if match is None:
            continue
        tokens = [int(token) for token in match["tokens"].split(b",") if token.strip()]
        blocks = [tuple(tokens[start : start + size]) for start in range(0, len(tokens), size)]
        time_ms = _log_time_ms(path, number, match["time"].decode())
        requests.append(Imported(number, time_ms, len(tokens), 0, names.numbered(blocks), "", {}))
    return Import(size, requests)


def _log_time_ms(path: Path, number: int, text: str) -> float:
    """Milliseconds since the year began; a log has no year in it, so one with a 29 February serves."""
    try:
        time = datetime.strptime(f"2024-{text} +0000", "%Y-%m-%d %H:%M:%S %z")
    except ValueError:
        _fail(path, number, f"{text!r} is no time; vLLM logs as MONTH-DAY HH:MM:SS")
    return time.timestamp() * 1000


def _too_few(count: int, tokens: int, size: int) -> str:
    return (
        f"hash_ids: {count} ids for {tokens} tokens of input; blocks of {size} tokens make {-(-tokens // size)}; "
        "is --input-block-tokens right?"
    )


def _fail(path: Path, number: int, text: str) -> NoReturn:
    raise TraceError(f"{path}:{number}: {text}")


FORMATS: Final[dict[str, Callable[[Path, int | None, Progress | None], Import]]] = {
    "mooncake": _mooncake,
    "bailian": _bailian,
    "csv": _csv,
    "vllm-log": _vllm_log,
}
