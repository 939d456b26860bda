"""The vLLM server that the demo measures: started with given flags, killed, started again."""

import os
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.processes import POLL_S, Child, Guard

MODEL_NAME: Final = "demo"
HOST: Final = "127.0.0.1"
READY_WAIT_S: Final = 600.0
"""Twenty times what a start takes on two idle cores: it bounds a hang, not a busy machine."""
# A proxy named in the environment is not for this machine's own ports.
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
CONNECTOR_FLAG: Final = '{"kv_connector":"TieredKVConnector","kv_role":"kv_both"}'


@dataclass(frozen=True, slots=True)
class HotTier:
    """Shape of vLLM's own cache: small, so that conversations lose their KV between turns."""

    block_tokens: int = 32
    blocks: int = 88
    context_tokens: int = 2560

    @property
    def tokens(self) -> int:
        return self.block_tokens * self.blocks


def server_command(model: Path, *, port: int, hot: HotTier, flags: Sequence[str]) -> list[str]:
    """The command line of an OpenAI server over `model`, listening on this machine only.

    float32, eager mode and one sequence at a time: a batch's composition changes the order of float
    additions, so only then can two runs be expected to choose the very same tokens.
    """
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", MODEL_NAME,
        "--host", HOST, "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "1",
        "--max-model-len", str(hot.context_tokens),
        "--block-size", str(hot.block_tokens), "--num-gpu-blocks-override", str(hot.blocks),
        "--disable-uvicorn-access-log",
        *flags,
    ]  # fmt: skip


def server_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what would change the measurement, plus `extra`."""
    dropped = ("TIEREDKV_", "VLLM_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # Four servers are started: without compiled bytecode each would spend half a minute on imports.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Keep engine and worker in one process: one start of the interpreter less.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # One compute thread: the other server and the sidecar have a core left, and times are steady.
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    return environ | dict(extra)


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


class VllmServer:
    """One vLLM server (a process group). `url` stays the same when it is started again."""

    def __init__(
        self,
        name: str,
        model: Path,
        *,
        hot: HotTier,
        flags: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        guard: Guard,
    ) -> None:
        port = free_port()
        self.name = name
        self.url = f"http://{HOST}:{port}"
        self._command = server_command(model, port=port, hot=hot, flags=flags)
        self._environ = server_environ(environ)
        self._log = log
        self._guard = guard
        self._child: Child | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed since."""
        return self._child is not None

    def start(self) -> None:
        """Start it; `wait_ready` says when it can be used."""
        assert self._child is None
        self._child = Child(
            f"vLLM {self.name}",
            self._command,
            environ=self._environ,
            log=self._log,
            guard=self._guard,
            ends_by="kill",
        )

    def wait_ready(self, *, wait_s: float = READY_WAIT_S) -> None:
        """Return when /health answers. Raises DemoFailed when it ended or took longer than `wait_s`."""
        assert self._child is not None
        deadline_s = time.monotonic() + wait_s
        while not self._is_healthy():
            self._child.check_runs()
            if time.monotonic() > deadline_s:
                raise self._child.failed(f"was not ready within {wait_s:.0f} s")
            time.sleep(POLL_S)

    def metrics_text(self) -> str:
        """What /metrics says now."""
        try:
            with _direct.open(f"{self.url}/metrics", timeout=10) as answer:
                text: str = answer.read().decode()
        except OSError as error:
            raise DemoFailed(f"demo: vLLM {self.name} does not answer /metrics: {error}") from error
        return text

    def kill(self) -> None:
        """`kill -9` of all its processes."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _is_healthy(self) -> bool:
        try:
            with _direct.open(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
