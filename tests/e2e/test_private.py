"""One flag and nothing else: the engine brings its own sidecar, and it ends with the engine."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.e2e.ask_process import ask_in_process
from tests.e2e.engines import PATIENT_ENVIRON, ask, assert_same, engine, prompts, transfer_config
from tests.e2e.sidecars import Sidecar, wait_until

pytestmark = pytest.mark.e2e


def test_a_private_sidecar_comes_and_goes_with_the_engine(llama: Path) -> None:
    questions = prompts(3, 617, seed=12)
    with tempfile.TemporaryDirectory(prefix="tkv-", dir="/tmp") as folder:
        environ = {"XDG_RUNTIME_DIR": folder, "TIEREDKV_WARM_SIZE": "64MiB", "TIEREDKV_ENGINE_SIDECAR": "private"}
        environ |= PATIENT_ENVIRON
        # Three prompts that do not fit the GPU together, twice over.
        options = {"num_gpu_blocks_override": 40, "max_model_len": 1024}
        said = ask_in_process(llama, questions * 2, transfer_config(), environ=environ, **options)
        assert_same(said[3:], said[:3])
        assert sum(answer.cached_tokens for answer in said[3:]) >= 3 * 512
        wait_until(lambda: not _processes_of(folder), 10.0, lambda: str(_processes_of(folder)))
        (left,) = Path(folder).iterdir()
        assert not (left / "pool.json").exists()
        ask_in_process(llama, questions[:1], transfer_config(), environ=environ, **options)
        wait_until(lambda: not _processes_of(folder), 10.0, lambda: str(_processes_of(folder)))
        assert left not in Path(folder).iterdir(), "the next one removes what the former left"


def test_a_hung_sidecar_stalls_nobody(llama: Path, sidecar: Sidecar) -> None:
    questions = prompts(4, 300, seed=13)
    impatient = {"chunk_tokens": 32, "sidecar": "external", "lookup_deadline": "50ms"}
    settings = {"engine": impatient, "socket": str(sidecar.socket)}
    with engine(llama, transfer_config(**settings)) as ours:
        reference = ask(ours, questions)
        sidecar.suspend()
        try:
            ours.reset_prefix_cache()
            assert_same(ask(ours, questions), reference)
        finally:
            sidecar.resume()

        def picked_up_again() -> bool:
            ours.reset_prefix_cache()
            again = ask(ours, questions)
            assert_same(again, reference)
            return sum(answer.cached_tokens for answer in again) >= 4 * 256

        wait_until(picked_up_again, 30.0, sidecar.log)


def test_a_sidecar_that_comes_late_is_used(llama: Path) -> None:
    questions = prompts(2, 300, seed=15)
    late = Sidecar("64MiB")
    settings = {"engine": {"chunk_tokens": 32, "sidecar": "external", "attach_deadline": "50ms"}}
    try:
        with engine(llama, transfer_config(socket=str(late.socket), **settings)) as ours:
            reference = ask(ours, questions)
            late.start()

            def warm() -> bool:
                ours.reset_prefix_cache()
                said = ask(ours, questions)
                assert_same(said, reference)
                return sum(answer.cached_tokens for answer in said) >= 2 * 256

            wait_until(warm, 60.0, late.log)
    finally:
        late.stop()


def _processes_of(folder: str) -> list[str]:
    """Command lines of living processes that were started for this folder."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if folder in command:
                found.append(command)
    return found
