"""Another node for benchmarks: a vineyardd with its RPC port open, whose places hold sealed chunks."""

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import numpy as np

from tieredkv.sidecar.mover.messages import PoolIs
from tieredkv.sidecar.mover.places import Places
from tieredkv.sidecar.supervisor import Vineyardd, find_binary
from tieredkv.tiers import proof
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.pool import Pool, PoolRecord
from tieredkv.tiers.slots import Ints, slot_bytes
from tieredkv.tiers.vineyard import BLOB_OVERHEAD_BYTES, VineyardClient
from tieredkv.types import Geometry, Key

NAMESPACE: Final = b"tieredkv-benched"
GENERATION: Final = 1
"""Of every chunk that the node holds."""

_DEADLINE_S: Final = 60.0


class OtherNode:
    """`chunks` places with bodies of `body_bytes` random bytes; chunk N, with the key `key_of(N)`, is in place N."""

    def __init__(self, chunks: int, body_bytes: int) -> None:
        """Raises ConfigError and VineyardError."""
        self.body_bytes = body_bytes
        self.port = _free_port()
        size_bytes = slot_bytes(body_bytes)
        with ExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tieredkv-bench-")))
            vineyardd = Vineyardd.start(
                find_binary("auto"),
                folder / "vineyard.sock",
                folder / "vineyardd.log",
                arena_bytes=chunks * (size_bytes + BLOB_OVERHEAD_BYTES),
                deadline_s=_DEADLINE_S,
                rpc_port=self.port,
            )
            opened.callback(vineyardd.close)
            opened.callback(vineyardd.kill)
            client = VineyardClient(folder / "vineyard.sock", deadline_s=_DEADLINE_S)
            opened.callback(client.close)
            blobs = client.create(chunks, size_bytes, deadline_s=_DEADLINE_S)
            self.arena_fd = client.take_arena_fd()
            opened.callback(os.close, self.arena_fd)
            self.blob_ids = np.array(blobs.ids, np.uint64)
            self.offsets: list[int] = blobs.offsets.tolist()
            self.arena = Arena(self.arena_fd, blobs.arena_bytes)
            self._fill(blobs.offsets)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.arena.close()
        self._opened.close()

    def _fill(self, offsets: Ints) -> None:
        chunks = len(offsets)
        numbers = np.arange(chunks)
        generations = np.full(chunks, GENERATION, np.uint64)
        geometry = Geometry(body_bytes=self.body_bytes, chain_tokens=16, group_strides=(1,))
        record = PoolRecord(NAMESPACE, {}, geometry, tuple(self.blob_ids.tolist()), offsets)
        pool = Pool(record, self.arena.view)
        pool.wipe()
        pool.start_tenancy(numbers, generations)
        places = Places(self.arena.view, pool_of(offsets, self.body_bytes))
        random = np.random.default_rng(1)
        for number in range(chunks):
            places.body(number)[:] = random.integers(0, 256, self.body_bytes, np.uint8)
        keys = [key_of(number) for number in range(chunks)]
        pool.publish(numbers, generations, group=0, keys=keys, parents=[b""] * chunks, positions=numbers)
        for number in range(chunks):
            header = places.header(number)
            header = proof.sealed(header, proof.checksum(header, places.body(number).data))
            places.finish(number, GENERATION, header)


def pool_of(offsets: Ints, body_bytes: int) -> PoolIs:
    """Places of the benchmark's namespace, as a mover is told of them."""
    return PoolIs(0, NAMESPACE, body_bytes, len(offsets), 0, offsets.tobytes())


def key_of(number: int) -> Key:
    """The key of chunk `number`."""
    return Key(number.to_bytes(32, "little"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
