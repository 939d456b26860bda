"""A real sidecar of our own for a measurement, and an engine that it serves."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tieredkv.clock import SystemClock
from tieredkv.errors import Unreachable
from tieredkv.protocol import PROTOCOL_MAX, PROTOCOL_MIN, Hello
from tieredkv.types import Geometry
from tieredkv.vllm_client.attaching import WorkerLink

READY_DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 10.0
NAMESPACE: Final = b"benchmark bytes!"


@contextmanager
def sidecar(
    warm_bytes: int, *, share_max: float = 1.0, settings: Mapping[str, object] | None = None
) -> Generator[Path]:
    """Run a sidecar with a warm tier of `warm_bytes`, and other sections of the configuration; yields its socket.

    Raises Unreachable.
    """
    with tempfile.TemporaryDirectory(prefix="tkv-bench-", dir="/tmp") as folder:
        runtime = Path(folder)
        config = runtime / "tieredkv.yaml"
        sections = {
            "runtime_dir": str(runtime / "run"),
            "warm": {"size": warm_bytes},
            "limits": {"engine_share_max": share_max},
        }
        config.write_text(json.dumps(sections | dict(settings or {})))
        with (runtime / "sidecar.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tieredkv.cli", "sidecar", "--config", str(config)],
                stdout=log,
                stderr=log,
            )
        try:
            socket_path = runtime / "run" / "tieredkv.sock"
            clock = SystemClock()
            until_s = clock.now_s() + READY_DEADLINE_S
            while not socket_path.exists():
                if process.poll() is not None or clock.now_s() > until_s:
                    raise Unreachable(f"the sidecar did not start: {(runtime / 'sidecar.log').read_text()[-500:]}")
            yield socket_path
        finally:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def status(socket_path: Path) -> dict[str, Any]:
    """What the sidecar says of itself. Raises Unreachable."""
    command = [sys.executable, "-m", "tieredkv.cli", "status", "--socket", str(socket_path), "--json", "-"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise Unreachable(f"the sidecar does not answer: {asked.stderr[-500:]}")
    document: dict[str, Any] = json.loads(asked.stdout)
    return document


def greeting(role: str, geometry: Geometry, engine_id: str = "bench") -> Hello:
    """The greeting of a benchmark's engine."""
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        role=role,
        engine_id=engine_id,
        namespace=NAMESPACE,
        description={"model": "benchmark"},
        body_bytes=geometry.body_bytes,
        chain_tokens=geometry.chain_tokens,
        group_strides=geometry.group_strides,
    )


@contextmanager
def rank(socket_path: Path, geometry: Geometry) -> Generator[WorkerLink]:
    """The one worker of a benchmark's engine, attached and declared fit."""
    link = WorkerLink(greeting("worker", geometry), lambda: socket_path, SystemClock(), None)
    if not link.attach(READY_DEADLINE_S):
        raise Unreachable(f"no sidecar at {socket_path}")
    link.report("")
    try:
        yield link
    finally:
        link.close()
