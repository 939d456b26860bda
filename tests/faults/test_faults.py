"""A few rounds of `tieredkv bench faults`: real nodes under load, and nothing that is wrong may be served."""

import pytest
from rich.console import Console

from tieredkv.bench.faults import run
from tieredkv.bench.faults.injections import FAULTS
from tieredkv.errors import ConfigError

SHORT = (
    "kill_sidecar", "kill_vineyardd", "kill_mover", "stop_mover", "cut_node", "corrupt_bodies", "corrupt_messages",
    "late_messages", "corrupt_pages", "corrupt_slots", "torn_writes", "stale_index",
)  # fmt: skip
"""Kinds that last a second or two."""


@pytest.mark.slow
def test_no_fault_costs_more_than_a_bounded_wait() -> None:
    result = run.measure(Console(quiet=True), seed=5, rounds=len(SHORT), kinds=SHORT)
    assert dict(result.faults) == dict.fromkeys(SHORT, 1)
    assert not result.complaints
    assert result.wrong_tokens == 0
    assert result.corrupt_accepted == 0
    assert result.failed_requests == 0
    assert result.lost_ledger_tokens == 0
    assert result.hit_tokens > 0
    assert result.flips > 0


def test_unknown_faults_are_refused_by_name() -> None:
    assert "kill_node" in FAULTS
    with pytest.raises(ConfigError, match="flood"):
        run.measure(Console(quiet=True), kinds=("flood",))
