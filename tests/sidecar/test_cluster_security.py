"""Who may enter, over real sockets: certificates of the right CA, or who knows the secret; nobody else."""

import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tieredkv.errors import ConfigError
from tieredkv.protocol import encode
from tieredkv.sidecar.cluster import acquaintance, doorkeeper
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.dialer import Dialer, DialFailed
from tieredkv.sidecar.cluster.doorkeeper import GREETINGS_PER_HOST_MAX, Doorkeeper
from tieredkv.sidecar.cluster.security import MAGIC, make_security
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings

from .cluster_nodes import Authority, Post, hello_of, settings
from .process import wait_until

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
SECRET = "correct horse battery staple"


@dataclass
class Nodes:
    """Doorkeepers and dialers that end with the test."""

    stack: ExitStack
    post: Post = field(default_factory=Post)

    def listen(self, own: ClusterSettings, **hello: int | str) -> Doorkeeper:
        assert own.listen is not None
        keeper = Doorkeeper(own.listen, make_security(own), hello_of(own, **hello), self.post.inbox)  # type: ignore[arg-type]
        self.stack.callback(keeper.close)
        return keeper

    def dial(self, own: ClusterSettings, address: Address, **hello: int | str) -> Post:
        post = Post()
        assert Dialer(make_security(own), hello_of(own, **hello), post.inbox).dial(address)  # type: ignore[arg-type]
        return post

    def meet(self, listening: ClusterSettings, dialling: ClusterSettings) -> tuple[PeerJoined, PeerJoined]:
        """Both must enter: (what the listener got, what the dialler got)."""
        there = self.dial(dialling, self.listen(listening).address, epoch=8).next(PeerJoined)
        here = self.post.next(PeerJoined)
        self.stack.callback(there.stream.close)
        self.stack.callback(here.stream.close)
        return here, there

    def refuse(self, listening: ClusterSettings, dialling: ClusterSettings) -> str:
        """The dialler must be told, and nobody enters."""
        keeper = self.listen(listening)
        reason = self.dial(dialling, keeper.address, epoch=8).next(DialFailed).reason
        refusals(keeper, 1)
        assert not self.post.inbox.take()
        return reason


def refusals(keeper: Doorkeeper, count: int) -> None:
    wait_until(lambda: keeper.refused >= count, f"{count} refusals")
    assert keeper.refused == count


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(stack)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "theirs")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def test_without_proof_on_the_loopback(nodes: Nodes) -> None:
    here, there = nodes.meet(settings("a"), settings("b"))
    assert (here.hello.node, here.dialled, here.host) == ("b", None, "127.0.0.1")
    assert (there.hello.node, there.dialled is not None) == ("a", True)
    assert not here.stream.getblocking()
    assert abs(here.hello.wall_s - here.wall_s) < 10


@needs_openssl
def test_certificates_of_one_authority(nodes: Nodes, authority: Authority) -> None:
    ours, theirs = authority.files("a"), authority.files("b")
    here, there = nodes.meet(settings("a", tls=ours), settings("b", tls=theirs))
    for joined in (here, there):
        assert isinstance(joined.stream, ssl.SSLSocket)
        assert joined.stream.version() == "TLSv1.3"


@needs_openssl
def test_strange_certificates_are_refused(nodes: Nodes, authority: Authority, stranger: Authority) -> None:
    ours = settings("a", tls=authority.files("a"))
    # Signed by somebody else, though it trusts us; and signed by us, though it does not.
    assert "unknown ca" in nodes.refuse(ours, settings("b", tls=stranger.files("b", ca=authority.ca)))
    assert "certificate refused" in nodes.refuse(ours, settings("b", tls=authority.files("c", ca=stranger.ca)))


@needs_openssl
def test_no_certificate_is_refused(nodes: Nodes, authority: Authority) -> None:
    keeper = nodes.listen(settings("a", tls=authority.files("a")))
    context = ssl.create_default_context(cafile=authority.ca)
    context.check_hostname = False
    with (
        socket.create_connection(keeper.address) as plain,
        context.wrap_socket(plain) as stream,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        stream.recv(1)
    refusals(keeper, 1)


@needs_openssl
def test_old_tls_is_refused(nodes: Nodes, authority: Authority) -> None:
    files = authority.files("a")
    keeper = nodes.listen(settings("a", tls=files))
    context = ssl.create_default_context(cafile=authority.ca)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert, files.key)
    with socket.create_connection(keeper.address) as plain, pytest.raises(OSError, match=r"(?i)version|reset"):
        context.wrap_socket(plain)
    refusals(keeper, 1)


def test_the_shared_secret(nodes: Nodes, secret: Path) -> None:
    nodes.meet(settings("a", secret_file=secret), settings("b", secret_file=secret))


