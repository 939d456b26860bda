import json
from pathlib import Path

import pytest

from tieredkv.errors import ConfigError
from tieredkv.sim.hardware import EXAMPLE, read_hardware

PLAIN = "kv_bytes_per_token: 1000\nprefill_tokens_per_s: 10\nhot_size: 1GiB\nwarm: {load_gb_per_s: 2}\n"


def _problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "hw.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_hardware(path)
    return [line.removeprefix(str(path)) for line in str(raised.value).splitlines()]


def test_the_example_is_valid_and_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "hw.yaml"
    path.write_text(EXAMPLE)
    hardware = read_hardware(path)
    assert hardware.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert (hardware.warm_bytes_per_s, hardware.cold_bytes_per_s, hardware.cold_store_bytes_per_s) == (25e9, 5e9, 3e9)
    assert (hardware.hot_bytes, hardware.cold_latency_s, hardware.prices) == (40 << 30, 500e-6, None)
    path.write_text(EXAMPLE.replace("# prices", "prices").replace("#   ", "  "))
    prices = read_hardware(path).prices
    assert prices is not None
    assert (prices.gpu_hour, prices.warm_gib_month, prices.cold_gib_month) == (2.5, 1.5, 0.08)


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    text = (
        "kv_bytes_per_token: 1.5\nprefill_tokens_per_sec: 3\nhot_size: 40GX\n"
        "warm:\n  load_gb_per_s: -1\ncold:\n  load_gb_per_s: .nan\n  latency: 5\n"
    )
    problems = _problems(tmp_path, text)
    assert problems == [
        ":1: kv_bytes_per_token: 1.5: must be a whole number",
        ":1: prefill_tokens_per_s: is missing; see tieredkv tune --example-hardware",
        ":3: hot_size: '40GX': not a size; write a size such as 64GiB, 64Gi, 512MB, or a whole number of bytes",
        ":5: warm.load_gb_per_s: -1: must be more than 0",
        ":7: cold.load_gb_per_s: nan: must be a number",
        ":8: cold.latency: 5: not a duration; write a duration with its unit, such as 50ms, 2s or 1.5min",
        ":2: prefill_tokens_per_sec: unknown key; did you mean prefill_tokens_per_s?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": must be a mapping of keys such as 'warm:'; see tieredkv tune --example-hardware"),
        ("- 1", ": must be a mapping of keys such as 'warm:'; see tieredkv tune --example-hardware"),
        ("a: [", ":1: not YAML; see tieredkv tune --example-hardware"),
        (PLAIN + "hot_size: 2GiB\n", ":5: hot_size: written twice, first in line 3"),
        (PLAIN.replace("{load_gb_per_s: 2}", "{}"), ":4: warm: write one of load_gb_per_s and bench_transfer"),
        (PLAIN.replace("{load_gb_per_s: 2}", "3"), ":4: warm: 3 is not a section; write its keys below it"),
        (
            PLAIN.replace("{load_gb_per_s: 2}", "{load_gb_per_s: 2, bench_transfer: x}"),
            ":4: warm: write one of load_gb_per_s and bench_transfer",
        ),
    ],
)
def test_what_is_no_hardware(tmp_path: Path, text: str, problem: str) -> None:
    assert _problems(tmp_path, text) == [problem]


def test_cold_is_written_as_fast_as_it_is_read_unless_it_says(tmp_path: Path) -> None:
    path = tmp_path / "hw.yaml"
    path.write_text(PLAIN + "cold: {load_gb_per_s: 7, latency: 1ms}\n")
    assert read_hardware(path).cold_store_bytes_per_s == 7e9


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        read_hardware(tmp_path / "none")


def test_speed_from_a_measurement_prefers_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "hw.yaml"
    path.write_text(PLAIN.replace("load_gb_per_s: 2", "bench_transfer: t.json"))

    def row(movement: str, device: str, rate: float) -> dict[str, object]:
        return {"movement": movement, "device": device, "gbytes_per_s": rate}

    rows = [row("load", "cpu", 5), row("store", "cuda", 90), row("load", "cuda", 20), row("load", "cuda", 30)]
    (tmp_path / "t.json").write_text(json.dumps({"machine": {}, "results": rows}))
    hardware = read_hardware(path)
    assert (hardware.warm_bytes_per_s, hardware.warm_source) == (25e9, "measured (t.json)")
    (tmp_path / "t.json").write_text(json.dumps({"machine": {}, "results": rows[:1]}))
    assert read_hardware(path).warm_bytes_per_s == 5e9
    for content, complaint in (("{}", "not a report"), ('{"results": []}', "no loads in it"), ("x", "not a report")):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ConfigError, match=complaint):
            read_hardware(path)
    (tmp_path / "t.json").unlink()
    with pytest.raises(ConfigError, match=r"hw\.yaml:4: warm\.bench_transfer: .*cannot read it"):
        read_hardware(path)
