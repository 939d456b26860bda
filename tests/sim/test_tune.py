from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tieredkv.config import load_config
from tieredkv.errors import ConfigError
from tieredkv.sim.generate import generate
from tieredkv.sim.hardware import Hardware, Prices
from tieredkv.sim.latency import LatencyModel, Served
from tieredkv.sim.traces import Trace
from tieredkv.sim.tune import Budget, tune
from tieredkv.sim.tune_report import write_report
from tieredkv.sim.tune_result import Figures, Point, Tuning, marginal
from tieredkv.sim.tune_worth import Terms, choose_size, judge_cold, judge_warm, knee
from tieredkv.sim.tune_yaml import tuned_yaml

GIB = 1 << 30
MACHINE = Hardware(
    kv_bytes_per_token=1 << 17,
    prefill_tokens_per_s=10_000,
    hot_bytes=4 * GIB,
    warm_bytes_per_s=25e9,
    warm_source="as stated",
    cold_bytes_per_s=5e9,
    cold_store_bytes_per_s=3e9,
    cold_latency_s=1e-3,
    prices=None,
)
SMALL = Budget(warm_bytes=64 * GIB, cold_bytes=128 * GIB, sizes=3, trials=1)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("agentic", seed=3, requests=300, changes={"sessions_per_s": 0.1, "context_tokens_max": 30_000})


@pytest.fixture(scope="module")
def tuning(trace: Trace) -> Tuning:
    return tune(trace, MACHINE, SMALL)


def test_a_search_is_reproducible_by_its_seed(trace: Trace, tuning: Tuning) -> None:
    again = tune(trace, MACHINE, SMALL)
    assert again == tuning
    assert again.to_json() == tuning.to_json()
    other = tune(trace, MACHINE, replace(SMALL, seed=2))
    assert [each.policy for each in other.candidates] != [each.policy for each in tuning.candidates]
    assert other.curve == tuning.curve


