"""With and without tieredkv, a real vLLM says the same: over layouts, restarts, engines and preemptions."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ask_process import ask_in_process
from tests.e2e.engines import Answer, ask, assert_same, engine, prompts, transfer_config
from tests.e2e.sidecars import Sidecar, wait_until

pytestmark = pytest.mark.e2e

LAYOUTS: list[Any] = [
    pytest.param("llama", {"block_size": 32}, 32, id="block-32-chunk-of-1"),
    pytest.param("llama", {"block_size": 32}, 64, id="block-32-chunk-of-2"),
    pytest.param("llama", {"block_size": 128, "num_gpu_blocks_override": 24}, 128, id="block-128"),
    pytest.param("gemma", {"block_size": 32, "num_gpu_blocks_override": 300}, 32, id="sliding-windows"),
    pytest.param("gemma", {"block_size": 32, "num_gpu_blocks_override": 300}, 64, id="sliding-windows-chunk-of-2"),
]


def _model(request: pytest.FixtureRequest, name: str) -> Path:
    path: Path = request.getfixturevalue(name)
    return path


@pytest.mark.parametrize(("model", "options", "chunk_tokens"), LAYOUTS)
def test_tokens_are_equal_and_come_from_warm(
    request: pytest.FixtureRequest, sidecar: Sidecar, model: str, options: dict[str, Any], chunk_tokens: int
) -> None:
    path = _model(request, model)
    # 617 tokens end inside a block; the second set starts inside a chunk of the first.
    questions = prompts(4, 617, seed=1, shared=224) + prompts(2, 1000, seed=2)
    with engine(path, **options) as plain:
        reference = ask(plain, questions)
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": chunk_tokens})
    with engine(path, transfer, **options) as ours:
        assert_same(ask(ours, questions), reference)
        ours.reset_prefix_cache()  # the GPU forgets, the warm tier does not
        again = ask(ours, questions)
        assert_same(again, reference)
        for question, answer in zip(questions, again, strict=True):
            assert answer.cached_tokens >= (len(question) - 1) // chunk_tokens * chunk_tokens - chunk_tokens
        # A GPU hit that ends inside a chunk: the load starts unaligned.
        ours.reset_prefix_cache()
        ask(ours, [questions[0][:96]])
        assert_same(ask(ours, questions[:2]), reference[:2])
    with engine(path, transfer, **options) as restarted:
        first = ask(restarted, questions[:1])
        assert_same(first, reference[:1])
        assert first[0].cached_tokens >= 512, "a restarted engine serves its first prompt from warm"
        _corrupt_all()
        spoilt = ask(restarted, questions[1:])
        assert [a.tokens for a in spoilt] != [a.tokens for a in reference[1:]], "the control must see corruption"


def test_preempted_requests_and_decoded_tokens(llama: Path, sidecar: Sidecar) -> None:
    questions = prompts(16, 120, seed=3)
    options = {"num_gpu_blocks_override": 60, "max_num_seqs": 16, "max_model_len": 512}
    with engine(llama, **options) as plain:
        reference = ask(plain, questions, tokens=200, together=True)
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 32})
    with engine(llama, transfer, **options) as ours:
        said = ask(ours, questions, tokens=200, together=True)
        assert _tokens(said) == _tokens(reference)
        # What was decoded was stored too: a follow-up question over it is served from warm.
        ours.reset_prefix_cache()
        history = questions[0] + list(said[0].tokens)
        (follow_up,) = ask(ours, [[*history, 7]])
        assert follow_up.cached_tokens >= 256
        preemptions = sum(m.value for m in ours.get_metrics() if m.name == "vllm:num_preemptions")
        assert preemptions > 0, "the test wants preemptions"


def test_two_engines_share_each_chunk_once(llama: Path, sidecar: Sidecar) -> None:
    questions = prompts(3, 900, seed=4)
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 32})
    with engine(llama, transfer) as first:
        reference = ask(first, questions)

        def stored() -> bool:
            # The last stores of a prompt are published by later steps.
            ask(first, prompts(1, 20, seed=17), tokens=1)
            return _ready(sidecar) >= 3 * (900 // 32)

        wait_until(stored, 20.0, sidecar.log)
        ready = _ready(sidecar)
        shared = ask_in_process(llama, questions, transfer)
        assert_same(shared, reference)
        assert all(answer.cached_tokens >= 864 for answer in shared), "served at its first request"
        assert _ready(sidecar) == ready, "each chunk is stored once"


def test_other_weights_share_nothing(llama: Path, sidecar: Sidecar, tmp_path: Path) -> None:
    from tieredkv.demo.model import make_llama

    questions = prompts(1, 600, seed=5)
    transfer = transfer_config(socket=str(sidecar.socket))
    with engine(llama, transfer) as first:
        ask(first, questions)
    make_llama(tmp_path / "other", seed=99)
    with engine(tmp_path / "other", transfer) as other:
        (answer,) = ask(other, questions)
        assert answer.cached_tokens == 0


def test_a_reset_forgets_everything_and_tiering_goes_on(llama: Path, sidecar: Sidecar) -> None:
    questions = prompts(3, 600, seed=16)
    transfer = transfer_config(socket=str(sidecar.socket), engine={"chunk_tokens": 32})
    with engine(llama, transfer) as ours:
        reference = ask(ours, questions)
        assert ours.reset_prefix_cache(reset_connector=True)
        # Who asks before new slots were leased stores less.
        wait_until(lambda: _slots(sidecar)["leased"] > 0, 10.0, sidecar.log)
        forgotten = ask(ours, questions)
        assert_same(forgotten, reference)
        assert all(answer.cached_tokens == 0 for answer in forgotten)
        ours.reset_prefix_cache()
        again = ask(ours, questions)
        assert_same(again, reference)
        assert all(answer.cached_tokens >= 576 for answer in again), "what was stored after the reset counts"


def _corrupt_all() -> None:
    """Flip bytes in the body of every published chunk, behind everybody's back."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = get_kv_transfer_group()
    attachment = connector.connector_worker.worker.attachment
    size = int(attachment.offsets[1] - attachment.offsets[0]) - 512
    for offset in attachment.offsets.tolist():
        body = attachment.arena[offset + attachment.body_offset : offset + attachment.body_offset + size]
        body ^= 0x5A


def _slots(sidecar: Sidecar) -> dict[str, int]:
    status = sidecar.status()
    assert status is not None
    slots: dict[str, int] = status["slots"]
    return slots


def _tokens(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in answers]


def _ready(sidecar: Sidecar) -> int:
    status = sidecar.status()
    assert status is not None
    return sum(pool["slots"]["ready"] for pool in status["pools"])
