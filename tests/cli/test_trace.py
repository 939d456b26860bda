import json
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def trace(cli: Cli, tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl.gz"
    assert cli("trace", "generate", "chat", "--out", path, "--requests", "200", "--seed", "4").code == 0
    return path


def test_generate_writes_the_same_twice(cli: Cli, trace: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl.gz"
    outcome = cli("trace", "generate", "chat", "--out", again, "--requests", "200", "--seed", "4")
    assert outcome.out == f"{again}: 200 requests of chat, seed 4\n"
    assert again.read_bytes() == trace.read_bytes()
    cli("trace", "generate", "chat", "--out", again, "--requests", "200", "--seed", "4", "--think-time", "x0.3")
    assert again.read_bytes() != trace.read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("chatt",), "chatt: no such kind; there are chat, agentic, rag, flood, churn, shift; did you mean chat?"),
        (("chat", "--think-time", "x0"), "--think-time x0: not a factor; write one above 0 and up to 1000"),
        (("chat", "--set", "trunks"), "--set trunks: no value"),
        (("chat", "--set", "trunks=-1"), "--set trunks: must be at least 0"),
        (("chat", "--set", "trunc=1"), "--set trunc: no such parameter; did you mean trunks?"),
    ],
)
def test_generate_says_what_is_wrong(cli: Cli, tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    outcome = cli("trace", "generate", *words, "--out", tmp_path / "x")
    assert outcome.code == 2
    (line,) = outcome.complaints()
    assert line.startswith(complaint)
    assert not (tmp_path / "x").exists()


def test_generate_into_a_missing_folder(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("trace", "generate", "chat", "--out", tmp_path / "no" / "x")
    assert outcome.code == 2
    assert "cannot be written" in outcome.complaints()[0]


def test_parameters_are_listed(cli: Cli) -> None:
    listed = json.loads(cli("trace", "parameters", "agentic", "--json", "-").out)
    assert listed["parameters"]["trunks"] == 4
    assert "think_s_median" in cli("trace", "parameters").out


def test_stats_as_tables_json_and_picture(cli: Cli, trace: Path, tmp_path: Path) -> None:
    outcome = cli("trace", "stats", trace, "--json", tmp_path / "s.json", "--plot", tmp_path / "s.png")
    assert outcome.code == 0
    assert "hit rate of an infinite cache" in outcome.out
    (stats,) = json.loads((tmp_path / "s.json").read_text())
    assert stats["requests"] == 200
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(cli("trace", "stats", trace, trace, "--json", "-").out) == [stats, stats]


def test_stats_says_what_is_wrong(cli: Cli, trace: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(trace.read_bytes()[:500])
    for words in (
        (cut,),
        (tmp_path / "none",),
        (trace, trace, "--plot", "x.png"),
        (trace, "--plot", tmp_path / "x.txt"),
    ):
        outcome = cli("trace", "stats", *words)
        assert (outcome.code, len(outcome.complaints())) == (2, 1)


def test_convert_splits_and_changes_the_block_size(cli: Cli, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    outcome = cli("trace", "convert", trace, out, "--split", "0.5", "--block-tokens", "1024")
    assert outcome.code == 0
    assert [line.split(":")[0] for line in outcome.out.splitlines()] == [
        str(tmp_path / f"out.{part}.jsonl.gz") for part in ("train", "test")
    ]
    assert (
        json.loads(cli("trace", "stats", tmp_path / "out.test.jsonl.gz", "--json", "-").out)[0]["block_tokens"] == 1024
    )


@pytest.mark.parametrize(
    "words", [("--split", "1"), ("--first-seconds", "0"), ("--from", "x"), ("--block-tokens", "7")]
)
def test_convert_says_what_is_wrong(cli: Cli, trace: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    outcome = cli("trace", "convert", trace, tmp_path / "out", *words)
    assert (outcome.code, len(outcome.complaints())) == (2, 1)
    assert outcome.complaints()[0].startswith(" ".join(words))