def test_choices_see_nothing_of_the_held_out_part(trace: Trace, tuning: Tuning) -> None:
    border = tuning.requests[0]
    later = [
        replace(each, keys=each.keys[: len(each.keys) // 2], tokens=each.tokens // 2)
        for each in trace.requests[border:]
    ]
    requests = [*trace.requests[:border], *later]
    other = tune(replace(trace, requests=requests, block_refs=sum(len(each.keys) for each in requests)), MACHINE, SMALL)
    assert other.candidates == tuning.candidates
    assert other.chosen.warm_bytes == tuning.chosen.warm_bytes
    assert [point.train for point in other.curve] == [point.train for point in tuning.curve]
    assert [point.held_out for point in other.curve] != [point.held_out for point in tuning.curve]


def test_results_lie_between_the_gpu_alone_and_the_bounds(tuning: Tuning) -> None:
    assert len(tuning.curve) == 3
    for point, bound in zip(tuning.curve, tuning.min_hit_rates, strict=True):
        assert tuning.without.held_out.hit_rate <= point.held_out.hit_rate <= bound + 1e-9
        assert bound <= tuning.infinite_hit_rate[1] + 1e-9
    assert tuning.cold is not None
    assert len(tuning.cold.ready_s) == 1 + len(tuning.cold.curve)
    assert [point.cold_bytes for point in tuning.cold.curve] == [32 * GIB, 128 * GIB]
    assert tuning.cold.without.held_out.cold_hit_rate < 0.02
    for point in tuning.cold.curve:
        assert 0 <= point.held_out.hit_rate <= tuning.infinite_hit_rate[1] + 1e-9
    assert tuning.warm.worth_it
    assert tuning.chosen.held_out.mean_ttft_s < tuning.without.held_out.mean_ttft_s
    assert len(marginal([tuning.without, *tuning.curve])) == 3


def test_the_configuration_is_accepted_and_says_why(tuning: Tuning, tmp_path: Path) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_text(tuned_yaml(tuning, "tieredkv tune x"))
    config = load_config(path, environ={}).config
    assert config.warm.size_bytes == tuning.chosen.warm_bytes
    assert config.policy == tuning.policy
    assert set(yaml.safe_load(path.read_text())) == {"warm", "policy"}
    assert "NOT WORTH IT: on" not in path.read_text()
    assert "tieredkv tune x" in path.read_text()
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_the_report_is_one_page_with_its_picture(tuning: Tuning, tmp_path: Path) -> None:
    for name in ("one.html", "two.html", "picture.png"):
        write_report(tuning, "tieredkv tune <x>", "warm:\n", tmp_path / name)
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    assert "data:image/png;base64,iVBOR" in page
    assert "tieredkv tune &lt;x&gt;" in page
    assert 'class="yes">worth it' in page
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_slow_link_is_not_worth_it(trace: Trace, tmp_path: Path) -> None:
    slow = MACHINE.model_copy(update={"warm_bytes_per_s": 0.5e9})
    tuning = tune(trace, slow, replace(SMALL, cold_bytes=0, trials=0, policies=("gix",)))
    assert not tuning.warm.worth_it
    assert "recomputing is sooner" in tuning.warm.reasons[0]
    assert tuning.chosen == tuning.curve[0], "no memory that only costs"
    path = tmp_path / "tieredkv.yaml"
    path.write_text(tuned_yaml(tuning, "x"))
    assert "NOT WORTH IT" in path.read_text()
    load_config(path, environ={})


def test_prompts_that_never_return_are_not_worth_it() -> None:
    trace = generate(
        "rag",
        seed=1,
        requests=200,
        changes={"documents": 0, "trunks": 0, "continue_first": 0.0, "first_tokens_median": 2000.0},
    )
    tuning = tune(trace, MACHINE, replace(SMALL, trials=0))
    assert not tuning.warm.worth_it
    assert tuning.cold is not None
    assert not tuning.cold.verdict.worth_it
    assert "less than the 2.0% asked for" in " ".join(tuning.warm.reasons)


def _point(warm_gib: float, ttft_s: float, saved: float, cold_gib: float = 0) -> Point:
    figures = Figures(0.1, saved, 0.0, ttft_s, 2 * ttft_s, saved)
    return Point(int(warm_gib * GIB), int(cold_gib * GIB), 1, 1, figures, figures)


WITHOUT = _point(0, 1.0, 0)
CURVE = [_point(8, 0.9, 0.1), _point(16, 0.72, 0.3), _point(32, 0.71, 0.31), _point(64, 0.7, 0.32)]


def test_the_smallest_size_with_nearly_all_of_the_gain_is_taken() -> None:
    assert choose_size(WITHOUT, CURVE, None, 0.9).warm_bytes == 16 * GIB
    assert choose_size(WITHOUT, CURVE, None, 0.99).warm_bytes == 64 * GIB
    assert choose_size(WITHOUT, [_point(8, 1.1, 0), _point(16, 1.0, 0)], None, 0.9).warm_bytes == 8 * GIB


def test_the_knee_is_where_the_gain_stops_growing_with_the_memory() -> None:
    assert knee(WITHOUT, CURVE).warm_bytes == 16 * GIB
    verdict = judge_warm(WITHOUT, CURVE[-1], CURVE, Terms(LatencyModel(1e-4, 1e-5, 2e-5, 0.0), None, 0.02, 0.9))
    assert "The knee of the curve is at 16.0 GiB, which brings 93% of that gain." in verdict.reasons
    assert knee(WITHOUT, [_point(8, 1.0, 0)]).warm_bytes == 8 * GIB


def test_with_prices_the_largest_net_saving_wins() -> None:
    # 0.2 GPU more at 1 an hour are 146 a month; 8 GiB more may cost that, 16 GiB for 0.01 GPU may not.
    assert choose_size(WITHOUT, CURVE, Prices(gpu_hour=1.0, warm_gib_month=5.0), 0.9).warm_bytes == 16 * GIB
    assert choose_size(WITHOUT, CURVE, Prices(gpu_hour=1.0, warm_gib_month=0.01), 0.9).warm_bytes == 64 * GIB
    dear = Prices(gpu_hour=1.0, warm_gib_month=50.0)
    latency = LatencyModel(1e-4, 1e-5, 2e-5, 0.0)
    chosen = choose_size(WITHOUT, CURVE, dear, 0.9)
    assert chosen.warm_bytes == 8 * GIB
    assert not judge_warm(WITHOUT, chosen, CURVE, Terms(latency, dear, 0.02, 0.9)).worth_it
    assert judge_warm(
        WITHOUT, CURVE[1], CURVE, Terms(latency, Prices(gpu_hour=1, warm_gib_month=1), 0.02, 0.9)
    ).worth_it


def test_a_budget_that_binds_is_told() -> None:
    terms = Terms(LatencyModel(1e-4, 1e-5, 2e-5, 0.0), None, 0.02, 0.9)
    assert "a larger one may pay" in judge_warm(WITHOUT, CURVE[-1], CURVE, terms).reasons[-1]
    assert "a larger one" not in judge_warm(WITHOUT, CURVE[1], CURVE, terms).reasons[-1]
    all_there_is = replace(terms, infinite_hit_rate=CURVE[-1].train.hit_rate)
    assert "a larger one" not in judge_warm(WITHOUT, CURVE[-1], CURVE, all_there_is).reasons[-1]


def test_a_cold_tier_pays_from_some_length_on_or_never() -> None:
    latency = LatencyModel(prefill_s=1e-4, warm_s=1e-5, cold_s=6e-5, cold_latency_s=4e-3)
    assert latency.cold_break_even_tokens() == pytest.approx(100)
    better = _point(16, 0.6, 0.35, cold_gib=100)
    terms = Terms(latency, None, 0.02, 0.9)
    verdict = judge_cold(CURVE[1], better, [better], (2.0, 1.5), terms)
    assert verdict.worth_it
    assert any("goes from 2,000 to 1,500 ms" in reason for reason in verdict.reasons)
    assert not judge_cold(CURVE[1], better, [better], (1.5, 2.0), terms).worth_it, (
        "a busy link costs more than it gives"
    )
    assert "begins to pay at 100 tokens" in verdict.reasons[1]
    slow = LatencyModel(prefill_s=1e-5, warm_s=1e-6, cold_s=6e-5, cold_latency_s=0)
    assert slow.cold_break_even_tokens() == float("inf")
    assert not judge_cold(CURVE[1], better, [better], (2.0, 1.5), Terms(slow, None, 0.02, 0.9)).worth_it


def test_ttft_is_the_sum_of_what_is_computed_and_loaded() -> None:
    latency = LatencyModel.of(MACHINE)
    served = Served(*(np.array(column) for column in ([1000, 1024, 5000], [0, 512, 0], [512, 512, 1024], [0, 0, 2048])))
    warm_s, cold_s = (1 << 17) / 25e9, (1 << 17) / 25e9 + (1 << 17) / 5e9
    expected = [488e-4 + 512 * warm_s, 1e-4 + 512 * warm_s, 1928e-4 + 1024 * warm_s + 2048 * cold_s + 1e-3]
    assert latency.ttft_s(served) == pytest.approx(expected)


def test_impossible_searches_are_refused(trace: Trace) -> None:
    with pytest.raises(ConfigError, match="less than one chunk, which is 64"):
        tune(trace, MACHINE, replace(SMALL, warm_bytes=1 << 20))
    with pytest.raises(ConfigError, match="--cold-budget: less than one chunk"):
        tune(trace, MACHINE, replace(SMALL, cold_bytes=1 << 20))
    with pytest.raises(ConfigError, match="of 1 requests none are left to choose by"):
        tune(replace(trace, requests=trace.requests[:1]), MACHINE, SMALL)
    short = generate("chat", seed=1, requests=20, block_tokens=1 << 18)
    with pytest.raises(ConfigError, match="no prompt fills a block of 262144 tokens"):
        tune(short, MACHINE, replace(SMALL, warm_bytes=1 << 50))
