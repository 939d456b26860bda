"""A vineyardd's RPC port whose answers the test gives itself, as slowly as it likes."""

import json
import queue
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass

from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION

DEADLINE_S = 20.0


def _frame(answer: dict[str, object]) -> bytes:
    body = json.dumps(answer).encode()
    return struct.pack("<Q", len(body)) + body


@dataclass(frozen=True)
class Request:
    """Blobs that were asked for on one connection."""

    ids: list[int]
    peer: socket.socket

    def announce(self, size_bytes: int) -> None:
        """Say that all of them follow."""
        payloads = [{"object_id": blob_id, "data_size": size_bytes} for blob_id in self.ids]
        self.send(_frame({"type": "get_buffers_reply", "payloads": payloads}))

    def send(self, content: bytes) -> None:
        self.peer.sendall(content)


class ScriptedVineyardd:
    """Registers whoever comes; `next_request` is what it was asked then."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def next_request(self) -> Request:
        return self._requests.get(timeout=DEADLINE_S)

    def close(self) -> None:
        for peer in (self._listener, *self._peers):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._peers.append(peer)
                self._threads.append(threading.Thread(target=self._listen, args=(peer,), daemon=True))
                self._threads[-1].start()

    def _listen(self, peer: socket.socket) -> None:
        with suppress(OSError), peer.makefile("rb") as stream:
            while len(head := stream.read(8)) == 8:
                request = json.loads(stream.read(struct.unpack("<Q", head)[0]))
                if request["type"] == "register_request":
                    registered = {"type": "register_reply", "version": VINEYARD_VERSION, "store_match": True}
                    peer.sendall(_frame(registered))
                else:
                    self._requests.put(Request([request[str(at)] for at in range(request["num"])], peer))
