"""The default policy on loads that break policies: small ones; benchmarks/robustness.py runs large ones."""

import pytest

from tieredkv.config import PolicyConfig
from tieredkv.sim.robustness import LOADS, stress

LOSS_MAX = 0.005


@pytest.mark.slow
@pytest.mark.parametrize("load", ["one-shot flood", "trunk churn", "think times x0.3", "think times x3"])
def test_the_default_policy_is_not_below_lru(load: str) -> None:
    stressed = stress(PolicyConfig(), load, requests=4000, seed=1, fractions=(0.03, 0.2))
    assert stressed.loss <= LOSS_MAX
    assert stressed.comparison.requests == 4000


def test_lru_loses_nothing_to_itself() -> None:
    for load in LOADS:
        stressed = stress(PolicyConfig(name="lru"), load, requests=50, seed=2, fractions=(0.1,))
        assert stressed.loss == 0
        assert [result.lru_to_min_gap_percent for result in stressed.comparison.results] in ([0, 0], [None, None])
