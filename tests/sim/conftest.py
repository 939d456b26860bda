"""Thousands of small replays: each would look for garbage in all that the other tests left."""

import gc
from collections.abc import Generator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_collection() -> Generator[None]:
    """Somebody outside says when garbage is collected: here, after each module."""
    gc.disable()
    yield
    gc.enable()
