import json
from pathlib import Path

import yaml

from .conftest import Cli

EXAMPLE = Path(__file__).parents[2] / "docs" / "tieredkv.example.yaml"


def test_check_accepts_the_example(cli: Cli) -> None:
    outcome = cli("config", "check", EXAMPLE)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{EXAMPLE}: ok\n", "")


def test_check_reports_all_problems_as_json(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_text("warm: {sise: 1, prefault: x}\n")
    outcome = cli("config", "check", path, "--json", "-")
    assert outcome.code == 2
    report = json.loads(outcome.out)
    assert not report["ok"]
    assert len(report["problems"]) == 2


def test_show_says_where_each_value_came_from(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_text("log_level: debug\n")
    outcome = cli("config", "show", "--config", path, "--warm", "1536Mi", "--set", "engine.sidecar=private")
    assert outcome.code == 0
    shown = yaml.safe_load(outcome.out)
    assert shown["warm"]["size"] == "1536MiB"
    assert shown["engine"]["sidecar"] == "private"
    # The first of a name: warm comes before cold.
    lines = reversed(outcome.out.splitlines())
    remarks = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in lines}
    assert remarks["log_level"] == f"{path}:1"
    assert remarks["size"] == remarks["sidecar"] == "flag"
    assert remarks["prefault"] == "default"


def test_show_as_json_prints_nothing_else(cli: Cli) -> None:
    report = json.loads(cli("config", "show", "--warm", "1GiB", "--json", "-").out)
    assert report["config"]["warm"]["size"] == "1GiB"
    assert report["sources"]["warm.size"] == "flag"


def test_show_writes_json_beside_what_it_prints(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("config", "show", "--warm", "1GiB", "--json", tmp_path / "show.json")
    assert json.loads((tmp_path / "show.json").read_text())["config"]["warm"]["size"] == "1GiB"
    assert "size: 1GiB" in outcome.out


def test_schema_and_example(cli: Cli) -> None:
    assert json.loads(cli("config", "schema").out)["properties"]["warm"]
    assert cli("config", "example").out == EXAMPLE.read_text()
