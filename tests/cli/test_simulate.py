"""`tieredkv simulate`: its JSON, its table, its picture, and one clear line for each mistake."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tieredkv.sim.generate import generated_records
from tieredkv.sim.records import write_records
from tieredkv.sim.workload import make_workload

CAPACITIES = [0.01, 0.1]
RESULT_KEYS = {
    "policy",
    "capacity_fraction",
    "capacity_blocks",
    "block_hit_rate",
    "token_hit_rate",
    "us_per_block_ref",
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "chat.jsonl.gz"
    write_records(path, generated_records(make_workload("chat", {}), seed=1, requests=300), 512)
    return path


def simulated(cli: Cli, *words: object) -> list[dict[str, object]]:
    outcome = cli("simulate", *words, "--json", "-", "--jobs", 1)
    assert outcome.code == 0, outcome.err
    found: list[dict[str, object]] = json.loads(outcome.out)
    return found


def test_the_json_that_others_rely_on(cli: Cli, trace: Path) -> None:
    (found,) = simulated(cli, trace, "--policies", "lru,gix,min,infinite", "--capacity", "0.01,0.1")
    assert found["trace"] == "chat"
    assert found["requests"] == 300
    assert found["block_refs"] >= found["unique_blocks"] > 0
    assert found["recipe"]["seed"] == 1
    assert [policy["name"] for policy in found["recipe"]["config"]] == ["lru", "gix"]
    results = found["results"]
    assert [(row["policy"], row["capacity_fraction"]) for row in results] == [
        (policy, capacity) for policy in ("lru", "gix", "min", "infinite") for capacity in CAPACITIES
    ]
    for row in results:
        assert row.keys() >= RESULT_KEYS
        assert row["capacity_blocks"] == int(row["capacity_fraction"] * found["unique_blocks"])
        assert 0 <= row["token_hit_rate"] <= row["block_hit_rate"] <= row["infinite_block_hit_rate"] <= 1
        assert row["us_per_block_ref"] > 0


def test_several_traces_and_the_defaults(cli: Cli, trace: Path) -> None:
    found = simulated(cli, trace, trace, "--policies", "lru,min")
    assert len(found) == 2
    assert len(found[0]["results"]) == 12


def test_parameters_of_a_policy(cli: Cli, trace: Path) -> None:
    words = [trace, "--policies", "gix", "--capacity", "0.1"]
    (plain,) = simulated(cli, *words)
    (changed,) = simulated(cli, *words, "--set", "policy.theta=0")
    assert plain["results"][0]["refusals"] > changed["results"][0]["refusals"] == 0
    assert changed["recipe"]["config"][0]["theta"] == 0


def test_bytes_engines_hints_and_partial_blocks(cli: Cli, trace: Path) -> None:
    words = ["--policies", "lru", "--capacity", "1GiB", "--bytes-per-token", "128KiB"]
    (found,) = simulated(cli, trace, *words)
    assert found["results"][0]["capacity_blocks"] == 16
    (found,) = simulated(cli, trace, *words[:2], "--capacity", "64MiB", "--chunk-bytes", "2MiB")
    assert found["results"][0]["capacity_blocks"] == 32
    words += ["--engines", "2", "--pool", "private", "--routing", "random", "--hints", "80", "--seed", "9"]
    (split,) = simulated(cli, trace, *words)
    row = split["results"][0]
    assert (row["engines"], row["pool"], row["routing"], row["hints"]) == (2, "private", "random", "80")
    assert row["block_hit_rate"] <= found["results"][0]["block_hit_rate"]
    (partial,) = simulated(cli, trace, "--policies", "min", "--partial-blocks")
    assert partial["unique_blocks"] > found["unique_blocks"]


def test_a_policy_by_import_path(cli: Cli, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_policy_of_a_test.py").write_text("from tieredkv.policy.lru import LRU as Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = simulated(cli, trace, "--policies", "lru,own_policy_of_a_test:Mine", "--capacity", "0.1")
    lru, own = found["results"]
    assert own["policy"] == "own_policy_of_a_test:Mine"
    assert own["block_hit_rate"] == lru["block_hit_rate"]


def test_the_table_names_all_policies_and_both_bounds(cli: Cli, trace: Path) -> None:
    outcome = cli("simulate", trace, "--policies", "lru,gix", "--capacity", "0.01,0.1", "--jobs", 1)
    assert outcome.code == 0
    assert outcome.err == ""
    for word in ("chat: 300 requests", "lru", "gix", "min", "infinite", "1 %", "10 %"):
        assert word in outcome.out


def test_the_picture(cli: Cli, trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "rates.png"
    outcome = cli("simulate", trace, trace, "--capacity", "0.01,0.1", "--plot", picture, "--jobs", 1)
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_matplotlib_is_one_line(cli: Cli, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = cli("simulate", trace, "--plot", tmp_path / "rates.png")
    assert outcome.code == 2
    assert outcome.complaints() == ["pictures need matplotlib; install it with: pip install 'tieredkv[report]'"]


MISTAKES = [
    ("--policies lro", "--policies lro: no such policy; did you mean lru?"),
    ("--policies lru,", "no such policy"),
    ("--policies json:nothing", "'json:nothing' cannot be imported"),
    ("--policies json:decoder", "'json:decoder' is no callable"),
    ("--capacity 0", "--capacity 0: a fraction is above 0 and at most 1"),
    ("--capacity 17", "--capacity 17: a fraction is above 0"),
    ("--capacity nan", "--capacity nan: a fraction is above 0"),
    ("--capacity 0.0000001", "unique blocks that is less than one block"),
    ("--capacity 64GiB", "how many bytes is a chunk? add --chunk-bytes"),
    ("--capacity 1KiB --chunk-bytes 2MiB", "less than one block"),
    ("--capacity much", "--capacity much: not a capacity"),
    ("--capacity 3c --engines 4 --pool private", "one block for each of 4 pools"),
    ("--chunk-bytes 0 --capacity 1GiB", "--chunk-bytes 0: must be at least one byte"),
    ("--chunk-bytes much", "--chunk-bytes much: not a size"),
    ("--block-tokens 16", "block_tokens: 512, but 16 was asked for"),
    ("--block-tokens 0", "--block-tokens"),
    ("--engines 0", "--engines"),
    ("--pool both", "--pool both: must be one of shared, private"),
    ("--routing best", "--routing best: must be one of session, random, skewed"),
    ("--hints some", "--hints some: must be one of truthful, 80, useless, lying"),
    ("--set policy.thetta=1", "policy.thetta: unknown key; did you mean policy.theta?"),
    ("--set policy.theta=-1", "policy.theta: -1"),
    ("--set warm.size=1GiB", "--set warm.size: not used here"),
    ("--json /nonexistent/x.json", "name a file in a folder that exists"),
    ("--plot rates.txt", "let it end in .png"),
    ("--plot /nonexistent/rates.png", "name a file in a folder that exists"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_each_mistake_is_one_clear_line(cli: Cli, trace: Path, words: str, message: str) -> None:
    outcome = cli("simulate", trace, *words.split())
    assert outcome.code == 2
    (line,) = outcome.complaints()
    assert message in line


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\x1f\x8b\x08", b'{"timestamp": 1, "input'], ids=range(4))
def test_a_broken_trace_is_one_clear_line(cli: Cli, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    outcome = cli("simulate", path)
    assert outcome.code == 2
    (line,) = outcome.complaints()
    assert line.startswith(f"{path}:1: ")


def test_a_missing_trace_and_none_at_all(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("simulate", tmp_path / "none.jsonl")
    assert outcome.code == 2
    assert outcome.complaints() == [
        f"{tmp_path}/none.jsonl: cannot read it: No such file or directory; name a trace file"
    ]
    assert cli("simulate").code == 2
