"""Recording in a running sidecar: nothing is missed, nobody waits, nothing is given away."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tieredkv.protocol import Arrive, Found, Record, Recorded, StatusAsk

from .conftest import Start
from .engine import Admin, Engine, chain
from .process import SidecarProcess, wait_until


def ask(engine: Engine, number: int, session: str = "") -> None:
    keys = chain(number, 4)
    engine.scheduler.send(Arrive(f"r{number}", number, keys, 64, "tenant", {"session": session, "x": "text"}))
    engine.answer(Found)


def recording(sidecar: SidecarProcess, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tieredkv.cli", "trace", "record", "--out", str(out), *words]
    process = subprocess.Popen(
        [*command, "--socket", str(sidecar.socket)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: out.exists() or process.poll() is not None, "the recording's file")
    return process


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_has_all_that_came(
    sidecar: SidecarProcess, tmp_path: Path, ending: signal.Signals
) -> None:
    engine = Engine(sidecar.socket)
    out = tmp_path / "trace.jsonl"
    process = recording(sidecar, out)
    asked = 0

    def heard() -> bool:
        # The file tells when the recording has begun.
        nonlocal asked
        asked += 1
        ask(engine, asked, session="alice")
        return bool(out.read_bytes())

    wait_until(heard, "the first request in the file")
    for number in range(asked + 1, asked + 11):
        ask(engine, number, session="bob")
    process.send_signal(ending)
    said, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, complaints
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert said == f"{out}: {len(lines)} requests\n"
    assert len(lines) >= 11
    assert [line["hash_ids"][0] for line in lines] == list(range(0, 4 * len(lines), 4))
    assert len({line["session_id"] for line in lines[-10:]}) == 1
    for secret in ("alice", "bob", 'tenant":"tenant', 'text":', chain(asked, 1)[0].hex()):
        assert secret not in out.read_text()
    assert "no token and no text is in this file" in lines[0]["note"]
    engine.close()


def test_a_recording_ends_by_itself(sidecar: SidecarProcess, tmp_path: Path) -> None:
    process = recording(sidecar, tmp_path / "trace", "--for", "1ms")
    assert process.communicate(timeout=30)[0] == f"{tmp_path / 'trace'}: 0 requests\n"
    assert process.returncode == 0


def test_a_sidecar_that_ends_leaves_what_was_recorded(start: Start, tmp_path: Path) -> None:
    sidecar = start()
    process = recording(sidecar, tmp_path / "trace")
    sidecar.terminate()
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "the sidecar hung up" in complaints


def test_who_does_not_read_its_recording_stops_nobody(sidecar: SidecarProcess) -> None:
    engine = Engine(sidecar.socket)
    idle, stalled = Admin(sidecar.socket), Admin(sidecar.socket)
    stalled.send(Record(on=True))
    stalled.send(StatusAsk())
    stalled.receive()
    asked, keys = 40, chain(1, 100_000)
    for number in range(asked):
        engine.scheduler.send(Arrive("r", number, keys, 16 * len(keys)))
        engine.answer(Found)
    idle.send(Record(on=False))
    assert idle.expect(Recorded) == Recorded(b"", 0, 0, last=True)
    stalled.send(Record(on=False))
    told = lost = 0
    while True:
        recorded = stalled.expect(Recorded)
        told += recorded.requests
        lost += recorded.lost
        assert recorded.lines.count(b"\n") == recorded.requests
        if recorded.last:
            break
    assert told + lost == asked
    assert lost
    engine.close()
