"""Models made once, and a sidecar per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.sidecars import Sidecar


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM and torch warn about themselves all the time; in these tests that is not ours to judge."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GQA llama with random, scaled weights (dummy weights would hide corruption)."""
    from tieredkv.demo.model import make_llama

    path = tmp_path_factory.mktemp("models") / "llama"
    make_llama(path)
    return path


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small hybrid: sliding windows and full attention in KV groups of their own."""
    from tieredkv.demo.model import make_gemma3_like

    path = tmp_path_factory.mktemp("models") / "gemma"
    make_gemma3_like(path)
    return path


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A running sidecar with 256 MiB."""
    running = Sidecar().start()
    try:
        yield running
    finally:
        running.stop()
