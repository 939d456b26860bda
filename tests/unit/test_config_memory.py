from pathlib import Path

import pytest

from tieredkv.config import Memory, read_memory
from tieredkv.errors import ConfigError

GIB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {32 << 20} kB\n"}.items() | files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_cgroup_all_available_memory_is_usable(tmp_path: Path) -> None:
    memory = read_memory(machine(tmp_path, {}))
    assert memory == Memory(32 * GIB, None, None)
    assert memory.auto_warm_bytes() == (16 * GIB, "half of 32.0 GiB available")


def test_the_tightest_cgroup_v2_limit_counts_without_reclaimable_pages(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/memory.max": f"{12 * GIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{4 * GIB}\n",
        "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        "sys/fs/cgroup/pod/box/memory.max": "max\n",
        "sys/fs/cgroup/pod/box/memory.current": f"{4 * GIB}\n",
    }
    memory = read_memory(machine(tmp_path, files))
    assert memory == Memory(32 * GIB, 12 * GIB, 10 * GIB)
    assert memory.auto_warm_bytes() == (5 * GIB, "half of 10.0 GiB left under the cgroup's memory limit")


def test_cgroup_v1_and_a_path_that_is_not_mounted(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}",
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {1 * GIB}",
    }
    assert read_memory(machine(tmp_path, files)) == Memory(32 * GIB, 8 * GIB, 6 * GIB)


def test_the_v1_way_to_say_unlimited(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    assert read_memory(machine(tmp_path, files)).limit_bytes is None


def test_a_warm_size_over_the_limit_is_refused_with_the_limit_to_set() -> None:
    memory = Memory(32 * GIB, 8 * GIB, 6 * GIB)
    memory.refuse_oversized(7 * GIB)
    with pytest.raises(ConfigError, match=r"warm.size: 9GiB .* limit of 8GiB; .* at least 9\.2 GiB"):
        memory.refuse_oversized(9 * GIB)
    Memory(32 * GIB, None, None).refuse_oversized(100 * GIB)


def test_auto_never_comes_to_nothing() -> None:
    assert Memory(3 << 20, None, None).auto_warm_bytes()[0] == 1 << 20


def test_this_machine_can_be_read() -> None:
    assert read_memory().usable_bytes > 0
