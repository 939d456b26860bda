"""`tieredkv bench remote`: chunks of another process's vineyardd into slots, beside a socket and a memcpy.

Ours is the mover's own way: a batch read by the RPC straight into the bodies of slots, without and with
the proof of every chunk (its checksum included). The floors are a plain TCP connection over which another
process sends the same pieces of the same arena into the same slots, and one copy by numpy between the
two arenas; all in turns. Chunks and slots are drawn at random; all memory was touched before.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import monotonic, perf_counter
from typing import Final, Self

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tieredkv.bench.machine import describe_machine
from tieredkv.bench.other_node import GENERATION, OtherNode, key_of, pool_of
from tieredkv.bench.raw_sender import RawSender
from tieredkv.bench.remote_peers import Peer, open_peer
from tieredkv.sidecar.mover.fetching import fetch
from tieredkv.sidecar.mover.messages import Fetch
from tieredkv.sidecar.mover.places import Places
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.remote import PeerReader, Wanted
from tieredkv.tiers.slots import HEADER_BYTES, TRAILER_BYTES, slot_bytes
from tieredkv.tiers.vineyard import BLOB_OVERHEAD_BYTES

KIB: Final = 1024
MIB: Final = 1024 * KIB
SIZES: Final = (256 * KIB, MIB, 2 * MIB, 4 * MIB)
BATCH: Final = 64
ROUNDS: Final = 15
WARM_UP_ROUNDS: Final = 2
POOL_BYTES_MIN: Final = 256 * MIB
"""Chunks and slots are drawn from at least this much."""

_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """Batches of one size beside one floor: medians over the rounds; ratios = ours / floor, within each round.

    A chunk is one piece (`page_bytes`) here. `verified_*`: with the proof of every chunk. `floor` is
    "socket", "memcpy" or "peer", and then `peer` names it.
    """

    movement: str
    device: str
    chunk_bytes: int
    batch: int
    page_bytes: int
    gbytes_per_s: float
    verified_gbytes_per_s: float
    floor: str
    floor_gbytes_per_s: float
    ratio: float
    verified_ratio: float
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes. `load` is the machine's load average of the last minute, before and after."""

    machine: dict[str, str]
    load: tuple[float, float]
    rounds: int
    results: list[Row]


def measure(
    console: Console, *, sizes: Sequence[int] = SIZES, rounds: int = ROUNDS, peers: Sequence[str] = ()
) -> Result:
    """Run every size; about a minute. Raises TieredKVError when a part of it is not installed."""
    before = os.getloadavg()[0]
    rows: list[Row] = []
    for size in track(sizes, "remote", console=console):
        rows += measure_size(size, rounds=rounds, peers=peers)
    return Result(describe_machine(), (before, os.getloadavg()[0]), rounds, rows)


def report(result: Result, console: Console) -> None:
    """A table for people."""
    table = Table(title=f"batches of {BATCH} chunks from another process, median of {result.rounds} rounds")
    for heading in ("floor", "chunk", "GB/s", "verified GB/s", "floor GB/s", "ratio", "verified ratio"):
        table.add_column(heading, justify="left" if heading == "floor" else "right")
    for row in result.results:
        table.add_row(
            row.peer or row.floor,
            f"{row.chunk_bytes // KIB} KiB",
            f"{row.gbytes_per_s:.2f}",
            f"{row.verified_gbytes_per_s:.2f}",
            f"{row.floor_gbytes_per_s:.2f}",
            f"{row.ratio:.2f}",
            f"{row.verified_ratio:.2f}",
        )
    console.print(table)
    console.print("load average before and after: {:.2f} {:.2f}".format(*result.load))


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    return asdict(result)


def measure_size(chunk_bytes: int, *, rounds: int = ROUNDS, peers: Sequence[str] = ()) -> list[Row]:
    """All rows of one size."""
    with _TestBed(chunk_bytes, peers) as bed:
        ways = {"read": bed.read_s, "socket": bed.socket_s, "verified": bed.verified_s, "memcpy": bed.memcpy_s}
        ways |= bed.peer_ways
        taken = _in_turns(ways, rounds)
        bed.check()
    moved_bytes = chunk_bytes * BATCH

    def gbytes_per_s(way: str) -> float:
        return moved_bytes / median(taken[way]) / 1e9

    def ratio(way: str, floor: str) -> float:
        return median(floor_s / ours_s for ours_s, floor_s in zip(taken[way], taken[floor], strict=True))

    return [
        Row(
            movement="fetch",
            device="cpu",
            chunk_bytes=chunk_bytes,
            batch=BATCH,
            page_bytes=chunk_bytes,
            gbytes_per_s=gbytes_per_s("read"),
            verified_gbytes_per_s=gbytes_per_s("verified"),
            floor="peer" if floor in peers else floor,
            floor_gbytes_per_s=gbytes_per_s(floor),
            ratio=ratio("read", floor),
            verified_ratio=ratio("verified", floor),
            peer=floor if floor in peers else "",
        )
        for floor in ("socket", "memcpy", *peers)
    ]


def _in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; every second round goes backwards, so that none is always first."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(WARM_UP_ROUNDS + rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            seconds = ways[way]()
            if number >= WARM_UP_ROUNDS:
                taken[way].append(seconds)
    return taken


