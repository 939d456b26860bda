"""Checks of the machine: shared memory and the limits on it."""

import mmap
import os
import re
import resource
from typing import Final

from tieredkv.cli.checks.check import Check, Verdict
from tieredkv.config import Memory
from tieredkv.config.units import approximate_size
from tieredkv.errors import ConfigError

_POPULATE_WRITE_KERNEL: Final = (5, 14)
_MARK: Final = b"tieredkv"


def shared_memory() -> Check:
    """Two mappings of one memfd show the same bytes: all that the warm tier needs (no /dev/shm)."""
    try:
        fd = os.memfd_create("tieredkv-doctor")
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE) as one, mmap.mmap(fd, mmap.PAGESIZE) as other:
                one[: len(_MARK)] = _MARK
                same = other[: len(_MARK)] == _MARK
        finally:
            os.close(fd)
    except OSError as error:
        remedy = "allow memfd_create and shared mappings (seccomp profile of the container)"
        return Check("shared memory", Verdict.FAIL, f"memfd does not work: {error.strerror}", remedy)
    if not same:
        return Check("shared memory", Verdict.FAIL, "two mappings of one memfd differ", "run on a Linux kernel proper")
    return Check("shared memory", Verdict.OK, "memfd works (/dev/shm is not used)")


def prefault() -> Check:
    """The kernel can populate memory in bulk."""
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None or (int(match[1]), int(match[2])) < _POPULATE_WRITE_KERNEL:
        remedy = "use Linux 5.14 or newer, or accept slow first stores (warm.prefault: false)"
        return Check("kernel", Verdict.WARN, f"Linux {release} has no MADV_POPULATE_WRITE", remedy)
    return Check("kernel", Verdict.OK, f"Linux {release}")


def memory(warm_bytes: int, origin: str, found: Memory) -> Check:
    """The warm tier fits beside what already runs."""
    sizes = f"warm.size {approximate_size(warm_bytes)} ({origin}), usable {approximate_size(found.usable_bytes)}"
    if warm_bytes > found.usable_bytes:
        return Check("memory", Verdict.WARN, sizes, "lower warm.size, or free memory: it will be swapped or killed")
    return Check("memory", Verdict.OK, sizes)


def cgroup_limit(warm_bytes: int, found: Memory) -> Check:
    """The warm tier fits under the limits of the cgroup."""
    if found.limit_bytes is None:
        return Check("cgroup", Verdict.OK, "no memory limit")
    try:
        found.refuse_oversized(warm_bytes)
    except ConfigError as error:
        finding, _, remedy = str(error).partition("; ")
        return Check("cgroup", Verdict.FAIL, finding, remedy)
    return Check("cgroup", Verdict.OK, f"memory limit {approximate_size(found.limit_bytes)}")


def memlock(warm_bytes: int) -> Check:
    """A GPU's driver may pin the whole warm tier."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", Verdict.OK, "unlimited")
    if soft < warm_bytes:
        remedy = "only for engines on GPUs: ulimit -l unlimited (containers: --ulimit memlock=-1)"
        return Check("memlock", Verdict.WARN, f"{approximate_size(soft)}, less than warm.size", remedy)
    return Check("memlock", Verdict.OK, approximate_size(soft))
