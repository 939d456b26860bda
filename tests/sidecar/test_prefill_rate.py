"""What engines say of their speed decides whether a load is worth waiting for."""

import math

import pytest

from tieredkv.metrics import PREFILL
from tieredkv.protocol import Ledger

from .conftest import Start
from .test_cold import attached, fill, tiered


def test_nothing_is_loaded_for_an_engine_that_computes_sooner(start: Start) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    assert engine.load(stored[0]) == 32
    # Rates are means over several reports.
    for _ in range(200):
        engine.scheduler.send(Ledger({PREFILL: {"tokens": 1e9, "seconds": 1e-3}}))
    assert engine.find(stored[1], "fast").coming == 0
    for _ in range(200):
        engine.scheduler.send(Ledger({PREFILL: {"tokens": 1.0, "seconds": 1.0}}))
    assert engine.find(stored[1], "slow").coming == 32


@pytest.mark.parametrize("tokens", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_teaches_nothing(start: Start, tokens: float) -> None:
    sidecar = tiered(start)
    engine = attached(sidecar)
    stored = fill(sidecar, engine, 16)
    engine.scheduler.send(Ledger({PREFILL: {"tokens": tokens, "seconds": 1e-9}}))
    engine.scheduler.send(Ledger({PREFILL: {"tokens": 1e9}}))
    assert engine.load(stored[0]) == 32
