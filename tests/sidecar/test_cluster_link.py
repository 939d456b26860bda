"""Links between nodes over real sockets, plain and TLS: whole messages, bounds, and garbage."""

import random
import selectors
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tieredkv.errors import ProtocolError
from tieredkv.protocol import FRAME_BYTES_MAX, encode
from tieredkv.sidecar.cluster import link as link_module
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.dialer import Dialer
from tieredkv.sidecar.cluster.doorkeeper import Doorkeeper
from tieredkv.sidecar.cluster.link import PeerLink
from tieredkv.sidecar.cluster.peer_protocol import (
    ROWS_MAX,
    Changes,
    FromPeer,
    PeerWelcome,
    Ping,
    Used,
    encode_proved,
)
from tieredkv.sidecar.cluster.security import make_security
from tieredkv.sidecar.cluster.settings import Address
from tieredkv.sidecar.connection import ConnectionLost

from .cluster_nodes import DEADLINE_S, HERE, Authority, Post, hello_of, settings

Pair = tuple[PeerLink, PeerLink]
SPACE = bytes(16)
TLS_MISSING = shutil.which("openssl") is None


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(params=["plain", pytest.param("tls", marks=pytest.mark.skipif(TLS_MISSING, reason="no openssl"))])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two ends of a link."""
    files = {}
    if request.param == "tls":
        authority = request.getfixturevalue("authority")
        files = {name: authority.files(name) for name in "ab"}
    a, b = (settings(name, tls=files.get(name), rpc_port=9600) for name in "ab")
    with ExitStack() as stack:
        post, dialled = Post(), Post()
        keeper = Doorkeeper(HERE, make_security(a), hello_of(a), post.inbox)
        stack.callback(keeper.close)
        Dialer(make_security(b), hello_of(b, epoch=8), dialled.inbox).dial(keeper.address)
        links = (PeerLink(post.next(PeerJoined), 0.0), PeerLink(dialled.next(PeerJoined), 0.0))
        for end in links:
            stack.callback(end.close)
        yield links


def exchange(sender: PeerLink, receiver: PeerLink, done: Callable[[list[FromPeer]], bool]) -> list[FromPeer]:
    """As the loop does: flush what there is room for, receive what the selector tells of."""
    heard: list[FromPeer] = []
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        while not done(heard):
            sender.flush()
            assert selector.select(DEADLINE_S), "nothing comes"
            heard += receiver.receive(1.0)
    return heard


def exhaust(again: Callable[[], object]) -> None:
    """Until it raises, which it must before long."""
    for _ in range(10_000):
        again()


def test_messages_come_whole_and_in_order(pair: Pair) -> None:
    source = random.Random(1)
    said: list[FromPeer] = []
    for number in range(200):
        keys = [source.randbytes(32) for _ in range(source.choice((0, 1, 300)))]
        said += [Ping(number), Used(SPACE, 5, bytes(4 * len(keys)), keys)]
    for sender, receiver in (pair, pair[::-1]):
        for message in said:
            sender.send(message)
        assert exchange(sender, receiver, lambda heard: len(heard) == len(said)) == said
        assert receiver.heard_s == 1.0
        assert not sender.has_output


def test_large_messages_through_a_full_socket(pair: Pair) -> None:
    rows = bytes(8 * ROWS_MAX)
    said = [Changes(SPACE, 5, number, False, rows[: 4 * ROWS_MAX], rows, rows) for number in range(30)]
    for message in said:
        pair[0].send(message)
    assert pair[0].has_output
    assert exchange(*pair, lambda heard: len(heard) == len(said)) == said
    assert pair[0].outbox_bytes == 0


def test_who_does_not_read_is_hung_up_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OUTBOX_BYTES_MAX", 1 << 20)
    rows = bytes(8 * ROWS_MAX)
    large = Changes(SPACE, 5, 0, False, rows[: 4 * ROWS_MAX], rows, rows)
    with pytest.raises(ConnectionLost, match="does not read"):
        exhaust(lambda: pair[0].send(large))
    assert pair[0].outbox_bytes <= 1 << 20


def test_the_end_comes_after_the_last_message(pair: Pair) -> None:
    pair[0].send(Ping(7))
    pair[0].close()
    heard: list[FromPeer] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pair[1], selectors.EVENT_READ)
        with pytest.raises(ConnectionLost):
            exhaust(lambda: selector.select(DEADLINE_S) and heard.extend(pair[1].receive(1.0)))
    assert heard == [Ping(7)]


def test_a_second_greeting_is_an_error(pair: Pair) -> None:
    pair[0].send(pair[1].hello)
    with pytest.raises(ProtocolError, match="second greeting"):
        exchange(*pair, lambda _: False)


def test_rpc_is_where_the_connection_is_if_not_said(pair: Pair) -> None:
    assert pair[0].rpc == Address("127.0.0.1", 9600)
    assert pair[0].dialled is None
    assert pair[1].dialled is not None
    assert abs(pair[0].clock_apart_s) < DEADLINE_S


def test_garbage_ends_in_an_error_and_in_nothing_else() -> None:
    source = random.Random(2)
    frame = encode_proved(Used(SPACE, 5, bytes(8), [bytes(32), bytes(32)]))
    for number in range(400):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            end = PeerLink(PeerJoined(ours, hello_of(settings("b"))(), 1, None, "127.0.0.1", 0.0), 0.0)
            body = bytearray(frame * 3)
            for _ in range(number % 5):
                body[source.randrange(len(body))] = source.randrange(256)
            theirs.sendall(body)
            theirs.close()
            with pytest.raises((ProtocolError, ConnectionLost)):
                exhaust(lambda end=end: end.receive(0.0))


@pytest.mark.parametrize("at", range(4, len(encode_proved(Ping(3)))))
def test_no_damaged_message_is_believed(at: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        end = PeerLink(PeerJoined(ours, hello_of(settings("b"))(), 1, None, "127.0.0.1", 0.0), 0.0)
        frame = bytearray(encode_proved(Ping(3)))
        frame[at] ^= 1
        theirs.sendall(frame)
        with pytest.raises(ProtocolError, match="damaged"):
            end.receive(0.0)


def test_bytes_that_never_become_a_message_are_silence() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        end = PeerLink(PeerJoined(ours, hello_of(settings("b"))(), 1, None, "127.0.0.1", 0.0), 0.0)
        theirs.sendall((1 << 20).to_bytes(4, "little") + encode_proved(Ping(3)))
        assert end.receive(7.0) == []
        assert end.heard_s == 0.0


def test_an_oversized_frame_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        end = PeerLink(PeerJoined(ours, hello_of(settings("b"))(), 1, None, "127.0.0.1", 0.0), 0.0)
        theirs.sendall((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
        with pytest.raises(ProtocolError, match="exceeds"):
            end.receive(0.0)


def test_no_greeting_is_decoded_twice() -> None:
    """What follows the verdict in the same packet belongs to the link."""
    post = Post()
    own = settings("a")
    keeper = Doorkeeper(HERE, make_security(own), hello_of(own), post.inbox)
    try:
        with socket.create_connection(keeper.address) as stream:
            stream.sendall(encode(hello_of(settings("b"), epoch=9)()) + encode(PeerWelcome(1)) + encode_proved(Ping(3)))
            joined = post.next(PeerJoined)
            end = PeerLink(joined, 0.0)
            assert end.receive(0.0) == [Ping(3)]
            end.close()
    finally:
        keeper.close()
