"""What `doctor` finds out about the other nodes, with real listeners."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from tieredkv.cli.checks import Check, Verdict
from tieredkv.cli.checks.cluster import advertised, cluster, ports
from tieredkv.config import HttpAddress
from tieredkv.sidecar.cluster.doorkeeper import Doorkeeper
from tieredkv.sidecar.cluster.security import make_security
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings

from .cluster_nodes import HERE, Post, hello_of, settings

OWN = settings("own", listen=Address("127.0.0.1", 9500))


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture
def rpc_port() -> Iterator[int]:
    """As if it were vineyardd's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class Other:
    """Another node's doorkeeper."""

    def __init__(self, own: ClusterSettings, **hello: str) -> None:
        self.post = Post()
        self._keeper = Doorkeeper(HERE, make_security(own), hello_of(own, **hello), self.post.inbox)  # type: ignore[arg-type]
        self.address = self._keeper.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.close()
        assert not self.post.inbox.take(), "a visit is no node"


def test_a_good_peer(rpc_port: int) -> None:
    with Other(settings("other", rpc_port=rpc_port)) as other:
        checks = by_name(cluster(replace(OWN, peers=(other.address,), rpc_port=9600), None))
    assert checks[f"peer {other.address}"].verdict is Verdict.OK
    assert checks[f"peer {other.address}"].finding.startswith("other, tieredkv ")
    assert checks[f"peer {other.address} rpc"].verdict is Verdict.OK
    assert checks["cluster rpc"].verdict is Verdict.WARN, "no proof is asked for there"
    assert checks["cluster security"].verdict is Verdict.OK


def test_a_peer_that_cannot_be_read(rpc_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
    with Other(settings("other", rpc_port=closed)) as one, Other(settings("third")) as two:
        checks = by_name(cluster(replace(OWN, peers=(one.address, two.address)), None))
    assert checks[f"peer {one.address} rpc"].verdict is Verdict.FAIL
    assert checks[f"peer {two.address} rpc"].verdict is Verdict.WARN


def test_a_peer_that_disagrees_and_one_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = Address("127.0.0.1", gone.getsockname()[1])
    with Other(settings("other"), vineyard="0.1") as other, Other(settings("own")) as itself:
        checks = by_name(cluster(replace(OWN, peers=(other.address, dead, itself.address)), None))
    assert "vineyard version '0.1' on other, '0.24.2' on own" in checks[f"peer {other.address}"].finding
    assert checks[f"peer {dead}"].verdict is Verdict.FAIL
    assert checks[f"peer {itself.address}"].finding == "this node itself"


def test_nobody_else_and_no_etcd() -> None:
    assert by_name(cluster(OWN, None))["cluster members"].verdict is Verdict.WARN
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    assert by_name(cluster(replace(OWN, etcd=(dead,)), None))["cluster members"].verdict is Verdict.FAIL


def test_security_that_is_not(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    secret.chmod(0o644)
    assert by_name(cluster(replace(OWN, secret_file=secret), None))["cluster security"].verdict is Verdict.WARN
    secret.chmod(0o600)
    assert by_name(cluster(replace(OWN, secret_file=secret), None))["cluster security"].verdict is Verdict.OK
    open_to_all = replace(OWN, listen=Address("0.0.0.0", 9500))
    assert by_name(cluster(open_to_all, None))["cluster security"].verdict is Verdict.FAIL


def test_ports_in_conflict() -> None:
    assert ports(replace(OWN, rpc_port=9500), None).verdict is Verdict.FAIL
    assert ports(replace(OWN, rpc_port=9600), HttpAddress("127.0.0.1", 9600)).verdict is Verdict.FAIL
    assert ports(replace(OWN, rpc_port=9600), HttpAddress("127.0.0.1", 9400)).verdict is Verdict.OK


def test_advertised_addresses() -> None:
    far = Address("10.0.0.2", 9500)
    assert advertised(OWN).verdict is Verdict.OK
    assert advertised(replace(OWN, listen=None)).verdict is Verdict.OK
    assert advertised(replace(OWN, peers=(far,))).verdict is Verdict.FAIL
    everywhere = replace(OWN, listen=Address("0.0.0.0", 9500))
    assert advertised(everywhere).verdict is Verdict.OK
    assert advertised(replace(everywhere, etcd=("http://127.0.0.1:1",))).verdict is Verdict.FAIL
    assert advertised(replace(everywhere, advertise=Address("no.such.name.invalid", 1))).verdict is Verdict.FAIL
