"""Nothing that the demo starts outlives it, whichever way it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.processes import Child, Guard, running_members

# A leader with a child of its own, as vLLM's server has.
FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""

POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit()))
print("up", flush=True)
time.sleep(60)
"""

# A demo that starts such a family and then waits to be killed.
DEMO = """
import sys, time
from pathlib import Path
from tieredkv.demo.processes import Child, Guard
guard = Guard()
guard.remove(Path(sys.argv[2]))
child = Child("it", [sys.executable, "-c", sys.argv[1]], environ={}, log=Path(sys.argv[2]) / "log", guard=guard,
              ends_by=sys.argv[3])
print(child.pid, flush=True)
time.sleep(60)
"""


def _until(condition: Callable[[], bool], *, wait_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("ends_by", ["kill", "term"])
def test_a_killed_demo_leaves_no_process_and_no_directory(tmp_path: Path, ends_by: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", DEMO, FAMILY, str(work), ends_by]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        group = int(demo.stdout.readline())
        assert _until(lambda: len(running_members(group)) == 2)
        demo.send_signal(signal.SIGKILL)
    assert _until(lambda: not running_members(group))
    assert _until(lambda: not work.exists())


def test_killing_a_child_ends_its_whole_group(tmp_path: Path) -> None:
    with Guard() as guard:
        child = _family(tmp_path, guard)
        assert _until(lambda: len(running_members(child.pid)) == 2)
        child.kill()
        assert running_members(child.pid) == []


def test_a_child_that_is_asked_to_end_may_do_so_in_its_own_way(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Guard() as guard:
        child = Child("it", [sys.executable, "-c", POLITE], environ={}, log=log, guard=guard, ends_by="term")
        assert _until(lambda: "up" in log.read_text())
        child.stop()
    assert log.read_text().split() == ["up", "bye"]


def test_a_child_that_ended_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    with Guard() as guard:
        child = Child(
            "it",
            [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"],
            environ={},
            log=tmp_path / "it.log",
            guard=guard,
            ends_by="kill",
        )
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(DemoFailed, match=r"(?s)it ended with status 3.*it\.log.*no such model"):
            child.check_runs()
        child.kill()


def _family(tmp_path: Path, guard: Guard) -> Child:
    return Child("it", [sys.executable, "-c", FAMILY], environ={}, log=tmp_path / "log", guard=guard, ends_by="kill")
