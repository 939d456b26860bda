import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tieredkv.cli.checks import Check, Verdict, access, machine, software
from tieredkv.config import HttpAddress, Memory
from tieredkv.vllm_client.supported import is_supported

from .conftest import Cli

GIB = 1 << 30


def report(cli: Cli, *words: object) -> tuple[int, dict[str, Any]]:
    outcome = cli("doctor", "--warm", "64MiB", *words, "--json", "-")
    document = json.loads(outcome.out)
    return outcome.code, {check["name"]: check for check in document["checks"]}


def test_json_has_a_verdict_a_finding_and_a_remedy_for_every_check(cli: Cli, tmp_path: Path) -> None:
    code, checks = report(cli, "--runtime-dir", tmp_path / "run")
    assert code == 0
    names = {"python", "vllm", "hashes", "config", "vineyardd", "shared memory", "kernel", "memory", "cgroup"}
    names |= {"memlock", "runtime_dir rights", "socket rights", "metrics", "sidecar"}
    assert set(checks) == names
    for check in checks.values():
        assert check["verdict"] in {"ok", "warn", "fail"}
        assert check["finding"]
        assert (check["remedy"] == "") == (check["verdict"] == "ok")
    assert checks["vineyardd"]["finding"] == "0.24.2 runs"


def test_cluster_checks_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    code, checks = report(cli, "--runtime-dir", tmp_path / "run", "--cluster")
    assert code == 1
    assert checks["cluster members"]["finding"] == "no cluster is configured"
    words = (
        "--set",
        "cluster.listen=127.0.0.1:1",
        "--set",
        "cluster.peers=[127.0.0.1:2]",
        "--set",
        "cluster.rpc_port=9601",
        "--cluster",
    )
    code, checks = report(cli, "--runtime-dir", tmp_path / "run", *words)
    assert code == 1
    assert checks["cluster members"]["verdict"] == "ok"
    assert checks["cluster rpc"]["verdict"] == "warn"


def test_one_line_for_each_check(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("doctor", "--warm", "64MiB", "--runtime-dir", tmp_path / "run")
    assert outcome.code == 0
    assert all(line.split()[0] in {"ok", "warn", "fail"} for line in outcome.out.splitlines())
    assert not (tmp_path / "run").exists(), "doctor changes nothing"


def test_a_broken_configuration_is_a_failed_check_and_the_others_still_run(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_text("warm: {sise: 1}\nlog_level: loud\n")
    outcome = cli("doctor", "--config", path)
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert sum(line.startswith("fail config: ") for line in lines) == 2
    assert any(line.startswith("ok   python: ") for line in lines)


def test_an_open_runtime_directory_fails(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    code, checks = report(cli, "--runtime-dir", folder)
    assert code == 1
    assert checks["runtime_dir rights"]["verdict"] == "fail"
    assert "chmod 700" in checks["runtime_dir rights"]["remedy"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777, "doctor changes nothing"


def test_a_missing_or_foreign_vineyardd_fails(tmp_path: Path) -> None:
    assert software.vineyardd(tmp_path / "none").verdict is Verdict.FAIL
    other = tmp_path / "vineyardd"
    other.write_text("#!/bin/sh\necho vineyardd version 0.1.0\n")
    other.chmod(0o755)
    check = software.vineyardd(other)
    assert check.verdict is Verdict.FAIL
    assert "0.1.0: tested with 0.24.2 only" in check.finding
    other.write_text("#!/bin/sh\nexit 3\n")
    assert "does not run" in software.vineyardd(other).finding


def test_python_without_asserts_fails() -> None:
    run = subprocess.run(
        [sys.executable, "-O", "-m", "tieredkv.cli", "doctor", "--warm", "64MiB"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1
    assert "fail python:" in run.stdout


def test_a_warm_tier_over_the_limit_fails_and_over_the_rest_warns() -> None:
    limited = Memory(available_bytes=32 * GIB, limit_bytes=8 * GIB, left_bytes=6 * GIB)
    check = machine.cgroup_limit(9 * GIB, limited)
    assert check.verdict is Verdict.FAIL
    assert "set the limit to at least" in check.remedy
    assert machine.cgroup_limit(7 * GIB, limited).verdict is Verdict.OK
    assert machine.memory(7 * GIB, "flag", limited).verdict is Verdict.WARN
    assert machine.memory(5 * GIB, "flag", limited).verdict is Verdict.OK


def test_a_port_for_other_machines_warns() -> None:
    assert access.metrics_address(None).verdict is Verdict.OK
    assert access.metrics_address(HttpAddress("127.0.0.1", 9400)).verdict is Verdict.OK
    assert access.metrics_address(HttpAddress("0.0.0.0", 9400)).verdict is Verdict.WARN


def test_a_folder_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert access.directory("runtime_dir", Path("/nonexistent/run"), ()).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("version", "supported"),
    [("0.31.0", True), ("0.32.0+cpu", True), ("0.33.9rc1", True), ("0.30.9", False), ("0.34.0", False), ("dev", False)],
)
def test_the_tested_range_of_vllm(version: str, supported: bool) -> None:
    assert is_supported(version) is supported


def test_every_problem_names_a_remedy() -> None:
    with pytest.raises(AssertionError):
        Check("x", Verdict.FAIL, "broken")
