"""Real vLLM engines on CPU, in this process, one after the other; and what they answered.

Environment variables that vLLM reads at import are set here, before anything imports it; what is set
already stays.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}.items():
    os.environ.setdefault(name, value)

VOCABULARY = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said to one prompt."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int


PATIENCE = {"lookup_deadline": "5s", "attach_deadline": "60s"}
"""What a busy machine wakes or starts late is a miss by design; the tests of hits wait for it instead."""

PATIENT_ENVIRON = {f"TIEREDKV_ENGINE_{name.upper()}": value for name, value in PATIENCE.items()}


def transfer_config(**extra: Any) -> dict[str, Any]:
    """The one flag; `extra` are settings of ours."""
    settings = extra | {"engine": PATIENCE | extra.get("engine", {})}
    return {
        "kv_connector": "TieredKVConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"tieredkv": settings} if extra else {},
    }


@contextmanager
def engine(model: Path, transfer: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """A vLLM engine over `model`; closed and freed at the end."""
    from vllm import LLM

    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 2048,
        "block_size": 32,
        "num_gpu_blocks_override": 80,
        "distributed_executor_backend": "uni",
        "disable_log_stats": False,
        "seed": 0,
        "kv_transfer_config": transfer,
    } | options
    llm = LLM(model=str(model), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def prompts(count: int, tokens: int, *, seed: int, shared: int = 0) -> list[list[int]]:
    """`count` random prompts of `tokens` tokens, the first `shared` of them the same in all."""
    random = Random(seed)
    head = [random.randrange(3, VOCABULARY) for _ in range(shared)]
    return [head + [random.randrange(3, VOCABULARY) for _ in range(tokens - shared)] for _ in range(count)]


def ask(llm: Any, questions: Sequence[Sequence[int]], *, tokens: int = 8, together: bool = False) -> list[Answer]:
    """Greedy answers with logprobs; one after the other unless `together`."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=1, ignore_eos=True, detokenize=False)
    batches = [list(questions)] if together else [[question] for question in questions]
    answers: list[Answer] = []
    for batch in batches:
        outputs = llm.generate([{"prompt_token_ids": list(q)} for q in batch], sampling, use_tqdm=False)
        for output in outputs:
            said = output.outputs[0]
            logprobs = tuple(step[token].logprob for step, token in zip(said.logprobs, said.token_ids, strict=True))
            answers.append(Answer(tuple(said.token_ids), logprobs, output.num_cached_tokens or 0))
    return answers


def assert_same(ours: Sequence[Answer], reference: Sequence[Answer]) -> None:
    """Equal tokens, logprobs within 1e-4."""
    for number, (mine, theirs) in enumerate(zip(ours, reference, strict=True)):
        assert mine.tokens == theirs.tokens, f"prompt {number}: {mine.tokens} is not {theirs.tokens}"
        worst = max(abs(a - b) for a, b in zip(mine.logprobs, theirs.logprobs, strict=True))
        assert worst <= 1e-4, f"prompt {number}: logprobs differ by {worst}"
