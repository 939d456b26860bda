"""The reader of traces: what it makes of good ones, and one clear line for each bad one."""

import gzip
import json
from pathlib import Path

import pytest

from tieredkv.sim.traces import TraceError, read_trace

GOOD = {"timestamp": 1000, "input_length": 1300, "output_length": 7, "hash_ids": [0, 1, 2]}
LATER = {"timestamp": 3500.5, "input_length": 1024, "output_length": 0, "hash_ids": [0, 3]}


def lines(*objects: dict[str, object]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


def write(folder: Path, content: bytes, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_full_blocks_of_a_plain_trace(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, lines(GOOD, LATER)))
    assert (trace.name, trace.block_tokens, trace.block_refs, trace.unique_blocks) == ("trace", 512, 4, 3)
    first, second = trace.requests
    assert (first.time_s, second.time_s) == (0, 2.5005)
    assert (first.tokens, first.output_tokens, first.session, first.hints) == (1300, 7, "", {})
    assert [len(first.keys), len(second.keys)] == [2, 2]
    assert first.keys[0] is second.keys[0]
    assert {len(key) for key in first.keys} == {16}
    assert first.keys[1] != second.keys[1]


def test_partial_blocks_on_request_and_gzip(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(lines(GOOD, LATER)), "some.jsonl.gz")
    trace = read_trace(path, full_blocks=False)
    assert (trace.name, trace.block_refs, trace.unique_blocks) == ("some", 5, 4)


def test_optional_fields_and_blank_lines(tmp_path: Path) -> None:
    said = GOOD | {"session_id": 9, "hints": {"keep": True, "return_within_s": 3.5}, "block_tokens": 512, "type": "x"}
    trace = read_trace(write(tmp_path, b"\n" + lines(said) + b"  \n"))
    (request,) = trace.requests
    assert (request.session, request.hints) == ("9", {"keep": True, "return_within_s": 3.5})


def test_a_recorded_trace_holds_full_blocks_and_says_how_long_they_are(tmp_path: Path) -> None:
    recorded = {"timestamp": 0, "input_length": 50, "output_length": 0, "hash_ids": [0, 1, 2], "block_tokens": 16}
    assert read_trace(write(tmp_path, lines(recorded))).block_tokens == 16


def test_a_prompt_shorter_than_a_block_has_no_keys(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, lines(GOOD | {"input_length": 3, "hash_ids": [0]})))
    assert (trace.requests[0].keys, trace.unique_blocks) == ([], 0)


