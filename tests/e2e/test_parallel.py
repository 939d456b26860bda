"""Tensor parallelism: a chunk holds the pages of all ranks, and is published when all have written."""

from pathlib import Path

import pytest

from tests.e2e.ask_process import ask_in_process
from tests.e2e.engines import assert_same, prompts, transfer_config
from tests.e2e.sidecars import Sidecar

pytestmark = pytest.mark.e2e

TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.mark.timeout(600)
def test_two_ranks(llama: Path, sidecar: Sidecar) -> None:
    # Four prompts that do not fit the GPU together, twice: the second time round they come from warm.
    questions = prompts(4, 617, seed=6, shared=64) * 2
    options = {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "num_gpu_blocks_override": 48,
        "max_model_len": 1024,
    }
    reference = ask_in_process(llama, questions[:4], None, environ=TWO_RANKS, **options) * 2
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 64})
    said = ask_in_process(llama, questions, transfer, environ=TWO_RANKS, **options)
    assert_same(said, reference)
    assert sum(answer.cached_tokens for answer in said[4:]) >= 4 * 512
    restarted = ask_in_process(llama, questions[:1], transfer, environ=TWO_RANKS, **options)
    assert_same(restarted, reference[:1])
    assert restarted[0].cached_tokens >= 576
