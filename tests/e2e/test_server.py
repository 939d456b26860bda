"""The OpenAI server in vLLM's default layout (front end, engine core and worker apart), with one flag."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.engines import PATIENT_ENVIRON, prompts
from tests.e2e.sidecars import Sidecar
from tieredkv.demo.metrics_reading import read_prompt_tokens
from tieredkv.demo.model import make_llama
from tieredkv.demo.processes import Guard
from tieredkv.demo.server import CONNECTOR_FLAG, MODEL_NAME, HotTier, VllmServer
from tieredkv.demo.tokenizer import make_tokenizer

pytestmark = pytest.mark.e2e

HOT = HotTier(block_tokens=32, blocks=48, context_tokens=1024)


@pytest.mark.timeout(600)
def test_completions_are_equal_with_one_flag(tmp_path: Path, sidecar: Sidecar) -> None:
    model = tmp_path / "model"
    make_llama(model)
    make_tokenizer(model, context_tokens=1024)
    questions = prompts(4, 617, seed=14, shared=64) * 2
    with _server(tmp_path, model, [], {}) as plain:
        reference = [_complete(plain, question) for question in questions]
    environ = {
        "TIEREDKV_SOCKET": str(sidecar.socket),
        "TIEREDKV_ENGINE_SIDECAR": "external",
        "TIEREDKV_ENGINE_CHUNK_TOKENS": "64",
    }
    with _server(tmp_path, model, ["--kv-transfer-config", CONNECTOR_FLAG], environ | PATIENT_ENVIRON) as ours:
        answers = [_complete(ours, question) for question in questions]
        text = ours.metrics_text()
    for mine, theirs in zip(answers, reference, strict=True):
        assert mine["tokens"] == theirs["tokens"]
        assert max(abs(a - b) for a, b in zip(mine["token_logprobs"], theirs["token_logprobs"], strict=True)) <= 1e-4
    counted = read_prompt_tokens(text)
    assert counted.warm >= 4 * 512
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = "tieredkv_prefix_tokens_total"
    prefix = {dict(key[1:])["result"]: value for key, value in samples.items() if key[0] == name}
    assert prefix["asked"] == counted.asked
    assert prefix["warm"] == counted.warm
    assert prefix["hot"] == counted.hot
    by_host = [value for key, value in samples.items() if ("source", "host") in key and "external" not in key[0]]
    assert counted.warm in by_host, "vLLM names the host's memory as the source"
    hints = {dict(key[1:])["result"]: value for key, value in samples.items() if key[0] == "tieredkv_hints_total"}
    assert hints == {"taken": 2 * len(questions)}


@contextmanager
def _server(folder: Path, model: Path, flags: list[str], environ: dict[str, str]) -> Iterator[VllmServer]:
    with Guard() as guard:
        server = VllmServer(
            "under test",
            model,
            hot=HOT,
            flags=flags,
            environ={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | environ,
            log=folder / f"server-{len(flags)}.log",
            guard=guard,
        )
        server.start()
        server.wait_ready()
        try:
            yield server
        finally:
            server.kill()


def _complete(server: VllmServer, prompt: list[int]) -> dict[str, Any]:
    hints = {"session": "s", "return_within_s": 60}
    body = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
        "kv_transfer_params": {"tieredkv": hints},
    }
    asked = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        choice = json.load(answer)["choices"][0]
    logprobs: dict[str, Any] = choice["logprobs"]
    return logprobs
