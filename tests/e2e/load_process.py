"""A real engine under load, in a process of its own, that checks every answer and times our calls.

Started by `LoadedEngine`; prints one JSON object per line: {"ready": true}, then one per batch:
{"batch": n, "wrong": answers that differ, "cached": prompt tokens not recomputed, "asked": prompt tokens,
"stall_ms": longest time that our code held a step so far, "stall_cpu_ms": its part on the CPU}.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any

READY_DEADLINE_S = 240.0
BATCH_DEADLINE_S = 60.0
QUESTIONS = 12
TOKENS = 420

SCHEDULER_CALLS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "update_connector_output",
    "request_finished_all_groups",
    "get_kv_connector_stats",
    "take_events",
    "build_connector_meta",
)
WORKER_CALLS = ("start_load_kv", "wait_for_save", "get_transfer_results", "build_connector_worker_meta")


class LoadedEngine:
    """The parent's side."""

    def __init__(self, model: Path, socket: Path, seed: int, *, reference: Path) -> None:
        job = {"model": str(model), "socket": str(socket), "seed": seed, "reference": str(reference)}
        self._log = reference.with_suffix(".log")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.load_process", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        self._wait_for("ready", READY_DEADLINE_S)

    def batch(self) -> dict[str, Any]:
        """The next finished batch."""
        return self._wait_for("batch", BATCH_DEADLINE_S)

    def kill(self) -> None:
        """kill -9 of the whole engine."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it cleanly."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def _wait_for(self, key: str, deadline_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until_s = time.monotonic() + deadline_s
        while True:
            left_s = until_s - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(left_s, 0))
            assert ready, f"the engine said no {key} within {deadline_s} s"
            line = self._process.stdout.readline()
            assert line, f"the engine ended with {self._process.wait()}: {self._log.read_text()[-2000:]}"
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                if key in said:
                    return said


class StallMeter:
    """Sums the time that our connector takes in each step of the engine's thread."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self.worst_cpu_ms = 0.0
        self._step = 0.0
        self._step_cpu = 0.0
        self._depth = 0

    def watch(self, connector: type) -> None:
        """Time the connector's calls; `build_connector_meta` ends a step."""
        for name in (*SCHEDULER_CALLS, *WORKER_CALLS):
            setattr(connector, name, self._timed(getattr(connector, name), ends=name == "build_connector_meta"))

    def _timed(self, method: Callable[..., Any], *, ends: bool) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._step += time.perf_counter() - wall
                    self._step_cpu += time.thread_time() - cpu
                    if ends:
                        self._end_step()

        return call

    def _end_step(self) -> None:
        if self._step * 1e3 > self.worst_ms:
            self.worst_ms, self.worst_cpu_ms = self._step * 1e3, self._step_cpu * 1e3
        self._step = self._step_cpu = 0.0


def main() -> None:
    from tests.e2e.engines import ask, engine, prompts, transfer_config

    job = json.loads(sys.argv[1])
    questions = prompts(QUESTIONS, TOKENS, seed=11, shared=96)
    model, reference = Path(job["model"]), Path(job["reference"])
    options = {"num_gpu_blocks_override": 64, "max_num_seqs": 8, "max_model_len": 1024}
    if not reference.exists():
        with engine(model, **options) as plain:
            reference.write_text(json.dumps([answer.tokens for answer in ask(plain, questions)]))
    expected = [tuple(tokens) for tokens in json.loads(reference.read_text())]

    from tieredkv.vllm_client.connector import TieredKVConnector

    meter = StallMeter()
    meter.watch(TieredKVConnector)
    random = Random(job["seed"])
    as_users_have_it = {"chunk_tokens": 32, "sidecar": "external", "lookup_deadline": "50ms"}
    transfer = transfer_config(socket=job["socket"], engine=as_users_have_it)
    with engine(model, transfer, **options) as llm:
        ask(llm, questions[:1])
        meter.worst_ms = meter.worst_cpu_ms = 0.0  # compilation at the first step is not ours to judge
        print(json.dumps({"ready": True}), flush=True)
        number = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            number += 1
            picked = [random.randrange(QUESTIONS) for _ in range(4)]
            answers = ask(llm, [questions[i] for i in picked], together=True)
            wrong = sum(answer.tokens != expected[i] for i, answer in zip(picked, answers, strict=True))
            row = {"batch": number, "wrong": wrong, "cached": sum(answer.cached_tokens for answer in answers)}
            row |= {"asked": TOKENS * len(picked)}
            print(json.dumps(row | {"stall_ms": meter.worst_ms, "stall_cpu_ms": meter.worst_cpu_ms}), flush=True)


if __name__ == "__main__":
    main()
