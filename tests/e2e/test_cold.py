"""With far more prompts than the warm tier holds: what left it comes back from cold pages, whoever is killed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, Self

import pytest

from tests.e2e.engines import Answer, ask, assert_same, engine, prompts, transfer_config
from tests.e2e.sidecars import Sidecar, wait_until
from tieredkv.cli.admin import Admin

pytestmark = pytest.mark.e2e

CHUNK_TOKENS = 32
PROMPT_TOKENS = 617
PROMPT_CHUNKS = PROMPT_TOKENS // CHUNK_TOKENS
PROMPTS = 16
SLOTS = 128
SLOT_BYTES = 64 * 1024 + 384


class Reference:
    """What vLLM says by itself."""

    def __init__(self, model: Path) -> None:
        self.questions = prompts(PROMPTS, PROMPT_TOKENS, seed=21)
        with engine(model) as plain:
            self.answers = ask(plain, self.questions)

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        return [answer.tokens for answer in self.answers]


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.fixture
def overflowing() -> Iterator[Sidecar]:
    """Room for six prompts in warm, for all in cold."""
    cold = {"size": 2 * PROMPTS * PROMPT_CHUNKS * SLOT_BYTES, "low_free": 0.3, "high_free": 0.5, "load_deadline": "10s"}
    running = Sidecar(
        warm=str(SLOTS * SLOT_BYTES), cold=cold, policy={"name": "lru"}, limits={"engine_share_max": 1.0}
    ).start()
    try:
        yield running
    finally:
        running.stop()


def transfer(sidecar: Sidecar) -> dict[str, Any]:
    return transfer_config(
        socket=str(sidecar.socket), engine={"chunk_tokens": CHUNK_TOKENS, "lease_chunks": 32, "sidecar": "external"}
    )


def status(sidecar: Sidecar) -> dict[str, Any]:
    with Admin(sidecar.socket) as admin:
        return admin.status()


def counted(sidecar: Sidecar, metric: str, label: str) -> float:
    value: float = status(sidecar)["counters"][f"tieredkv_{metric}_total"].get(label, 0.0)
    return value


def fill(llm: Any, sidecar: Sidecar, reference: Reference) -> None:
    """Ask all once, no faster than the mover demotes, and let the engine's own cache forget."""
    wait_until(lambda: bool(status(sidecar)["mover"]["ready"]), 10.0)
    for question, expected in zip(reference.questions, reference.answers, strict=True):
        assert_same(ask(llm, [question]), [expected])
        wait_until(lambda: not status(sidecar)["slots"]["demoting"], 10.0)
    llm.reset_prefix_cache()


def test_demoted_prompts_come_back_from_cold(llama: Path, overflowing: Sidecar, reference: Reference) -> None:
    with engine(llama, transfer(overflowing)) as ours:
        fill(ours, overflowing, reference)
        assert status(overflowing)["pages"]["held"] > SLOTS
        again = ask(ours, reference.questions)
        assert_same(again, reference.answers)
        served = [answer.cached_tokens for answer in again]
        assert sum(served) > 0.9 * PROMPTS * PROMPT_CHUNKS * CHUNK_TOKENS
        promoted = counted(overflowing, "moved_bytes", "promote")
        assert promoted > 0.9 * (PROMPTS * PROMPT_CHUNKS - SLOTS) * 64 * 1024

        def reported() -> bool:
            ask(ours, prompts(1, 20, seed=22), tokens=1)  # reports go out with the engine's steps
            return counted(overflowing, "prefix_tokens", "warm") >= sum(served)

        wait_until(reported, 20.0)


class Knife:
    """Kills the victim as soon as `when()`, and starts it again if nobody else does."""

    def __init__(self, sidecar: Sidecar, victim: str, when: Callable[[], bool]) -> None:
        self._sidecar = sidecar
        self._victim = victim
        self._when = when
        self._pid = status(sidecar)["mover"]["pid"]
        self._thread = Thread(target=self._wait_and_kill)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def waiting(self) -> bool:
        """It has not been time yet."""
        return self._thread.is_alive()

    def _wait_and_kill(self) -> None:
        try:
            wait_until(self._when, 60.0, lambda: str(status(self._sidecar)["mover"]))
            if self._victim == "mover":
                os.kill(self._pid, signal.SIGKILL)
            else:
                self._sidecar.kill()
                self._sidecar.start()
        except BaseException as failure:  # noqa: BLE001 - told to the test
            self._failure = failure


@pytest.mark.parametrize("victim", ["mover", "sidecar"])
def test_whoever_is_killed_while_it_loads(llama: Path, overflowing: Sidecar, reference: Reference, victim: str) -> None:
    with engine(llama, transfer(overflowing)) as ours:
        fill(ours, overflowing, reference)
        before = counted(overflowing, "moved_bytes", "promote")
        with Knife(overflowing, victim, lambda: counted(overflowing, "moved_bytes", "promote") > before) as knife:
            assert _tokens(ask(ours, reference.questions, together=True)) == reference.tokens
            while knife.waiting:  # a mover that a busy machine keeps waiting loads nothing for the first of them
                ours.reset_prefix_cache()
                assert _tokens(ask(ours, reference.questions, together=True)) == reference.tokens
        ours.reset_prefix_cache()
        assert _tokens(ask(ours, reference.questions, together=True)) == reference.tokens
        # Whatever was lost has been computed and stored again: cold serves as before.
        wait_until(lambda: bool(status(overflowing)["mover"]["ready"]), 10.0)
        assert victim == "sidecar" or status(overflowing)["mover"]["restarts"] == 1

        def serves() -> bool:
            ours.reset_prefix_cache()
            again = ask(ours, reference.questions)
            assert_same(again, reference.answers)
            return sum(answer.cached_tokens for answer in again) > 0.9 * PROMPTS * PROMPT_TOKENS

        wait_until(serves, 60.0)


def _tokens(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in answers]
