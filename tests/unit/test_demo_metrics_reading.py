"""Reading vLLM's counters: sums over engines, exact parts, clear complaints."""

import pytest

from tieredkv.demo.metrics_reading import MetricsError, PromptTokens, read_moved_bytes, read_prompt_tokens

METRICS = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="demo"} 100.0
vllm:prompt_tokens_total{engine="1",model_name="demo"} 50.0
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_compute"} 60.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_cache_hit"} 32.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="external_kv_transfer"} 8.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="demo",source="local_compute"} 10.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="demo",source="local_cache_hit"} 0.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="demo",source="external_kv_transfer"} 40.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="demo"} 1.7e+09
"""

MOVED = """\
# HELP tieredkv_moved_bytes_total KV bytes copied.
# TYPE tieredkv_moved_bytes_total counter
tieredkv_moved_bytes_total{engine="0",model_name="demo",movement="store"} 4096.0
tieredkv_moved_bytes_total{engine="1",model_name="demo",movement="store"} 1024.0
tieredkv_moved_bytes_total{engine="0",model_name="demo",movement="load"} 512.0
"""


def test_counters_are_summed_over_engines() -> None:
    assert read_prompt_tokens(METRICS) == PromptTokens(asked=150, hot=32, warm=48, recomputed=70)


def test_parts_that_do_not_sum_are_refused() -> None:
    with pytest.raises(MetricsError, match="do not add up"):
        read_prompt_tokens(METRICS.replace("60.0", "61.0"))


@pytest.mark.parametrize("name", ["vllm:prompt_tokens_total", "external_kv_transfer"])
def test_missing_counters_are_named(name: str) -> None:
    with pytest.raises(MetricsError, match=name):
        read_prompt_tokens(METRICS.replace(name, "other"))


def test_differences_and_sums() -> None:
    earlier = PromptTokens(asked=10, hot=2, warm=3, recomputed=5)
    later = PromptTokens(asked=30, hot=2, warm=13, recomputed=15)
    assert later - earlier == PromptTokens(asked=20, hot=0, warm=10, recomputed=10)
    assert (later - earlier) + earlier == later
    with pytest.raises(MetricsError):
        earlier - later  # a counter that went back: the server was restarted unseen


def test_moved_bytes_are_summed_or_absent() -> None:
    assert read_moved_bytes(METRICS + MOVED) == {"store": 5120, "load": 512}
    assert read_moved_bytes(METRICS) == {}
