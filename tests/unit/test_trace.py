"""The trace: format, pseudonyms, privacy, and what happens when the file cannot be written."""

import json
import logging
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest

from tieredkv.sim.traces import read_trace
from tieredkv.trace import Arrival, ArrivalLines, Hints, LineFile
from tieredkv.trace.arrivals import NOTE
from tieredkv.trace.pseudonyms import NO_KEY, Pseudonyms
from tieredkv.types import EngineId, Key


def key(number: int) -> Key:
    return Key(sha256(bytes([number])).digest())


def arrival(
    now_s: float, numbers: list[int], tokens: int = 40, *, tenant: str = "", hints: Hints | None = None
) -> Arrival:
    return Arrival(now_s, EngineId("a"), [key(number) for number in numbers], tokens, tenant, hints or {})


def written(*arrivals: Arrival) -> list[dict[str, object]]:
    lines = ArrivalLines()
    return [json.loads(lines.line(each, 16)) for each in arrivals]


def test_ids_are_given_in_the_order_of_first_sight() -> None:
    assert written(arrival(100.0, [7, 8]), arrival(100.25, [7, 9], tokens=33)) == [
        {
            "timestamp": 0,
            "input_length": 40,
            "output_length": 0,
            "hash_ids": [0, 1],
            "block_tokens": 16,
            "note": NOTE,
        },
        {"timestamp": 250, "input_length": 33, "output_length": 0, "hash_ids": [0, 2], "block_tokens": 16},
    ]


def test_sessions_are_told_apart_by_pseudonyms() -> None:
    asked = [("", "alice"), ("t", "alice"), ("", "alice"), ("", "bob")]
    lines = written(*[arrival(0.0, [1], tenant=tenant, hints={"session": session}) for tenant, session in asked])
    names = [line["session_id"] for line in lines]
    assert names[0] == names[2]
    assert len({*names}) == 3
    assert [("tenant" in line, "hints" in line) for line in lines] == [(bool(tenant), False) for tenant, _ in asked]
    assert "alice" not in json.dumps(lines)
    others = written(arrival(0.0, [1], hints={"session": "alice", "keep": True}))
    assert others[0]["session_id"] != names[0], "two recordings can be linked"
    assert others[0]["hints"] == {"keep": True}


def test_the_simulator_reads_what_was_recorded(tmp_path: Path) -> None:
    lines = ArrivalLines()
    hints = {"session": "s", "return_within_s": 7.5}
    path = tmp_path / "trace.jsonl"
    text = b"".join(
        lines.line(each, 16) for each in (arrival(5.0, [1, 2]), arrival(6.5, [1, 3], tenant="t", hints=hints))
    )
    path.write_bytes(text)
    first, second = read_trace(path).requests
    assert first.keys[0] is second.keys[0]
    assert (second.time_s, second.tokens, second.hints) == (1.5, 40, {"return_within_s": 7.5})
    assert len(second.session) == 16


def test_remembered_keys_are_bounded() -> None:
    pseudonyms = Pseudonyms(2)
    assert [pseudonyms.chain([key(number)]) for number in (1, 2, 1, 3, 1, 2)] == [[0], [1], [0], [2], [0], [3]]


def test_no_child_is_remembered_longer_than_its_parent() -> None:
    pseudonyms = Pseudonyms(3)
    assert pseudonyms.chain([key(1), key(2), key(3)]) == [0, 1, 2]
    assert pseudonyms.chain([key(4)]) == [3]
    assert pseudonyms.chain([key(1), key(2), key(3)]) == [0, 1, 4]


def test_what_cannot_be_a_key_is_marked() -> None:
    pseudonyms = Pseudonyms()
    odd = Key(b"x" * 15)
    assert pseudonyms.chain([key(1), odd, key(2)]) == [0, NO_KEY - 2, 2]
    assert pseudonyms.key(odd) == NO_KEY - 2
    assert pseudonyms.key(Key(b"")) == NO_KEY
    assert json.loads(ArrivalLines().line(Arrival(0.0, EngineId("a"), [key(1), odd], 32, "", {}), 16))["hash_ids"] == [
        0
    ]


def test_an_earlier_file_is_kept_apart_and_nobody_else_may_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for line in (b"first\n", b"second\n"):
        file = LineFile(path)
        file.add(line, 0.0)
        file.close()
        file.close()
        file.add(b"too late\n", 0.0)
    assert path.read_bytes() == b"second\n"
    assert path.with_name("trace.old").read_bytes() == b"first\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lines_reach_the_file_within_seconds(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "trace")
    file.add(b"1\n", 0.0)
    file.add(b"2\n", 2.0)
    assert (tmp_path / "trace").read_bytes() == b"1\n2\n"
    file.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_recording_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        for second in range(5):
            file.add(b"1\n", float(2 * second))
        file.close()
    assert file.closed
    assert caplog.messages == [f"trace: recording ends, /dev/full cannot be written: {OSError(28, os.strerror(28))}"]
