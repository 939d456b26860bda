"""A real vLLM's life with a sidecar, recorded, replays in the simulator to the same decisions."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.e2e.engines import VOCABULARY, engine, transfer_config
from tests.e2e.sidecars import Sidecar
from tieredkv.sim.parity import verify
from tieredkv.sim.traces import read_trace

pytestmark = pytest.mark.e2e

CHUNK_TOKENS = 32
SESSIONS = 6
TURNS = 40
SMALL_HOT = {"max_model_len": 1024, "num_gpu_blocks_override": 40}
"""Less than half of what warm holds: what hot has lost stays there for many turns, in whatever order stores end."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["gix", "lru"])
def test_a_recorded_run_replays_to_the_same_decisions(llama: Path, tmp_path: Path, policy: str) -> None:
    path = tmp_path / "trace.jsonl"
    sidecar = Sidecar(warm="7MiB", policy={"name": policy}, trace={"path": str(path), "events": True})
    try:
        sidecar.start()
        transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": CHUNK_TOKENS})
        with engine(llama, transfer, **SMALL_HOT) as ours:
            asked = _converse(ours, sidecar)
        status = sidecar.status()
        assert status is not None
    finally:
        sidecar.stop()
    verdict = verify(path.with_name("trace.jsonl.events.jsonl"))
    assert verdict.differences == []
    assert not verdict.cut
    counters = status["counters"]
    assert verdict.evictions == counters["tieredkv_evictions_total"]["room"] > 0
    assert verdict.stores == counters["tieredkv_publications_total"]["stored"] > 0
    assert verdict.refusals == sum(counters["tieredkv_publications_total"].values()) - verdict.stores
    assert verdict.hits
    assert counters["tieredkv_prefix_tokens_total"]["warm"] > 0
    assert counters["tieredkv_hints_total"]["ignored"] == asked
    assert verdict.compared["hint"] == counters["tieredkv_hints_total"]["taken"] - _taken(path) == 1
    _assert_arrivals(path, asked)


def _converse(ours: Any, sidecar: Sidecar) -> int:
    """Turns of random conversations, each in a session of its own; the number of requests."""
    from vllm import SamplingParams

    random = Random(5)
    head = [random.randrange(3, VOCABULARY) for _ in range(64)]
    said: dict[int, list[int]] = {}
    for turn in range(TURNS):
        session = random.randrange(SESSIONS)
        chat = said.setdefault(session, list(head))
        chat += [random.randrange(3, VOCABULARY) for _ in range(random.randrange(60, 200))]
        ends = len(chat) > 700
        hints = {"session": f"alice {session}", "session_closed": ends, "return_within_s": 60, "unheard": "of"}
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=8,
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": {"tieredkv": hints}},
        )
        (output,) = ours.generate([{"prompt_token_ids": chat}], sampling, use_tqdm=False)
        chat += output.outputs[0].token_ids
        if ends:
            del said[session]
        if turn == TURNS // 2:
            _hint(sidecar, f"alice {session}")
    return TURNS


def _hint(sidecar: Sidecar, session: str) -> None:
    command = [sys.executable, "-m", "tieredkv.cli", "hint", "--session", session, "--keep"]
    subprocess.run([*command, "--socket", str(sidecar.socket)], check=True)


def _taken(path: Path) -> int:
    """Hints that came with requests, as the recording of the arrivals has them; those that say nothing included."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(3 for line in lines if "session_id" in line)


def _assert_arrivals(path: Path, asked: int) -> None:
    """The arrivals are a trace that the simulator reads, and tell nobody's name."""
    trace = read_trace(path)
    assert trace.block_tokens == CHUNK_TOKENS
    assert len(trace.requests) == asked
    assert len({request.session for request in trace.requests}) <= SESSIONS
    assert all(request.hints["return_within_s"] == 60 for request in trace.requests)
    assert any(request.hints.get("session_closed") for request in trace.requests)
    written = path.read_text() + path.with_name("trace.jsonl.events.jsonl").read_text()
    assert "alice" not in written
    assert "unheard" not in written
