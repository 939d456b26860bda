"""The ledger's sums and their text."""

import math

from prometheus_client.parser import text_string_to_metric_families

from tieredkv.metrics import COUNTERS, FAILURES, LABEL_VALUES_MAX, MOVED_BYTES, SLOTS, Totals, exposition


def test_increments_of_several_engines_are_summed() -> None:
    totals = Totals()
    for _ in range(3):
        assert totals.merge({MOVED_BYTES: {"store": 5.0, "load": 1.0}}) == 0
    totals.add(MOVED_BYTES, "store")
    assert totals.values()[MOVED_BYTES] == {"store": 16.0, "load": 3.0}


def test_nonsense_is_counted_and_left_out() -> None:
    totals = Totals()
    bad = {
        "store": math.nan,
        "load": -1.0,
        "x" * 41: 1.0,
        "UPPER": 1.0,
        'a"b': 1.0,
        "": 1.0,
        "ok": 1.0,
        "inf": math.inf,
    }
    assert totals.merge({MOVED_BYTES: bad, "unknown": {"x": 1.0}}) == 8
    assert totals.values()[MOVED_BYTES] == {"ok": 1.0}


def test_label_values_are_bounded() -> None:
    totals = Totals()
    many = {f"kind_{number}": 1.0 for number in range(LABEL_VALUES_MAX + 10)}
    assert totals.merge({FAILURES: many}) == 10
    assert totals.merge({FAILURES: many}) == 10
    assert len(totals.values()[FAILURES]) == LABEL_VALUES_MAX


def test_values_are_a_copy() -> None:
    totals = Totals()
    totals.values()[FAILURES]["x"] = 1.0
    assert totals.values()[FAILURES] == {}


def test_prometheus_reads_the_text() -> None:
    totals = Totals()
    totals.add(MOVED_BYTES, "store", 2.0**53)
    totals.add(FAILURES, "protocol", 0.5)
    families = list(
        text_string_to_metric_families(exposition(totals.values(), {"ready": 3, "free": 0}, {"held": 2}, {'a "b"': 2}))
    )
    assert {f"{family.name}_total" for family in families if family.type == "counter"} == set(COUNTERS)
    values = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert values[MOVED_BYTES, "store"] == 2.0**53
    assert values[FAILURES, "protocol"] == 0.5
    assert values[SLOTS, "ready"] == 3
    assert values[SLOTS, "free"] == 0
