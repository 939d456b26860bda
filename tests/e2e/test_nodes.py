"""Real vLLM engines on two nodes, and a node of memory only: what one computed serves the others."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ask_process import ask_in_process
from tests.e2e.engines import ask, assert_same, engine, prompts, transfer_config
from tests.e2e.sidecars import Sidecar, wait_until

pytestmark = pytest.mark.e2e

CHUNK_TOKENS = 32
PATIENCE_S = 30.0


def _ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def nodes() -> Iterator[dict[str, Sidecar]]:
    """Nodes a and b for engines, whose warm tiers are small, and m with memory only."""
    ports = dict(zip("abm", zip(*[iter(_ports(6))] * 2, strict=True), strict=True))
    peers = [f"127.0.0.1:{listen}" for listen, _ in ports.values()]
    running: dict[str, Sidecar] = {}
    try:
        for name, (listen, rpc) in ports.items():
            cluster = {"node": name, "listen": f"127.0.0.1:{listen}", "rpc_port": rpc, "peers": peers}
            cold = {"size": "256MiB" if name == "m" else 0, "low_free": 0.3, "high_free": 0.5, "load_deadline": "10s"}
            warm = "16MiB" if name == "a" else "64MiB" if name == "b" else "1MiB"
            running[name] = Sidecar(warm, cluster=cluster, cold=cold, policy={"name": "lru"}).start()
        for sidecar in running.values():
            wait_until(lambda one=sidecar: len(_status(one)["cluster"]["peers"]) == 2, PATIENCE_S, sidecar.log)
        yield running
    finally:
        for sidecar in running.values():
            sidecar.stop()


def _status(of: Sidecar) -> dict[str, Any]:
    status = of.status()
    assert status is not None, of.log()
    return status


def _pool(of: Sidecar) -> dict[str, Any]:
    return next(iter(_status(of)["pools"]), {})


def _transfer(of: Sidecar) -> dict[str, Any]:
    return transfer_config(socket=str(of.socket), engine={"chunk_tokens": CHUNK_TOKENS, "sidecar": "external"})


def test_a_prompt_that_another_node_saw_is_served_from_there_and_outlives_it(
    llama: Path, nodes: dict[str, Sidecar]
) -> None:
    a, b, m = nodes.values()
    questions = prompts(12, 617, seed=11)
    with engine(llama) as plain:
        reference = ask(plain, questions)
    with engine(llama, _transfer(a)) as first:
        wait_until(lambda: bool(_pool(m)) and _status(m)["mover"]["ready"], PATIENCE_S, m.log)
        wait_until(lambda: _status(a)["mover"]["ready"], PATIENCE_S, a.log)
        for question, answer in zip(questions, reference, strict=True):
            assert_same(ask(first, [question]), [answer])
            wait_until(lambda: not _status(a)["slots"]["demoting"], PATIENCE_S, a.log)
        held = _status(m)["pages"]["held"]
        assert held > 0, "what left the first node's warm tier is on the node of memory"
    # The youngest is in the first node's slots still. Before it a short one: the node follows the others from the
    # moment on that its first engine came.
    _, served = ask_in_process(llama, [questions[-1][:40], questions[-1]], _transfer(b))
    assert_same([served], reference[-1:])
    assert served.cached_tokens >= 512, "computed on the first node, read by the second"
    pid = _status(a)["vineyardd"]["pid"]
    a.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(_status(b)["cluster"]["peers"]) == 1, PATIENCE_S, b.log)
    late = ask_in_process(llama, questions[:-1], _transfer(b))
    assert_same(late, reference[:-1])
    cached = sum(answer.cached_tokens for answer in late)
    assert cached >= (held - 20) * CHUNK_TOKENS > 0, "the node of memory serves what the dead one gave it"
    moved = _status(b)["counters"]["tieredkv_moved_bytes_total"]
    assert moved["fetch"] > 0
