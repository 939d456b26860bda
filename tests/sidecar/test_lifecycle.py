"""Starting, refusing to start, watching and ending a sidecar; what is left behind: nothing but logs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tieredkv.errors import ConfigError
from tieredkv.sidecar.directory import is_allowed, prepare_directory

from .conftest import Start
from .engine import Engine, chain
from .process import SidecarProcess, alive, listening_ports, wait_until


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_a_clean_end_leaves_nothing_but_logs(start: Start, how: str) -> None:
    sidecar = start()
    engine = Engine(sidecar.socket)
    engine.store(chain(1, 5))
    status = sidecar.status()
    if how == "stop":
        sidecar.admin().stop()
    else:
        os.kill(status["pid"], getattr(signal, how))
    assert sidecar.process is not None
    assert sidecar.process.wait(15) == 0
    assert engine.scheduler.ended()
    assert not alive(status["vineyardd"]["pid"])
    assert [path.name for path in sidecar.directory.iterdir()] == ["vineyardd.log"]
    assert not _processes_that_mention(str(sidecar.folder))


def test_what_a_crash_left_is_cleaned_up_by_the_next_clean_end(start: Start) -> None:
    sidecar = start()
    Engine(sidecar.socket).store(chain(1, 5))
    sidecar.kill()
    sidecar.start()
    assert sidecar.terminate() == 0
    assert [path.name for path in sidecar.directory.iterdir()] == ["vineyardd.log"]
    assert not _processes_that_mention(str(sidecar.folder))


def test_files_and_directory_are_closed_to_others(sidecar: SidecarProcess) -> None:
    Engine(sidecar.socket)
    assert sidecar.directory.stat().st_mode & 0o777 == 0o700
    for path in sidecar.directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_sidecar_is_refused_in_one_line(sidecar: SidecarProcess) -> None:
    status = sidecar.status()
    refused = _run_command(sidecar)
    assert refused.returncode != 0
    assert f"a sidecar (pid {status['pid']}) already runs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sidecar.status()["vineyardd"]["pid"] == status["vineyardd"]["pid"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o755])
def test_a_directory_that_is_open_to_others_is_refused(start: Start, mode: int) -> None:
    sidecar = start(run=False)
    sidecar.spawn().kill()
    assert sidecar.process is not None
    sidecar.process.wait()
    sidecar.directory.mkdir(exist_ok=True)
    sidecar.directory.chmod(mode)
    refused = _run_command(sidecar)
    assert refused.returncode == 2
    assert f"runtime_dir: {sidecar.directory} is open to other users" in refused.stderr
    assert "chmod 700" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_socket_in_a_place_that_everybody_can_write_is_refused(start: Start) -> None:
    sidecar = start(run=False, socket=f"/tmp/tkv-{os.getpid()}.sock")
    sidecar.spawn()
    assert sidecar.process is not None
    assert sidecar.process.wait(15) == 2
    assert "socket: /tmp" in sidecar.log()
    assert "Traceback" not in sidecar.log()


def test_a_parent_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    open_parent = tmp_path / "open"
    open_parent.mkdir()
    open_parent.chmod(0o777)
    with pytest.raises(ConfigError, match="can be replaced"):
        prepare_directory(open_parent / "run", shared=False, key="runtime_dir")


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="runtime_dir"):
        prepare_directory(tmp_path / "run", shared=False, key="runtime_dir")


def test_only_our_own_user_and_those_allowed_may_connect() -> None:
    assert is_allowed(os.getuid(), ())
    assert not is_allowed(os.getuid() + 1, ())
    assert is_allowed(os.getuid() + 1, (os.getuid() + 1,))
    assert not is_allowed(0, (5,)) or os.getuid() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_told_that_it_is_not_allowed(start: Start) -> None:
    # With allowed_uids the directory lets others through, so that the check of the uid is what remains.
    sidecar = start(security={"allowed_uids": [12345]})
    sidecar.folder.chmod(0o711)
    script = (
        "import os, socket, sys\n"
        "from tieredkv.protocol import Hello, encode\n"
        "os.setgid({uid}); os.setuid({uid})\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(encode(Hello(1, 1, 'admin')))\n"
        "print(s.recv(1000))\n"
    )
    for uid, answer in ((12345, b"welcome"), (54321, b"security.allowed_uids")):
        command = [sys.executable, "-c", script.format(uid=uid), str(sidecar.socket)]
        told = subprocess.run(command, capture_output=True, check=False, timeout=30)
        assert answer in told.stdout, told.stderr


def test_a_missing_vineyardd_is_one_clear_line(start: Start) -> None:
    sidecar = start(run=False, vineyardd={"binary": "/nowhere/vineyardd"})
    sidecar.spawn()
    assert sidecar.process is not None
    assert sidecar.process.wait(15) == 2
    assert "vineyardd.binary: /nowhere/vineyardd is not an executable file" in sidecar.log()
    assert "Traceback" not in sidecar.log()


def test_a_vineyardd_that_does_not_start_is_tried_again(start: Start) -> None:
    sidecar = start(run=False, vineyardd={"binary": "/bin/false"})
    sidecar.spawn()
    wait_until(lambda: sidecar.log().count("vineyardd does not start") >= 2, "tried again")
    status = sidecar.status()
    assert not status["ready"]
    assert "vineyardd ended at start" in status["vineyardd"]["failure"]
    assert sidecar.terminate() == 0


def test_a_private_sidecar_ends_after_its_engine(start: Start) -> None:
    sidecar = start(run=False)
    process = sidecar.spawn("--private")
    wait_until(sidecar.ready, "listening")
    engine = Engine(sidecar.socket)
    pid = sidecar.status()["vineyardd"]["pid"]
    engine.scheduler.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    closed_s = time.monotonic()
    engine.close()
    assert process.wait(15) == 0
    assert time.monotonic() - closed_s >= 1.5
    assert not alive(pid)
    assert [path.name for path in sidecar.directory.iterdir()] == ["vineyardd.log"]


def test_metrics_and_health_over_http(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    sidecar = start(metrics={"http": f"127.0.0.1:{port}"})
    engine = Engine(sidecar.socket)
    engine.store(chain(1, 5))
    base = f"http://127.0.0.1:{port}"
    assert _get(f"{base}/healthz") == (200, "ok\n")
    assert wait_until(lambda: _get(f"{base}/readyz")[0] == 200, "ready")
    wait_until(lambda: 'tieredkv_slots{state="ready"} 5' in _get(f"{base}/metrics")[1], "five chunks")
    text = _get(f"{base}/metrics")[1]
    assert 'tieredkv_publications_total{result="stored"} 5' in text
    assert _get(f"{base}/nowhere")[0] == 404
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["tieredkv_slots"].type == "gauge"
    assert families["tieredkv_publications"].type == "counter"
    os.kill(sidecar.status()["pid"], signal.SIGTERM)
    assert sidecar.process is not None
    assert sidecar.process.wait(15) == 0


def test_without_configuration_there_is_no_tcp_port(sidecar: SidecarProcess) -> None:
    assert listening_ports(sidecar) == {}


def test_no_key_ever_reaches_the_log(start: Start) -> None:
    sidecar = start(log_level="debug")
    engine = Engine(sidecar.socket)
    keys = [b"CANARYCANARYCANARYCANARYCANARY%02d" % number for number in range(5)]
    engine.store(keys)
    engine.load(keys)
    engine.scheduler.socket.sendall(b"\x20\0\0\0CANARYCANARYCANARYCANARYCANARYCA")
    assert engine.scheduler.ended()
    status = str(sidecar.status())
    assert sidecar.terminate() == 0
    for text in (sidecar.log(), status, (sidecar.directory / "vineyardd.log").read_text()):
        assert "CANARY" not in text


def _run_command(sidecar: SidecarProcess) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tieredkv.cli", "sidecar", "--config", str(sidecar.folder / "tieredkv.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def _processes_that_mention(text: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
