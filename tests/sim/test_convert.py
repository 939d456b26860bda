import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tieredkv.errors import ConfigError, TieredKVError
from tieredkv.sim.convert import Conversion, convert, part_path
from tieredkv.sim.generate import generated_records
from tieredkv.sim.records import write_records
from tieredkv.sim.traces import Trace, TraceError, read_trace
from tieredkv.sim.workload import KINDS, make_workload


def _written(path: Path, kind: str = "chat", block_tokens: int = 512, requests: int = 300) -> Path:
    records = generated_records(make_workload(kind, {}), seed=2, requests=requests, block_tokens=block_tokens)
    write_records(path, records, block_tokens)
    return path


def _shape(trace: Trace) -> list[tuple[float, int, str, list[int]]]:
    """What the requests are, with keys numbered by first sight: equal for traces that mean the same."""
    numbers: dict[bytes, int] = {}
    return [
        (each.time_s, each.tokens, each.session, [numbers.setdefault(key, len(numbers)) for key in each.keys])
        for each in trace.requests
    ]


def _lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_small_blocks_merge_into_those_of_the_same_tokens(kind: str, tmp_path: Path) -> None:
    small = _written(tmp_path / "small.gz", kind, 64)
    large = _written(tmp_path / "large.gz", kind, 512)
    convert(small, tmp_path / "out.gz", Conversion(block_tokens=512))
    merged = read_trace(tmp_path / "out.gz")
    assert merged.block_tokens == 512
    assert _shape(merged) == _shape(read_trace(large))


def test_large_blocks_split_into_as_many_as_they_hold_and_share_no_more(tmp_path: Path) -> None:
    large = _written(tmp_path / "large.gz", "chat", 512)
    converted = convert(large, tmp_path / "out.gz", Conversion(block_tokens=64))
    split = read_trace(tmp_path / "out.gz")
    assert "counts as not shared" in converted.notes[0]
    assert [len(each.keys) for each in split.requests] == [each.tokens // 64 for each in split.requests]
    true = read_trace(_written(tmp_path / "small.gz", "chat", 64))
    assert true.unique_blocks < split.unique_blocks < 1.6 * true.unique_blocks
    convert(tmp_path / "out.gz", tmp_path / "back.gz", Conversion(block_tokens=512))
    assert _shape(read_trace(tmp_path / "back.gz")) == _shape(read_trace(large))


def test_blocks_of_a_recorder_that_leaves_the_partial_one_out_split_too(tmp_path: Path) -> None:
    floor = [{"timestamp": 0, "input_length": 100, "output_length": 0, "hash_ids": [7], "block_tokens": 64}]
    for size, blocks in ((32, 3), (16, 6), (128, 0)):
        convert(_lines(tmp_path / "in", floor), tmp_path / "out", Conversion(block_tokens=size))
        assert len(read_trace(tmp_path / "out").requests[0].keys) == blocks


def test_conversion_without_a_change_only_renames(tmp_path: Path) -> None:
    path = _written(tmp_path / "in.jsonl.gz", "agentic")
    convert(path, tmp_path / "out.jsonl", Conversion())
    assert _shape(read_trace(tmp_path / "out.jsonl")) == _shape(read_trace(path))
    convert(tmp_path / "out.jsonl", tmp_path / "again.jsonl.gz", Conversion())
    assert (tmp_path / "out.jsonl").read_bytes() == gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes())


def test_unsorted_requests_are_refused_or_sorted(tmp_path: Path) -> None:
    def at(time_ms: int, ids: list[int]) -> dict[str, object]:
        return {"timestamp": time_ms, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}

    path = _lines(tmp_path / "in", [at(5000, [3, 9]), "", at(2000, [3]), at(7000, [3, 9])])
    with pytest.raises(TraceError, match=r"in:3: its time is before that of the request in line 1; say --sort"):
        convert(path, tmp_path / "out", Conversion())
    convert(path, tmp_path / "out", Conversion(sort=True))
    trace = read_trace(tmp_path / "out")
    assert [each.time_s for each in trace.requests] == [0, 3, 5]
    assert _shape(trace)[1][3] == _shape(trace)[2][3] == [0, 1]


def test_parts_of_the_time(tmp_path: Path) -> None:
    path = _written(tmp_path / "in.jsonl.gz")
    whole = read_trace(path)
    converted = convert(path, tmp_path / "out.jsonl.gz", Conversion(split=0.6))
    assert [written.path.name for written in converted.files] == ["out.train.jsonl.gz", "out.test.jsonl.gz"]
    train, test = (read_trace(written.path) for written in converted.files)
    border_s = whole.requests[-1].time_s * 0.6
    assert len(train.requests) == sum(each.time_s < border_s for each in whole.requests)
    assert len(train.requests) + len(test.requests) == len(whole.requests)
    assert [each.tokens for each in [*train.requests, *test.requests]] == [each.tokens for each in whole.requests]
    convert(path, tmp_path / "first.gz", Conversion(first_s=30))
    first = read_trace(tmp_path / "first.gz")
    assert first.requests == [
        replace(each, keys=got.keys) for each, got in zip(whole.requests, first.requests, strict=False)
    ]
    assert first.requests[-1].time_s < 30 <= whole.requests[len(first.requests)].time_s
    with pytest.raises(ConfigError, match="no request would be in it"):
        convert(path, tmp_path / "x.gz", Conversion(first_s=0.001, split=0.5))


