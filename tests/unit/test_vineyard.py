"""The Vineyard codec against a peer that answers wrongly; the right answers come from a real one elsewhere."""

import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tieredkv.errors import VineyardError
from tieredkv.tiers.vineyard import VineyardClient
from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION

REGISTERED = {"type": "register_reply", "version": VINEYARD_VERSION, "store_match": True}
Answer = Callable[[socket.socket, dict[str, Any]], None]


def _frame(answer: object) -> bytes:
    body = json.dumps(answer).encode()
    return struct.pack("<Q", len(body)) + body


def _reply(answer: object) -> Answer:
    return lambda peer, _: peer.sendall(_frame(answer))


def _payload(offset: int = 64, size: int = 128, arena: int = 4096, fd: int = 7) -> dict[str, int]:
    return {"object_id": 1 << 63, "data_offset": offset, "data_size": size, "map_size": arena, "store_fd": fd}


class FakeVineyardd:
    """Answers the requests of one connection with the given answers, in order."""

    def __init__(self, path: Path, answers: list[Answer]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        peer, _ = self._listener.accept()
        with peer, peer.makefile("rb") as stream:
            for answer in self._answers:
                head = stream.read(8)
                if len(head) < 8:
                    return
                answer(peer, json.loads(stream.read(struct.unpack("<Q", head)[0])))
            stream.read()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def talk() -> Iterator[Callable[..., VineyardClient]]:
    """Connects a client to a peer that gives the answers."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "v.sock"
        closing: list[Any] = []

        def make(*answers: Answer, registered: object = REGISTERED) -> VineyardClient:
            closing.append(FakeVineyardd(path, [_reply(registered), *answers]))
            client = VineyardClient(path, deadline_s=5)
            closing.append(client)
            return client

        yield make
        for part in reversed(closing):
            part.close()


def _with_fd(answer: object, count: int = 1) -> Answer:
    def send(peer: socket.socket, request: dict[str, Any]) -> None:
        del request
        peer.sendall(_frame(answer))
        fds = [os.memfd_create("arena") for _ in range(count)]
        socket.send_fds(peer, [b"\0"], fds)
        for fd in fds:
            os.close(fd)

    return send


def _open_memfds(name: str) -> int:
    """How many descriptors of this process are memfds of that name."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed while we look
            count += str(entry.readlink()).startswith(f"/memfd:{name} ")
    return count


def test_another_version_is_refused(talk: Callable[..., VineyardClient]) -> None:
    with pytest.raises(VineyardError, match=r"version '0\.25\.0'"):
        talk(registered={**REGISTERED, "version": "0.25.0"})


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(VineyardError, match="No such file"):
        VineyardClient(tmp_path / "none", deadline_s=1)


def test_blobs_and_the_arena_come_together(talk: Callable[..., VineyardClient]) -> None:
    answer = {"type": "create_buffers_reply", "payloads": [_payload(), _payload(256)], "fds": [7]}
    client = talk(_with_fd(answer))
    blobs = client.create(2, 128, deadline_s=5)
    assert blobs.ids == (1 << 63, 1 << 63)
    assert blobs.offsets.tolist() == [64, 256]
    fd = client.take_arena_fd()
    assert "memfd" in str(Path(f"/proc/self/fd/{fd}").readlink())
    os.close(fd)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"code": 41, "message": "full"}, "code 41 'full'"),
        ({"type": "create_buffers_reply", "payloads": [], "fds": []}, "0 blobs instead of 1"),
        ({"type": "create_buffers_reply", "payloads": [_payload(size=64)], "fds": []}, "other sizes"),
        ({"type": "create_buffers_reply", "payloads": [_payload(offset=4000)], "fds": []}, "outside"),
        ({"type": "create_buffers_reply", "payloads": [_payload(offset=-64)], "fds": []}, "outside"),
        ({"type": "create_buffers_reply", "payloads": "many"}, "payloads"),
        ({"type": "get_buffers_reply", "payloads": [_payload()]}, "no create_buffers_reply"),
        ([1, 2], "create_buffers_reply"),
    ],
)
def test_a_wrong_answer_is_an_error(talk: Callable[..., VineyardClient], answer: object, reason: str) -> None:
    client = talk(_reply(answer))
    with pytest.raises(VineyardError, match=reason):
        client.create(1, 128, deadline_s=5)


def test_two_arenas_are_an_error(talk: Callable[..., VineyardClient]) -> None:
    client = talk(_reply({"type": "create_buffers_reply", "payloads": [_payload(), _payload(fd=8)], "fds": []}))
    with pytest.raises(VineyardError, match="2 arenas"):
        client.create(2, 128, deadline_s=5)


def test_more_descriptors_than_one_are_closed_and_an_error(talk: Callable[..., VineyardClient]) -> None:
    answer = {"type": "create_buffers_reply", "payloads": [_payload()], "fds": [7]}
    client = talk(_with_fd(answer, 2))
    with pytest.raises(VineyardError, match="one file descriptor"):
        client.create(1, 128, deadline_s=5)
    # The peer's thread may still be closing its own ends; ours would stay for ever.
    until_s = time.monotonic() + 5
    while _open_memfds("arena"):
        assert time.monotonic() < until_s, "a descriptor was left open"


def test_a_giant_reply_is_not_read(talk: Callable[..., VineyardClient]) -> None:
    client = talk(lambda peer, _: peer.sendall(struct.pack("<Q", 1 << 40)))
    with pytest.raises(VineyardError, match="bytes"):
        client.usage(deadline_s=5)


def test_garbage_instead_of_json(talk: Callable[..., VineyardClient]) -> None:
    client = talk(lambda peer, _: peer.sendall(struct.pack("<Q", 4) + b"\xff\xfe\0x"))
    with pytest.raises(VineyardError, match="instance_status_reply"):
        client.usage(deadline_s=5)


def test_silence_ends_at_the_deadline(talk: Callable[..., VineyardClient]) -> None:
    client = talk(lambda _, __: None)
    with pytest.raises(VineyardError, match=r"timed out|deadline"):
        client.usage(deadline_s=0.05)


def test_a_peer_that_hangs_up(talk: Callable[..., VineyardClient]) -> None:
    client = talk(lambda peer, _: peer.shutdown(socket.SHUT_RDWR))
    with pytest.raises(VineyardError, match="closed the connection"):
        client.usage(deadline_s=5)
