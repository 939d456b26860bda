"""The rate of prefill, over steps that overlap, pauses and small steps."""

import pytest

from tieredkv.clock import ManualClock
from tieredkv.metrics import PREFILL
from tieredkv.vllm_client.ledger import EngineLedger
from tieredkv.vllm_client.prefill import DECODE_TOKENS_MAX, PREFILL_TOKENS_MIN, STEPS_MAX, PrefillMeter


class Engine:
    """A meter that has seen its first step, whose clock moves when told to."""

    def __init__(self) -> None:
        self.clock = ManualClock(50.0)
        self.ledger = EngineLedger()
        self.meter = PrefillMeter(self.ledger, self.clock)
        self.step([512], 30.0)

    def step(self, scheduled: list[int], seconds: float) -> None:
        self.meter.begin(scheduled)
        self.clock.advance(seconds)
        self.meter.end()

    def counted(self) -> dict[str, float]:
        return self.ledger.take_report().get(PREFILL, {})


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_the_first_step_compiles_and_does_not_count(engine: Engine) -> None:
    assert engine.counted() == {}


def test_pauses_between_steps_do_not_count(engine: Engine) -> None:
    engine.step([512, 1, 1], 0.5)
    engine.clock.advance(1000.0)
    engine.step([256], 0.25)
    assert engine.counted() == {"tokens": 768, "seconds": 0.75}


def test_small_steps_and_decoding_do_not_count(engine: Engine) -> None:
    engine.step([PREFILL_TOKENS_MIN - 1], 0.5)
    engine.step([DECODE_TOKENS_MAX] * 200, 0.5)
    assert engine.counted() == {}


def test_a_step_that_begins_before_the_former_one_ended_is_computed_after_it(engine: Engine) -> None:
    engine.meter.begin([100])
    engine.meter.begin([200])
    engine.clock.advance(1.0)
    engine.meter.end()
    engine.meter.begin([1])
    engine.clock.advance(2.0)
    engine.meter.end()
    engine.clock.advance(4.0)
    engine.meter.end()
    assert engine.counted() == {"tokens": 300, "seconds": 3.0}


def test_ends_that_are_not_told_are_forgotten(engine: Engine) -> None:
    for _ in range(3 * STEPS_MAX):
        engine.meter.begin([100])
    for _ in range(3 * STEPS_MAX):
        engine.meter.end()
    engine.counted()
    engine.step([100], 1.0)
    assert engine.counted() == {"tokens": 100, "seconds": 1.0}