def test_progress_ends_at_the_length_of_the_file(tmp_path: Path) -> None:
    content = gzip.compress(lines(*[GOOD] * 600))
    seen: list[tuple[int, int]] = []
    read_trace(write(tmp_path, content), on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[-1] == (len(content), len(content))


WRONG_SECOND_LINES = [
    (b"{not json}\n", "not a request: JSON is malformed"),
    (b'{"timestamp": 1', "the file may be cut off here"),
    (b"\xff\xfe\n", "not a request"),
    (b"[1, 2]\n", "Expected `object`, got `array`"),
    (b"[" * 100_000 + b"\n", "not a request"),
    (lines({"timestamp": 2000}), "missing required field `input_length`"),
    (lines({k: v for k, v in LATER.items() if k != "timestamp"}), "missing required field `timestamp`"),
    (lines({k: v for k, v in LATER.items() if k != "output_length"}), "missing required field `output_length`"),
    (lines({k: v for k, v in LATER.items() if k != "hash_ids"}), "missing required field `hash_ids`"),
    (lines(LATER | {"timestamp": "2"}), "Expected `float`, got `str` - at `$.timestamp`"),
    (lines(LATER | {"timestamp": float("nan")}), "JSON is malformed"),
    (lines(LATER | {"timestamp": float("inf")}), "JSON is malformed"),
    (lines(LATER).replace(b"3500.5", b"1e999"), "Number out of range - at `$.timestamp`"),
    (lines(LATER | {"timestamp": -1}), "Expected `float` >= 0.0 - at `$.timestamp`"),
    (lines(LATER | {"timestamp": 999}), "timestamp: 999 comes after 1000; sort the lines"),
    (lines(LATER | {"input_length": -512}), "Expected `int` >= 0 - at `$.input_length`"),
    (lines(LATER | {"input_length": True}), "Expected `int`, got `bool` - at `$.input_length`"),
    (lines(LATER | {"input_length": 1 << 60}), "at `$.input_length`"),
    (lines(LATER | {"output_length": -1}), "at `$.output_length`"),
    (lines(LATER | {"hash_ids": [0, 3.5]}), "Expected `int`, got `float` - at `$.hash_ids[1]`"),
    (lines(LATER | {"hash_ids": [0, None]}), "Expected `int`, got `null`"),
    (lines(LATER | {"hash_ids": [0, -1]}), "hash_ids: -1 is no id; ids are whole numbers from 0"),
    (lines(LATER | {"hash_ids": [0, 1 << 128]}), "hash_ids: a number of more than 20 digits is no id"),
    (lines(LATER).replace(b"[0, 3]", b"[0, 1" + b"0" * 5000 + b"]"), "2: "),
    (lines(LATER | {"hash_ids": [0]}), "hash_ids: 1 ids for input_length 1024; blocks of 512 tokens make 2;"),
    (lines(LATER | {"hash_ids": [0, 3, 4]}), "hash_ids: 3 ids for input_length 1024"),
    (lines(LATER | {"hash_ids": [0, 0]}), "hash_ids: 0 comes twice"),
    (lines(LATER | {"hash_ids": [5, 1]}), "hash_ids: 1 follows 5, and followed 0 before; ids must be chained"),
    (lines(LATER | {"hash_ids": [1, 7]}), "hash_ids: 1 follows nothing, and followed 0 before"),
    (lines(LATER | {"block_tokens": 0}), "at `$.block_tokens`"),
    (lines(LATER | {"block_tokens": 256}), "block_tokens: 256, but the lines before have none"),
    (lines(LATER | {"hints": ["keep"]}), "at `$.hints`"),
    (lines(LATER | {"session_id": [1]}), "at `$.session_id`"),
]


@pytest.mark.parametrize(("second", "message"), WRONG_SECOND_LINES, ids=range(len(WRONG_SECOND_LINES)))
def test_each_wrong_line_is_named(tmp_path: Path, second: bytes, message: str) -> None:
    path = write(tmp_path, lines(GOOD) + second)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_known_chain_may_not_begin_in_its_middle_even_when_all_of_it_is_known(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="follows nothing"):
        read_trace(write(tmp_path, lines(GOOD, LATER | {"hash_ids": [1, 2]})), full_blocks=False)


def test_block_sizes_must_agree(tmp_path: Path) -> None:
    said = GOOD | {"block_tokens": 512}
    with pytest.raises(TraceError, match=r":1: block_tokens: 512, but 256 was asked for"):
        read_trace(write(tmp_path, lines(said)), block_tokens=256)
    with pytest.raises(TraceError, match=r":2: block_tokens: 256, but 512 was a line before"):
        read_trace(write(tmp_path, lines(said, LATER | {"block_tokens": 256})))


def test_a_wrong_block_size_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r":1: hash_ids: 3 ids .* 16 tokens make 82 .*is the block size right"):
        read_trace(write(tmp_path, lines(GOOD)), block_tokens=16)


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"")], ids=["empty", "blank", "empty gzip"])
def test_nothing_in_it(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(TraceError, match="no request in it") as raised:
        read_trace(path)
    assert str(raised.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize("left", [3, 12, 60, -9, -1])
def test_a_truncated_gzip_file(tmp_path: Path, left: int) -> None:
    path = write(tmp_path, gzip.compress(lines(*[GOOD] * 50))[:left])
    with pytest.raises(TraceError, match=r":\d+: the gzip file is cut off"):
        read_trace(path)


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(lines(*[GOOD] * 50)))
    content[40] ^= 0xFF
    with pytest.raises(TraceError, match=r":\d+: (the gzip file is damaged|not a request)"):
        read_trace(write(tmp_path, bytes(content)))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file or directory; name a trace file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path)
