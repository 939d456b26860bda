"""The versions of vLLM that the seam is tested with. Imports nothing: `doctor` asks before vLLM is loaded."""

import re
from typing import Final

VLLM_MIN: Final = "0.31"
VLLM_BELOW: Final = "0.34"


def is_supported(version: str) -> bool:
    """Whether VLLM_MIN <= version < VLLM_BELOW; release candidates count as their release."""
    return _minor(VLLM_MIN) <= _minor(version) < _minor(VLLM_BELOW)


def _minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