def test_chats_of_bailian(tmp_path: Path) -> None:
    def chat(number: int, parent: int, time_s: float, tokens: int, ids: list[int]) -> dict[str, object]:
        line = {"chat_id": number, "parent_chat_id": parent, "timestamp": time_s, "input_length": tokens}
        return line | {"output_length": 9, "type": "text", "turn": 1, "hash_ids": ids}

    # 30 names the same content behind 10 and behind 20.
    lines = [chat(1, -1, 0.5, 33, [10, 30, 31]), chat(2, -1, 1.25, 32, [20, 30]), chat(3, 1, 2, 40, [10, 30, 32])]
    converted = convert(_lines(tmp_path / "in", lines), tmp_path / "out", Conversion())
    trace = read_trace(tmp_path / "out")
    assert trace.block_tokens == 16
    assert [each.time_s for each in trace.requests] == [0, 0.75, 1.5]
    assert [each.session for each in trace.requests] == ["1", "2", "1"]
    assert [each[3] for each in _shape(trace)] == [[0, 1], [2, 3], [0, 1]]
    assert converted.notes[0].startswith("1 ids stood behind different prefixes")


def test_csv(tmp_path: Path) -> None:
    lines = ["timestamp_s,input_length,hash_ids,session_id", '0.5,32,"aa bb",x', "1,40,aa bb cc,x", "2,16,bb,"]
    convert(_lines(tmp_path / "in", lines), tmp_path / "out", Conversion(input_block_tokens=16))
    assert _shape(read_trace(tmp_path / "out")) == [(0, 32, "x", [0, 1]), (0.5, 40, "x", [0, 1]), (1.5, 16, "", [2])]


def test_the_log_of_a_server(tmp_path: Path) -> None:
    def logged(time: str, prompt: str, tokens: list[int]) -> str:
        return (
            f"(APIServer pid=7) DEBUG {time} [entrypoints/serve/utils/request_logger.py:55] Request cmpl-1 details: "
            f"prompt: {prompt!r}, prompt_token_ids: {tokens}, prompt_embeds shape: None."
        )

    lines = [
        "INFO 07-01 10:00:00 [api_server.py:1] starting",
        logged("07-01 10:00:01", "secret prompt_token_ids: [9, 9], prompt_embeds shape", [1, 2, 3, 4, 5]),
        logged("07-01 10:00:03", "secret\nline", [1, 2, 3, 4, 6, 7, 8, 8]),
    ]
    path = _lines(tmp_path / "in", lines)
    convert(path, tmp_path / "out", Conversion(block_tokens=4))
    assert _shape(read_trace(tmp_path / "out")) == [(0, 5, "", [0]), (2, 8, "", [0, 1])]
    assert "secret" not in (tmp_path / "out").read_text()


MOONCAKE = {"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}
CHAT = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0, "input_length": 64, "output_length": 1, "hash_ids": [1]}


@pytest.mark.parametrize(
    ("lines", "how", "complaint"),
    [
        ([], Conversion(), "its format cannot be told; say --from mooncake, bailian, csv, vllm-log"),
        (["nonsense"], Conversion(), "its format cannot be told"),
        ([MOONCAKE], Conversion(source="moon"), "--from moon: no such format; there are auto, mooncake"),
        ([MOONCAKE], Conversion(source="vllm-log"), "no request in it that vllm-log could mean"),
        ([MOONCAKE, "{"], Conversion(), "in:2: not a request"),
        (
            [MOONCAKE],
            Conversion(block_tokens=96),
            "--block-tokens 96: neither a multiple nor a divisor of the input's 512",
        ),
        ([MOONCAKE], Conversion(input_block_tokens=128), "is the block size right"),
        (
            [CHAT],
            Conversion(),
            "in:1: hash_ids: 1 ids for 64 tokens of input; blocks of 16 tokens make 4; is --input-bl",
        ),
        ([CHAT | {"chat_id": "x"}], Conversion(), "in:1: not a chat: Expected `int`, got `str` - at `$.chat_id`"),
        (["timestamp,hash_ids"], Conversion(), "in:1: not one column of times among timestamp, hash_ids; write"),
        (["timestamp_s,hash_ids"], Conversion(), "in:1: no column input_length; write"),
        (["timestamp_s,input_length,hash_ids"], Conversion(), "no request in it that csv could mean"),
        (["timestamp_s,input_length,hash_ids", "1,2"], Conversion(), "in:2: 2 values for 3 columns"),
        (["timestamp_s,input_length,hash_ids", "1,x,a"], Conversion(), "in:2: input_length: 'x' is not a whole number"),
        (["timestamp_s,input_length,hash_ids", "nan,1,"], Conversion(), "in:2: timestamp_s: 'nan' is not a time"),
        (["timestamp_s,input_length,hash_ids", "1,512,a b"], Conversion(), "in:2: hash_ids: 2 ids for 512 tokens"),
        (
            ["DEBUG 13-40 10:00:01 [x] prompt_token_ids: [1], prompt_embeds shape: None"],
            Conversion(),
            "in:1: '13-40 10:00:01' is no time",
        ),
    ],
)
def test_what_cannot_be_converted(lines: list[object], how: Conversion, complaint: str, tmp_path: Path) -> None:
    path = _lines(tmp_path / "in", lines)
    with pytest.raises(TieredKVError) as raised:
        convert(path, tmp_path / "out", how)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    path = _written(tmp_path / "in.gz")
    with pytest.raises(ConfigError, match="the input itself"):
        convert(path, path, Conversion())
    with pytest.raises(TraceError, match="cannot read it"):
        convert(tmp_path / "none", tmp_path / "out", Conversion())


@pytest.mark.parametrize(
    ("name", "part"),
    [("x.jsonl.gz", "x.train.jsonl.gz"), ("x.gz", "x.train.gz"), ("x.y.jsonl", "x.y.train.jsonl"), ("x", "x.train")],
)
def test_names_of_parts(name: str, part: str) -> None:
    assert part_path(Path(name), "train") == Path(part)