class _TestBed:
    """The other node, our slots, and the ways between them. Each way gives its seconds for one batch."""

    def __init__(self, chunk_bytes: int, peers: Sequence[str]) -> None:
        self._chunks = max(POOL_BYTES_MIN // chunk_bytes, BATCH)
        self._size_bytes = slot_bytes(chunk_bytes)
        with ExitStack() as opened:
            self._node = opened.enter_context(OtherNode(self._chunks, chunk_bytes))
            arena = self._node.arena
            self._sender = opened.enter_context(RawSender(self._node.arena_fd, arena.size_bytes))
            self._reader = PeerReader("127.0.0.1", self._node.port, connect_deadline_s=_DEADLINE_S)
            opened.callback(self._reader.close)
            self._arena, offsets = _own_arena(self._chunks, self._size_bytes)
            opened.callback(self._arena.close)
            chunks = [arena.view[start : start + self._size_bytes].data for start in self._node.offsets[:BATCH]]
            self.peer_ways: dict[str, Callable[[], float]] = {
                name: partial(self._peer_s, opened.enter_context(open_peer(name, chunks, self._arena.view.data)))
                for name in peers
            }
            self._opened = opened.pop_all()
        self._offsets: list[int] = offsets.tolist()
        self._places = Places(self._arena.view, pool_of(offsets, chunk_bytes))
        self._random = np.random.default_rng(1)
        self._generation = 0
        self._ends = memoryview(bytearray(HEADER_BYTES + TRAILER_BYTES))
        self._last: tuple[list[int], list[int]] = ([], [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read_s(self) -> float:
        """The RPC alone."""
        sources, targets = self._draw()
        start_s = perf_counter()
        header, trailer = self._ends[:HEADER_BYTES], self._ends[HEADER_BYTES:]
        wanted = [
            Wanted(int(self._node.blob_ids[source]), self._size_bytes, (header, self._places.room(target), trailer))
            for source, target in zip(sources, targets, strict=True)
        ]
        arrived = self._reader.read(wanted, until_s=monotonic() + _DEADLINE_S)
        taken_s = perf_counter() - start_s
        assert all(arrived)
        return taken_s

    def verified_s(self) -> float:
        """A job of the mover: the RPC, and the proof of every chunk."""
        sources, targets = self._last = self._draw()
        self._generation += 1
        job = Fetch(
            pool=0,
            number=self._generation,
            groups=(0,) * BATCH,
            keys=tuple(key_of(source) for source in sources),
            parents=(b"",) * BATCH,
            positions=tuple(sources),
            sources=tuple(sources),
            source_generations=(GENERATION,) * BATCH,
            targets=tuple(targets),
            target_generations=(self._generation,) * BATCH,
            urgent=True,
            peer=0,
            deadline_s=_DEADLINE_S,
            work_s=_DEADLINE_S,
        )
        until_s = monotonic() + _DEADLINE_S
        start_s = perf_counter()
        failed = fetch(self._places, job, self._reader, self._node.blob_ids, until_s=until_s, cancelled=lambda: False)
        taken_s = perf_counter() - start_s
        assert not failed, failed
        return taken_s

    def socket_s(self) -> float:
        """The same pieces over a plain connection."""
        sources, targets = self._draw()
        offsets = [self._node.offsets[source] for source in sources]
        return self._sender.receive(offsets, self._size_bytes, self._slots(targets))

    def memcpy_s(self) -> float:
        """One copy of as many bytes from arena to arena."""
        size_bytes = BATCH * self._size_bytes
        start, end = self._offsets[0], self._offsets[0] + size_bytes
        start_s = perf_counter()
        np.copyto(self._arena.view[start:end], self._node.arena.view[start:end])
        return perf_counter() - start_s

    def _peer_s(self, peer: Peer) -> float:
        targets = self._slots(self._draw()[1])
        start_s = perf_counter()
        peer.read(targets)
        return perf_counter() - start_s

    def check(self) -> None:
        """What the mover accepted in a last batch is what the node holds."""
        self.verified_s()
        theirs = Places(self._node.arena.view, pool_of(np.array(self._node.offsets, np.int64), self._places.body_bytes))
        for source, target in zip(*self._last, strict=True):
            assert bool((theirs.body(source) == self._places.body(target)).all())

    def _draw(self) -> tuple[list[int], list[int]]:
        draw = self._random.permutation
        return draw(self._chunks)[:BATCH].tolist(), draw(self._chunks)[:BATCH].tolist()

    def _slots(self, targets: Sequence[int]) -> list[memoryview]:
        starts = [self._offsets[target] for target in targets]
        return [self._arena.view[start : start + self._size_bytes].data for start in starts]


def _own_arena(slots: int, size_bytes: int) -> tuple[Arena, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """A memfd laid out as vineyardd does it, every page touched, and where its slots are."""
    stride = size_bytes + BLOB_OVERHEAD_BYTES
    arena_bytes = -(-(BLOB_OVERHEAD_BYTES + slots * stride) // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("tieredkv-bench")
    try:
        os.ftruncate(fd, arena_bytes)
        arena = Arena(fd, arena_bytes)
    finally:
        os.close(fd)
    arena.view[:] = 1
    return arena, BLOB_OVERHEAD_BYTES + np.arange(slots, dtype=np.int64) * stride
