import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tieredkv.sim.generate import generated_records
from tieredkv.sim.hardware import EXAMPLE
from tieredkv.sim.records import write_records
from tieredkv.sim.workload import make_workload


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    trace, hardware = tmp_path / "chat.jsonl", tmp_path / "hw.yaml"
    write_records(trace, generated_records(make_workload("chat", {}), seed=3, requests=150), 512)
    hardware.write_text(EXAMPLE)
    return str(trace), str(hardware)


def test_every_variant_is_replayed(cli: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    trace, hardware = files
    out = tmp_path / "out.json"
    done = cli(
        "simulate", trace, "--policies", "lru,gix", "--tiers", "0.02,0.1,0.5", "--hardware", hardware,
        "--copies", "clean,none", "--prefetch", "both", "--json", str(out),
    )  # fmt: skip
    assert done.code == 0, done.err
    (compared,) = json.loads(out.read_text())
    variants = {(row["policy"], row["copies"], row["prefetch"]) for row in compared["results"]}
    assert len(variants) == len(compared["results"]) == 8
    for row in compared["results"]:
        parts = sum(row[f"{tier}_block_hit_rate"] for tier in ("hot", "warm", "cold"))
        assert row["block_hit_rate"] == pytest.approx(parts)
        assert 0 < row["mean_ready_s"] <= row["p99_ready_s"]
    assert "KV on the GPU" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tiers", "0.1"], "--tiers 0.1: must be three sizes"),
        (["--tiers", "0.1,0.2,0.3"], "--tiers needs --hardware FILE"),
        (["--tiers", "0.1,0.2,x", "--hardware", "HW"], "--capacity x: not a capacity"),
        (["--tiers", "0.1,0.2,0.3", "--hardware", "HW", "--copies", "some"], "--copies some: must be among"),
        (["--tiers", "0.1,0.2,0.3", "--hardware", "HW", "--prefetch", "1"], "--prefetch 1: must be one of"),
        (["--tiers", "0.1,0.2,0.3", "--hardware", "HW", "--engines", "2"], "--tiers goes with one engine"),
        (["--tiers", "0.1,0.2,0.3", "--hardware", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_bad_options_are_one_line(cli: Cli, files: tuple[str, str], options: list[str], line: str) -> None:
    trace, hardware = files
    done = cli("simulate", trace, *(hardware if option == "HW" else option for option in options))
    assert done.code == 2
    (complaint,) = done.complaints()
    assert line in complaint
