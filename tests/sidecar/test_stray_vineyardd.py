"""A sidecar that is killed just after it started its vineyardd."""

from contextlib import suppress
from pathlib import Path

from .conftest import Start
from .process import SidecarProcess, alive, wait_until
from .test_cluster import free_ports


def vineyardds(of: SidecarProcess) -> list[int]:
    """All that run in its folder."""
    found = []
    for process in Path("/proc").iterdir():
        words: list[bytes] = []
        if process.name.isdecimal() and alive(int(process.name)):
            with suppress(OSError):  # it ended between the listing and the reading
                words = (process / "cmdline").read_bytes().split(b"\0")
        if words and words[0].endswith(b"vineyardd") and str(of.directory / "vineyard.sock").encode() in words:
            found.append(int(process.name))
    return found


def test_the_next_sidecar_is_served_all_the_same(start: Start) -> None:
    listen, rpc = free_ports(2)
    sidecar = start(run=False, cluster={"node": "a", "listen": f"127.0.0.1:{listen}", "rpc_port": rpc})
    sidecar.spawn()
    (stray,) = wait_until(lambda: vineyardds(sidecar), "its vineyardd")
    sidecar.kill()
    # On a busy machine it was killed later than this test wants.
    (sidecar.directory / "pool.json").unlink(missing_ok=True)
    sidecar.start()
    pid = sidecar.status()["vineyardd"]["pid"]
    assert pid != stray
    assert vineyardds(sidecar) == [pid]
