"""From any format that we read to ours: prefix-chained ids without gaps, another block size, a part of the time."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tieredkv.errors import ConfigError
from tieredkv.sim.formats import Import, Imported, guess_format, read_format
from tieredkv.sim.lines import Progress, TraceError
from tieredkv.sim.records import Record, write_records


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to make of a trace. `block_tokens`: None keeps that of the input.

    `first_s` keeps the requests of the first seconds; `split` (between 0 and 1) makes two files, the
    requests before and from that part of the time on.
    """

    source: str = "auto"
    input_block_tokens: int | None = None
    block_tokens: int | None = None
    sort: bool = False
    first_s: float | None = None
    split: float | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written."""

    path: Path
    requests: int


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote, and what a person should know of it."""

    files: list[Written]
    notes: list[str]


def convert(path: Path, out: Path, how: Conversion, *, on_progress: Progress | None = None) -> Converted:
    """Convert `path` to `out`, or with `split` to OUT.train and OUT.test. Raises TraceError, ConfigError.

    Ids become numbers in the order of first sight, equal exactly where whole prefixes are equal.
    """
    if out.exists() and path.exists() and out.samefile(path):
        raise ConfigError(f"{out}: the input itself; name another file to write")
    source = guess_format(path) if how.source == "auto" else how.source
    # A log has tokens, not blocks: they are cut as they are wanted.
    cut_tokens = how.block_tokens if source == "vllm-log" else how.input_block_tokens
    imported = read_format(path, source, cut_tokens, on_progress)
    block_tokens = how.block_tokens or imported.block_tokens
    requests = _in_order(path, imported, how.sort)
    if how.first_s is not None:
        end_ms = requests[0].time_ms + how.first_s * 1000
        requests = [request for request in requests if request.time_ms < end_ms]
    chained, notes = _chained(requests)
    records = list(_dense(_reblocked(requests, chained, imported.block_tokens, block_tokens)))
    if block_tokens < imported.block_tokens:
        notes.append(
            f"blocks of {imported.block_tokens} tokens were cut into {block_tokens}: what prompts share of a block "
            "that is not all equal is unknown, and counts as not shared"
        )
    if how.split is None:
        parts = [(out, records)]
    else:
        border_ms = records[-1].time_ms * how.split
        parts = [
            (part_path(out, "train"), [record for record in records if record.time_ms < border_ms]),
            (part_path(out, "test"), [record for record in records if record.time_ms >= border_ms]),
        ]
    for part, of_part in parts:
        if not of_part:
            raise ConfigError(f"{part}: no request would be in it; choose another --split")
    files = [Written(part, write_records(part, of_part, block_tokens)) for part, of_part in parts]
    return Converted(files, notes)


def part_path(path: Path, part: str) -> Path:
    """`path` with `part` before the endings that tell the format: x.jsonl.gz -> x.train.jsonl.gz."""
    endings = "".join(suffix for suffix in path.suffixes[-2:] if suffix in {".jsonl", ".json", ".gz"})
    return path.with_name(f"{path.name.removesuffix(endings)}.{part}{endings}")


def _in_order(path: Path, imported: Import, sort: bool) -> list[Imported]:
    requests = imported.requests
    if sort:
        return sorted(requests, key=lambda request: request.time_ms)
    for before, after in pairwise(requests):
        if after.time_ms < before.time_ms:
            raise TraceError(
                f"{path}:{after.line}: its time is before that of the request in line {before.line}; say --sort"
            )
    return requests


def _chained(requests: list[Imported]) -> "tuple[list[array[int]], list[str]]":
    """Ids of prefixes instead of the file's names of blocks."""
    ids: dict[tuple[int, int], int] = {}
    chains: list[array[int]] = []
    names: set[int] = set()
    for request in requests:
        chain = array("q")
        parent = -1
        for name in request.names:
            parent = ids.setdefault((parent, name), len(ids))
            chain.append(parent)
        chains.append(chain)
        names.update(request.names)
    several = len(ids) - len(names)
    note = f"{several} ids stood behind different prefixes: they name contents; each prefix has an id of its own now"
    return chains, [note] if several else []


def _reblocked(requests: list[Imported], chains: "list[array[int]]", old: int, new: int) -> Iterator[Record]:
    """Records with ids in blocks of `new` tokens; times count from the first request."""
    if max(old, new) % min(old, new):
        raise ConfigError(f"--block-tokens {new}: neither a multiple nor a divisor of the input's {old}")
    start_ms = requests[0].time_ms
    fresh = max((max(chain, default=-1) for chain in chains), default=-1) + 1
    for request, chain in zip(requests, chains, strict=True):
        ids: list[int]
        if new >= old:
            ids = _merged(chain, new // old)
        else:
            # An id that the file left out, that of a partial block, is nobody else's.
            whole = -(-request.input_tokens // old)
            full = [*chain, *range(fresh, fresh + whole - len(chain))]
            fresh += whole - len(chain)
            parts = old // new
            ids = [each * parts + part for each in full for part in range(parts)]
            ids = ids[: -(-request.input_tokens // new)]
        time_ms = round(request.time_ms - start_ms)
        yield Record(time_ms, request.input_tokens, request.output_tokens, ids, request.session, request.hints)


def _merged(chain: "array[int]", parts: int) -> list[int]:
    """The id of the last of each `parts` blocks, which names the prefix up to there, the rest's included."""
    ids = chain[parts - 1 :: parts].tolist()
    return [*ids, chain[-1]] if len(chain) % parts else ids


def _dense(records: Iterator[Record]) -> Iterator[Record]:
    """Ids without gaps, in the order of first sight."""
    numbers: dict[int, int] = {}
    for record in records:
        ids = [numbers.setdefault(each, len(numbers)) for each in record.ids]
        yield Record(record.time_ms, record.input_tokens, record.output_tokens, ids, record.session, record.hints)