def test_another_secret_is_refused(nodes: Nodes, secret: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(SECRET[::-1])
    reason = nodes.refuse(settings("a", secret_file=secret), settings("b", secret_file=other))
    assert "closed during the greeting" in reason, "a stranger is told nothing"


def test_the_listener_proves_itself_too(nodes: Nodes, secret: Path) -> None:
    """An impostor that repeats our own words at us does not pass: nonces, and roles."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        post = nodes.dial(settings("a", secret_file=secret), Address(*impostor.getsockname()[:2]))
        connected, _ = impostor.accept()
        with connected:
            heard = connected.recv(40, socket.MSG_WAITALL)
            connected.sendall(heard)
            connected.sendall(connected.recv(32, socket.MSG_WAITALL))
            assert "does not know our shared secret" in post.next(DialFailed).reason


def test_nodes_that_are_configured_differently(nodes: Nodes, authority: Authority, secret: Path) -> None:
    keeper = nodes.listen(settings("a", secret_file=secret))
    with socket.create_connection(keeper.address) as stream:
        stream.sendall(b"\x16\x03\x01" + bytes(64))
        refusals(keeper, 1)
    nodes.refuse(settings("a", secret_file=secret), settings("b"))


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n" * 4, b"", MAGIC])
@pytest.mark.parametrize("guarded", [False, True])
def test_garbage_does_not_enter(nodes: Nodes, secret: Path, garbage: bytes, guarded: bool) -> None:
    own = settings("a", secret_file=secret) if guarded else settings("a")
    keeper = nodes.listen(own)
    with socket.create_connection(keeper.address) as stream:
        stream.sendall(garbage)
        with suppress(OSError):  # it may have been hung up already
            stream.shutdown(socket.SHUT_WR)
        refusals(keeper, 1)
    there = nodes.dial(settings("b", secret_file=own.secret_file), keeper.address, epoch=8).next(PeerJoined)
    there.stream.close()
    nodes.post.next(PeerJoined).stream.close()


def test_who_says_nothing_is_sent_away(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "HANDSHAKE_DEADLINE_S", 0.3)
    keeper = nodes.listen(settings("a"))
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(keeper.address)) for _ in range(3)]
        for stream in silent:
            stream.settimeout(5)
            while stream.recv(4096):
                pass
    refusals(keeper, 3)


def test_a_host_has_so_many_greetings_at_a_time(nodes: Nodes) -> None:
    keeper = nodes.listen(settings("a"))
    with ExitStack() as stack:
        for _ in range(GREETINGS_PER_HOST_MAX + 4):
            stack.enter_context(socket.create_connection(keeper.address))
        refusals(keeper, 4)
    refusals(keeper, GREETINGS_PER_HOST_MAX + 4)
    there = nodes.dial(settings("b"), keeper.address, epoch=8).next(PeerJoined)
    there.stream.close()
    nodes.post.next(PeerJoined).stream.close()


def test_a_greeting_is_bounded(nodes: Nodes) -> None:
    keeper = nodes.listen(settings("a"))
    with socket.create_connection(keeper.address) as stream:
        stream.sendall((acquaintance.GREETING_BYTES_MAX + 1).to_bytes(4, "little"))
        refusals(keeper, 1)


@pytest.mark.parametrize(
    ("dialling", "hello", "words"),
    [
        (settings("b"), {"vineyard": "0.25.0"}, ("vineyard version", "'0.25.0' on b", "'0.24.2' on a")),
        (ClusterSettings("other", "b"), {}, ("cluster.name", "'other' on b", "'test' on a")),
        (settings("a"), {}, ("both are named 'a'",)),
    ],
)
def test_disagreements_name_both_values(
    nodes: Nodes, dialling: ClusterSettings, hello: dict[str, str], words: tuple[str, ...]
) -> None:
    keeper = nodes.listen(settings("a"))
    failed = nodes.dial(dialling, keeper.address, epoch=8, **hello).next(DialFailed)
    assert not failed.itself
    refusals(keeper, 1)
    for word in words:
        assert word.split(" on ")[0] in failed.reason


def test_a_node_that_dials_itself_knows_it(nodes: Nodes) -> None:
    keeper = nodes.listen(settings("a"))
    failed = nodes.dial(settings("a"), keeper.address).next(DialFailed)
    assert failed.itself
    assert keeper.refused == 0


def test_who_is_not_there(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = Address(*gone.getsockname()[:2])
    assert "refused" in nodes.dial(settings("a"), address).next(DialFailed).reason.lower()


def test_the_first_message_must_be_a_greeting(nodes: Nodes) -> None:
    from tieredkv.sidecar.cluster.peer_protocol import Ping

    keeper = nodes.listen(settings("a"))
    with socket.create_connection(keeper.address) as stream:
        stream.sendall(encode(Ping(1)))
        refusals(keeper, 1)


@pytest.mark.parametrize(
    ("own", "word"),
    [
        (settings(listen=Address("0.0.0.0", 1)), "cluster.listen"),
        (settings(peers=(Address("10.0.0.1", 1),)), "cluster.peers"),
        (settings(secret_file=Path("/nowhere/secret")), "cluster.secret_file"),
    ],
)
def test_what_cannot_be_safe_is_refused_at_start(own: ClusterSettings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make_security(own)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short")
    with pytest.raises(ConfigError, match=r"has 5 bytes; write 16"):
        make_security(settings(secret_file=tmp_path / "secret"))


@needs_openssl
def test_wrong_tls_files_are_named(authority: Authority, tmp_path: Path) -> None:
    from dataclasses import replace

    files = authority.files("a")
    with pytest.raises(ConfigError, match=r"cluster\.tls\.ca"):
        make_security(settings(tls=replace(files, ca=tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"cluster\.tls\.cert"):
        make_security(settings(tls=replace(files, key=files.cert)))
    with pytest.raises(ConfigError, match="keep one"):
        make_security(settings(tls=files, secret_file=files.cert))
