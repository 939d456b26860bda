"""How much memory this process may use: the machine's available memory and the limits of its cgroup."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredkv.config.units import approximate_size, format_size
from tieredkv.errors import ConfigError

_UNLIMITED_BYTES: Final = 1 << 60
_AUTO_STEP_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """A reading. `limit_bytes` is the tightest cgroup limit (None: there is none), `left_bytes` what remains of it."""

    available_bytes: int
    limit_bytes: int | None
    left_bytes: int | None

    @property
    def usable_bytes(self) -> int:
        """What can be touched without swapping and without being killed."""
        return self.available_bytes if self.left_bytes is None else min(self.available_bytes, self.left_bytes)

    def auto_warm_bytes(self) -> tuple[int, str]:
        """The warm size for `auto`, and its reason in words."""
        half = self.usable_bytes // 2
        step = _AUTO_STEP_BYTES if half >= _AUTO_STEP_BYTES else 1 << 20
        limited = self.left_bytes is not None and self.left_bytes < self.available_bytes
        of = "left under the cgroup's memory limit" if limited else "available"
        return max(half // step, 1) * step, f"half of {approximate_size(self.usable_bytes)} {of}"

    def refuse_oversized(self, warm_bytes: int) -> None:
        """Raise ConfigError when a warm tier of `warm_bytes` cannot fit: it would be killed while it fills."""
        if self.limit_bytes is not None and warm_bytes >= self.limit_bytes:
            raise ConfigError(
                f"warm.size: {format_size(warm_bytes)} does not fit under the cgroup's memory limit of "
                f"{format_size(self.limit_bytes)}; lower warm.size, or set the limit to at least "
                f"{approximate_size(warm_bytes + (256 << 20))}"
            )


def read_memory(root: Path = Path("/")) -> Memory:
    """Read /proc and /sys under `root`. Understands cgroup v2 and v1."""
    limit: int | None = None
    left: int | None = None
    for limit_bytes, used_bytes in _cgroups(root):
        limit = limit_bytes if limit is None else min(limit, limit_bytes)
        room = max(limit_bytes - used_bytes, 0)
        left = room if left is None else min(left, room)
    return Memory(_available_bytes(root), limit, left)


def _available_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("warm.size: auto needs MemAvailable in /proc/meminfo; write a size such as 64GiB")


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every limited memory cgroup around this process, reclaimable file pages not counted."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = base / path.lstrip("/")
        # Inside a container the path of the host is often not mounted: the root of the mount is our cgroup then.
        folders = [inside, *inside.parents] if inside.is_dir() else [base]
        for folder in folders:
            limit, used = _text(folder / names[0]), _text(folder / names[1])
            if limit.isdecimal() and used.isdecimal() and int(limit) < _UNLIMITED_BYTES:
                yield int(limit), int(used) - _statistic(folder / "memory.stat", names[2])
            if folder == base:
                break


def _statistic(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
