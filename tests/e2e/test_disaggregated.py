"""Two vLLM servers and the router of examples/disaggregated: one computes prompts, the other one answers."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import PATIENT_ENVIRON, ask, engine, prompts
from tests.e2e.sidecars import Sidecar
from tieredkv.demo.metrics_reading import PromptTokens, read_prompt_tokens
from tieredkv.demo.model import make_llama
from tieredkv.demo.processes import Guard
from tieredkv.demo.server import HOST, MODEL_NAME, HotTier, VllmServer, free_port
from tieredkv.demo.tokenizer import make_tokenizer

pytestmark = pytest.mark.e2e

ROUTER = Path(__file__).parents[2] / "examples" / "disaggregated" / "router.py"
CONTEXT_TOKENS = 1024
PROMPT_TOKENS = 617
CHUNK_TOKENS = 64


@pytest.mark.timeout(600)
def test_one_computes_the_prompts_and_the_other_answers(tmp_path: Path, sidecar: Sidecar) -> None:
    model = tmp_path / "model"
    make_llama(model)
    make_tokenizer(model, context_tokens=CONTEXT_TOKENS)
    questions = prompts(4, PROMPT_TOKENS, seed=31)
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        servers = [_server(role, model, tmp_path, sidecar, guard) for role in ("kv_producer", "kv_consumer")]
        for server in servers:
            stack.callback(server.kill)
            server.start()
        with engine(model, max_model_len=CONTEXT_TOKENS) as plain:
            reference = [answer.tokens for answer in ask(plain, questions)]
        for server in servers:
            server.wait_ready()
        prefill, decode = servers
        url = stack.enter_context(_router(prefill, decode))
        assert [_complete(url, question) for question in questions] == reference
        produced, consumed = (read_prompt_tokens(server.metrics_text()) for server in servers)
        assert produced == PromptTokens(4 * PROMPT_TOKENS, 0, 0, 4 * PROMPT_TOKENS)
        assert consumed.asked == 4 * PROMPT_TOKENS
        # A store may end after the decode engine has asked, on a busy machine.
        assert consumed.warm >= 3 * (PROMPT_TOKENS // CHUNK_TOKENS * CHUNK_TOKENS)
        prefill.kill()
        assert _complete(url, questions[0]) == reference[0], "the decode engine serves on alone"


def _server(role: str, model: Path, folder: Path, sidecar: Sidecar, guard: Guard) -> VllmServer:
    return VllmServer(
        role,
        model,
        hot=HotTier(block_tokens=32, blocks=48, context_tokens=CONTEXT_TOKENS),
        flags=["--kv-transfer-config", json.dumps({"kv_connector": "TieredKVConnector", "kv_role": role})],
        environ={
            "TIEREDKV_SOCKET": str(sidecar.socket),
            "TIEREDKV_ENGINE_SIDECAR": "external",
            "TIEREDKV_ENGINE_CHUNK_TOKENS": str(CHUNK_TOKENS),
        }
        | PATIENT_ENVIRON,
        log=folder / f"{role}.log",
        guard=guard,
    )


@contextmanager
def _router(prefill: VllmServer, decode: VllmServer) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROUTER), "--prefill", prefill.url, "--decode", decode.url, "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "routing" in process.stderr.readline()
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _complete(url: str, prompt: list[int]) -> tuple[int, ...]:
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        tokens: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return tuple(tokens)
