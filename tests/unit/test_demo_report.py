"""The demo's verdict and figures."""

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tieredkv.demo.metrics_reading import PromptTokens
from tieredkv.demo.player import Answer
from tieredkv.demo.report import DemoReport, RunResult, percentile

ANSWER = Answer(conversation=0, token_ids=(1, 2), text="ab", prompt_tokens=50, ttft_s=0.1, total_s=0.2, margin=0.05)
WITHOUT = RunResult(
    answers=(ANSWER, replace(ANSWER, ttft_s=0.3)),
    tokens=PromptTokens(asked=100, hot=20, warm=0, recomputed=80),
    tokens_after_restart=PromptTokens(asked=50, hot=0, warm=0, recomputed=50),
    moved_bytes={},
)
WITH = RunResult(
    answers=(replace(ANSWER, ttft_s=0.05), replace(ANSWER, ttft_s=0.05)),
    tokens=PromptTokens(asked=100, hot=20, warm=60, recomputed=20),
    tokens_after_restart=PromptTokens(asked=50, hot=0, warm=40, recomputed=10),
    moved_bytes={"store": 2**20, "load": 2**21},
)
GOOD = DemoReport(without=WITHOUT, with_tier=WITH)


def test_a_good_demo_has_no_problems() -> None:
    assert GOOD.problems() == []


def test_the_json_document() -> None:
    assert json.loads(json.dumps(GOOD.as_json())) == {
        "tokens_equal": True,
        "tokens_asked": 100,
        "tokens_hot": 20,
        "tokens_warm": 60,
        "tokens_recomputed": 20,
        "warm_after_restart": 40,
        "ttft_s": {"without": {"p50": 0.2, "p99": 0.298}, "with": {"p50": 0.05, "p99": 0.05}},
    }


def test_a_differing_token_is_a_problem_that_names_the_answer() -> None:
    other = replace(WITH, answers=(WITH.answers[0], replace(ANSWER, token_ids=(1, 3))))
    report = DemoReport(without=WITHOUT, with_tier=other)
    assert report.as_json()["tokens_equal"] is False
    (problem,) = report.problems()
    assert problem.startswith("1 of 2 answers differ, from number 2 on")


def test_without_warm_hits_there_are_problems() -> None:
    nothing = PromptTokens(asked=100, hot=20, warm=0, recomputed=80)
    cold_restart = replace(WITH, tokens_after_restart=WITHOUT.tokens_after_restart)
    assert DemoReport(without=WITHOUT, with_tier=cold_restart).problems() == [
        "after the restart no prompt token was served from warm"
    ]
    assert len(DemoReport(without=WITHOUT, with_tier=replace(cold_restart, tokens=nothing)).problems()) == 2


def test_the_table_shows_both_runs() -> None:
    shown = io.StringIO()
    Console(file=shown, width=100).print(GOOD.as_table())
    text = shown.getvalue()
    for expected in ("60 ( 60%)", "40 ( 80%)", "200 ms", "298 ms", "50 ms", "yes", "2.0 MiB"):
        assert expected in text
    assert "problem" not in text


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values: list[float], fraction: float) -> None:
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    found = percentile(values, fraction)
    assert ordered[int(place)] <= found or found == pytest.approx(ordered[int(place)])
    assert found <= ordered[-1] or found == pytest.approx(ordered[-1])


def test_percentiles_by_hand() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 1) == 4.0
