"""A real vineyardd with its RPC port open, in a short-lived folder."""

import shutil
import signal
import socket
import tempfile
from pathlib import Path

import numpy as np

from tieredkv.sidecar.supervisor import Vineyardd, find_binary
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.vineyard import Blobs, VineyardClient

DEADLINE_S = 20.0


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RealVineyardd:
    """Holds unsealed blobs, written through a mapping of its arena as a sidecar does."""

    def __init__(self, port: int | None = None, *, size_bytes: int = 128 << 20) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tkv", dir="/tmp"))
        self.port = port or free_port()
        self.process = Vineyardd.start(
            find_binary("auto"),
            self.folder / "v.sock",
            self.folder / "log",
            arena_bytes=size_bytes,
            deadline_s=DEADLINE_S,
            rpc_port=self.port,
        )
        self._client = VineyardClient(self.folder / "v.sock", deadline_s=DEADLINE_S)
        self._arena: Arena | None = None

    def create(self, contents: list[bytes]) -> list[int]:
        """Blobs with those contents, all as long; their ids."""
        blobs = self._client.create(len(contents), len(contents[0]), deadline_s=DEADLINE_S)
        if self._arena is None:
            self._arena = Arena(self._client.take_arena_fd(), blobs.arena_bytes)
        for number, content in enumerate(contents):
            self.rewrite(blobs, number, content)
        self.blobs = blobs
        return list(blobs.ids)

    def rewrite(self, blobs: Blobs, number: int, content: bytes) -> None:
        """Write into a blob in place."""
        assert self._arena is not None
        start = int(blobs.offsets[number])
        self._arena.view[start : start + len(content)] = np.frombuffer(content, np.uint8)

    def drop(self, blob_ids: list[int]) -> None:
        """Free blobs."""
        self._client.drop(blob_ids, deadline_s=DEADLINE_S)

    def stop(self) -> None:
        """SIGSTOP."""
        signal.pidfd_send_signal(self.process.pidfd, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        signal.pidfd_send_signal(self.process.pidfd, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()

    def close(self) -> None:
        """End it and forget its folder."""
        self._client.close()
        self.process.kill()
        self.process.close()
        shutil.rmtree(self.folder, ignore_errors=True)
