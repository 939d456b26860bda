"""On what, and from which commit: the part of a recipe that every benchmark shares."""

import os
import platform
import subprocess
from pathlib import Path

from tieredkv import __version__


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, Python, version and commit; no names of hosts or users."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}",
        "python": platform.python_version(),
        "tieredkv": __version__,
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """Short hash of the checkout, or "unknown" for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "unknown"
    asked = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"],  # noqa: S607 - the user's git
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"
