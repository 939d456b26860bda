"""The hardware that `tieredkv tune` reckons with: a strict YAML file, every mistake named at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tieredkv.config.remedy import remedy
from tieredkv.config.source import suggestion
from tieredkv.config.units import parse_duration, parse_size
from tieredkv.errors import ConfigError

FILE_BYTES_MAX: Final = 1 << 20

EXAMPLE: Final = """\
# What `tieredkv tune` reckons with. Sizes: 64GiB, 512MB. Durations: 500us, 2ms.

# KV of one token, all layers, in bytes: 2 x layers x KV heads x head size x bytes of a value.
# 131072 = 2 x 32 x 8 x 128 x 2, a model of 8 billion parameters with grouped queries in 16 bits.
kv_bytes_per_token: 131072

# Tokens that one engine computes in a second when it does nothing but prefill, at your usual prompt length.
prefill_tokens_per_s: 10000

# Memory for KV in the GPUs of the engine: vLLM prints it at start ("GPU KV cache size").
hot_size: 40GiB

warm:
  # Host memory to GPU, in 10^9 bytes a second. Or instead, from a measurement on the machine itself:
  # bench_transfer: transfer.json     (written by: tieredkv bench transfer --json transfer.json)
  load_gb_per_s: 25

# Leave this out where there is no cold tier.
cold:
  load_gb_per_s: 5
  store_gb_per_s: 3
  latency: 500us

# Optional. With prices the size with the largest net saving wins; without, the knee of the curve.
# prices:
#   gpu_hour: 2.50     # all GPUs of the engine together
#   warm_gib_month: 1.50
#   cold_gib_month: 0.08
"""

_SIZE = Annotated[int, BeforeValidator(parse_size)]
_DURATION = Annotated[float, BeforeValidator(parse_duration)]
_RATE = Annotated[float, Field(gt=0, le=1e6)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class WarmHardware(_Section):
    """How the warm tier is read. One of the two is set."""

    load_gb_per_s: _RATE | None = None
    bench_transfer: str | None = None


class ColdHardware(_Section):
    """How the cold tier is read, and written (as fast, unless it says)."""

    load_gb_per_s: _RATE
    store_gb_per_s: _RATE | None = None
    latency_s: _DURATION = Field(alias="latency")


class Prices(_Section):
    """In any one currency."""

    gpu_hour: float = Field(ge=0, le=1e9)
    warm_gib_month: float = Field(ge=0, le=1e9)
    cold_gib_month: float = Field(default=0.0, ge=0, le=1e9)


class HardwareFile(_Section):
    """The file as it is written."""

    kv_bytes_per_token: int = Field(ge=1, le=1 << 30)
    prefill_tokens_per_s: float = Field(gt=0, le=1e9)
    hot_bytes: _SIZE = Field(alias="hot_size")
    warm: WarmHardware
    cold: ColdHardware | None = None
    prices: Prices | None = None


class Hardware(BaseModel):
    """The figures, with the speed of loads taken from where the file says."""

    model_config = ConfigDict(frozen=True)

    kv_bytes_per_token: int
    prefill_tokens_per_s: float
    hot_bytes: int
    warm_bytes_per_s: float
    warm_source: str
    cold_bytes_per_s: float | None
    cold_store_bytes_per_s: float | None
    cold_latency_s: float
    prices: Prices | None


def read_hardware(path: Path) -> Hardware:
    """The hardware in the file at `path`. Raises ConfigError, one line per problem."""
    tree, lines = _read_yaml(path)
    try:
        written = HardwareFile.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(path, lines, details) for details in error.errors(include_url=False)]
        raise ConfigError("\n".join(problems)) from None
    where = f"{path}:{lines.get(('warm',), 1)}"
    match written.warm.load_gb_per_s, written.warm.bench_transfer:
        case (None, None) | (float(), str()):
            raise ConfigError(f"{where}: warm: write one of load_gb_per_s and bench_transfer")
        case None, str(name):
            measured = path.parent / name
            warm_bytes_per_s, source = _measured_bytes_per_s(where, measured), f"measured ({measured.name})"
        case rate, _:
            assert rate is not None
            warm_bytes_per_s, source = rate * 1e9, "as stated"
    cold = written.cold
    return Hardware(
        kv_bytes_per_token=written.kv_bytes_per_token,
        prefill_tokens_per_s=written.prefill_tokens_per_s,
        hot_bytes=written.hot_bytes,
        warm_bytes_per_s=warm_bytes_per_s,
        warm_source=source,
        cold_bytes_per_s=None if cold is None else cold.load_gb_per_s * 1e9,
        cold_store_bytes_per_s=None if cold is None else (cold.store_gb_per_s or cold.load_gb_per_s) * 1e9,
        cold_latency_s=0.0 if cold is None else cold.latency_s,
        prices=written.prices,
    )


def _read_yaml(path: Path) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The file as plain values, and the line of each key."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes; this is no description of hardware")
        text = content.decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}; see tieredkv tune --example-hardware") from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise ConfigError(f"{path}: not YAML text; see tieredkv tune --example-hardware") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(f"{where}: not YAML; see tieredkv tune --example-hardware") from None
    if not isinstance(tree, dict) or not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: must be a mapping of keys such as 'warm:'; see tieredkv tune --example-hardware")
    lines: dict[tuple[str, ...], int] = {}
    problems = _lines(path, root, (), lines)
    if problems:
        raise ConfigError("\n".join(problems))
    return cast(Any, tree), lines


def _lines(path: Path, node: yaml.MappingNode, above: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> list[str]:
    """Fill `lines`; what is written twice, of which YAML would keep the last silently."""
    problems: list[str] = []
    for key_node, value in node.value:
        key = (*above, str(key_node.value))
        line = key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{path}:{line}: {'.'.join(key)}: written twice, first in line {lines[key]}")
        lines.setdefault(key, line)
        if isinstance(value, yaml.MappingNode) and len(above) < 2:
            problems += _lines(path, value, key, lines)
    return problems


def _problem(path: Path, lines: Mapping[tuple[str, ...], int], details: Any) -> str:
    location = tuple(str(part) for part in details["loc"])
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), 1)
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        return f"{path}:{line}: {key}: unknown key{suggestion(location[-1], _KEYS)}"
    if details["type"] == "missing":
        return f"{path}:{line}: {key}: is missing; see tieredkv tune --example-hardware"
    if details["type"] in {"model_type", "model_attributes_type"}:
        return f"{path}:{line}: {key}: {details['input']!r} is not a section; write its keys below it"
    return f"{path}:{line}: {key}: {details['input']!r}: {remedy(details)}"


def _measured_bytes_per_s(where: str, path: Path) -> float:
    """The median of the loads that `tieredkv bench transfer` measured, of the GPU's where there are any."""
    complaint = f"{where}: warm.bench_transfer: {path}:"
    try:
        report = json.loads(path.read_text())
        loads = [(row["device"], float(row["gbytes_per_s"])) for row in report["results"] if row["movement"] == "load"]
    except OSError as error:
        raise ConfigError(f"{complaint} cannot read it: {error.strerror}; paths start at the hardware file") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{complaint} not a report of tieredkv bench transfer --json") from None
    rates = [rate for device, rate in loads if device == "cuda"] or [rate for _, rate in loads]
    if not rates or min(rates) <= 0:
        raise ConfigError(f"{complaint} no loads in it; measure with tieredkv bench transfer --json")
    return median(rates) * 1e9


_KEYS: Final = tuple(
    {
        field.alias or name
        for model in (HardwareFile, WarmHardware, ColdHardware, Prices)
        for name, field in model.model_fields.items()
    }
)
