"""Traces: what was asked of an engine, when. The format is that of Mooncake's open traces.

JSON lines, plain or gzip, one request a line, in order of time (FAST'25, kvcache-ai/Mooncake):

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}

`hash_ids` name the blocks of the prompt, head first; equal ids mean equal prefixes up to and including
that block, so an id always follows the same id. Optional: `session_id`, `block_tokens` (tokens of a block,
as our recorder writes it), `hints` (see tieredkv.policy.hints). Other fields are ignored.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress, count
from operator import ne
from pathlib import Path
from typing import Final

from tieredkv.sim.lines import FORMAT_HINT, LineReader, Progress, TraceError
from tieredkv.types import Key

KEY_BYTES: Final = 16
_NOBODY: Final = -1


@dataclass(frozen=True, slots=True)
class Request:
    """One arrival.

    `time_s` counts from the first request of the trace; `keys` is the chain of its blocks, head first,
    one object per id in the whole trace; `tokens` is the length of the prompt; `session` is empty when
    the trace has none.
    """

    time_s: float
    keys: list[Key]
    tokens: int
    output_tokens: int
    session: str
    hints: Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Trace:
    """All requests of one file, in order of time. `block_refs` is the sum of their chains' lengths."""

    name: str
    block_tokens: int
    requests: list[Request]
    block_refs: int
    unique_blocks: int


def read_trace(
    path: Path, *, block_tokens: int | None = None, full_blocks: bool = True, on_progress: Progress | None = None
) -> Trace:
    """Read the trace at `path`, plain or gzip. Raises TraceError.

    `block_tokens` is needed when it is neither in the trace nor 512. `full_blocks` leaves out the last
    id of a prompt that does not fill it: vLLM never stores such a block.
    """
    chains = _Chains()
    reader = LineReader(path, block_tokens)
    requests: list[Request] = []
    refs = 0
    for line in reader.lines(on_progress):
        ids = line.hash_ids[: line.input_length // reader.block_tokens] if full_blocks else line.hash_ids
        wrong = chains.add(ids)
        if wrong:
            reader.fail(wrong)
        time_s = reader.time_s(line.timestamp)
        keys = chains.keys(ids)
        session = "" if line.session_id is None else str(line.session_id)
        requests.append(Request(time_s, keys, line.input_length, line.output_length, session, line.hints))
        refs += len(keys)
    if not requests:
        raise TraceError(f"{path}:1: no request in it; {FORMAT_HINT}")
    return Trace(_name(path), reader.block_tokens, requests, refs, len(chains))


class _Chains:
    """Which id follows which, and the key of each."""

    def __init__(self) -> None:
        self._key_of: dict[int, Key] = {}
        self._parent_of: dict[int, int] = {}

    def add(self, ids: list[int]) -> str:
        """Learn a chain; what is wrong with it, or nothing."""
        parents = [_NOBODY, *ids[:-1]] if ids else []
        # A head that is known and follows what it followed before cannot repeat itself: depths are known.
        known_head = next(compress(count(), map(ne, map(self._parent_of.get, ids), parents)), len(ids))
        if known_head == len(ids):
            return ""
        if len(set(ids)) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            return f"hash_ids: {_short(twice)} comes twice; ids are chained, so a prompt has each at most once"
        for each, parent in zip(ids[known_head:], parents[known_head:], strict=True):
            known = self._parent_of.get(each)
            if known is None:
                if not 0 <= each < 1 << (8 * KEY_BYTES):
                    return f"hash_ids: {_short(each)} is no id; ids are whole numbers from 0 to 2^{8 * KEY_BYTES} - 1"
                self._parent_of[each] = parent
                self._key_of[each] = Key(each.to_bytes(KEY_BYTES, "big"))
            elif known != parent:
                before = "nothing" if known == _NOBODY else str(known)
                now = "nothing" if parent == _NOBODY else str(parent)
                return (
                    f"hash_ids: {each} follows {now}, and followed {before} before; ids must be chained: "
                    "equal ids mean equal prefixes"
                )
        return ""

    def keys(self, ids: list[int]) -> list[Key]:
        return list(map(self._key_of.__getitem__, ids))

    def __len__(self) -> int:
        return len(self._key_of)


def _name(path: Path) -> str:
    """The file's name without what tells its format."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl") or path.name


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "a number of more than 20 digits"
