import json
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def words(cli: Cli, tmp_path: Path) -> list[object]:
    """A search that takes seconds."""
    trace, hardware = tmp_path / "chat.jsonl.gz", tmp_path / "hw.yaml"
    assert cli("trace", "generate", "chat", "--out", trace, "--requests", "200").code == 0
    hardware.write_text(cli("tune", "--example-hardware").out)
    return ["tune", trace, "--hardware", hardware, "--budget", "8GiB", "--sizes", "2", "--trials", "0", "--jobs", "1"]


def test_tune_writes_a_configuration_a_report_and_json(cli: Cli, words: list[object], tmp_path: Path) -> None:
    out, page = tmp_path / "tieredkv.yaml", tmp_path / "tune.html"
    outcome = cli(*words, "--out", out, "--report", page, "--json", tmp_path / "t.json", "--cold-budget", "16GiB")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"written: {out}" in outcome.out
    assert "worth it" in outcome.out
    assert cli("config", "check", out).code == 0
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["recipe"].startswith("tieredkv tune chat.jsonl.gz --hardware hw.yaml --budget 8GiB")
    assert str(tmp_path) not in out.read_text() + page.read_text()
    again = cli(*words, "--out", out)
    assert (again.code, again.complaints()) == (
        2,
        [f"--out {out}: is there already; name a new file, or move that one away"],
    )


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--budget", "8GX"), "--budget 8GX: not a size"),
        (("--budget", "0"), "--budget 0: must be from 1MiB"),
        (("--budget", "2MiB"), "--budget: less than one chunk"),
        (("--split", "1"), "--split 1: must be between 0 and 1"),
        (("--enough", "nan"), "--enough nan: must be between 0 and 1"),
        (("--policies", "gix,lfu"), "--policies lfu: must be "),
        (("--report", "x.txt"), "--report x.txt: not a report"),
        (("--out", "/nowhere/x"), "--out /nowhere/x: cannot write there"),
        (("--hardware", "/nowhere/x"), "/nowhere/x: cannot read it"),
    ],
)
def test_tune_says_what_is_wrong(
    cli: Cli, words: list[object], tmp_path: Path, more: tuple[str, str], complaint: str
) -> None:
    outcome = cli(*words, "--out", tmp_path / "o.yaml", *more)
    assert outcome.code == 2
    assert len(outcome.complaints()) == 1
    assert outcome.complaints()[0].startswith(complaint)
    assert not (tmp_path / "o.yaml").exists()


def test_tune_without_what_it_needs(cli: Cli) -> None:
    assert cli("tune").complaints() == ["tune needs TRACE, --hardware FILE and --budget SIZE; see tieredkv tune --help"]
