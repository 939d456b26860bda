"""A real sidecar, started, asked and ended by the commands that a person would use."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Cli

READY_TIMEOUT_S = 30.0


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="tkv") as folder:
        yield Path(folder) / "run"


@pytest.fixture
def running(runtime_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--runtime-dir", str(runtime_dir), "--warm", "64MiB"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_until_it_answers(cli: Cli, socket: Path) -> dict[str, object]:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        outcome = cli("status", "--socket", socket, "--json", "-")
        if outcome.code == 0:
            document: dict[str, object] = json.loads(outcome.out)
            return document
        assert outcome.code == 3, outcome.err
    pytest.fail("the sidecar never answered")


def test_started_asked_and_stopped(cli: Cli, runtime_dir: Path, running: subprocess.Popen[str]) -> None:
    socket = runtime_dir / "tieredkv.sock"
    document = wait_until_it_answers(cli, socket)
    assert document["pid"] == running.pid
    assert document["warm_bytes"] == 64 << 20

    shown = cli("status", "--socket", socket)
    assert shown.code == 0
    assert f"0.1.0, {running.pid}" in shown.out
    assert "no engine is connected" in shown.out

    checked = cli("doctor", "--runtime-dir", runtime_dir, "--warm", "64MiB")
    assert f"ok   sidecar: answers at {socket}" in checked.out.splitlines()

    stopped = cli("stop", "--socket", socket)
    assert (stopped.code, stopped.err) == (0, "")
    assert running.wait(timeout=30) == 0
    assert not socket.exists()
    assert cli("status", "--socket", socket).code == 3


def refused_start(runtime_dir: Path) -> str:
    """Start a sidecar that must not start; returns its one complaint."""
    command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--runtime-dir", str(runtime_dir), "--warm", "64MiB"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 2, run.stderr
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("tieredkv: error: "))
    assert "Traceback" not in run.stderr
    return line


def test_a_second_sidecar_in_the_same_place_is_refused_in_one_line(
    cli: Cli, runtime_dir: Path, running: subprocess.Popen[str]
) -> None:
    wait_until_it_answers(cli, runtime_dir / "tieredkv.sock")
    assert f"a sidecar (pid {running.pid}) already runs" in refused_start(runtime_dir)


def test_a_place_that_others_can_write_to_is_refused_in_one_line(runtime_dir: Path) -> None:
    runtime_dir.mkdir()
    runtime_dir.chmod(0o777)
    assert "open to other users" in refused_start(runtime_dir)
