"""What runs in the mover's process: a thread that reads messages, and lanes that work.

It ends with its sidecar: at the end of their socket, and by a signal when the sidecar is killed, also while
this process is stopped. It never outlives the sidecar to write into slots that a later one adopts.

Ownership: the thread that reads messages owns pools, peers and lanes; lanes are handed what they need.
"""

import ctypes
import os
import signal
import socket
import threading
import traceback
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.protocol import FrameReader, encode
from tieredkv.sidecar.mover import messages
from tieredkv.sidecar.mover.copying import copy
from tieredkv.sidecar.mover.fetching import fetch
from tieredkv.sidecar.mover.lanes import Lane, LocalTask, PeerTask, Task
from tieredkv.sidecar.mover.messages import FromMover, Loss, ToMover
from tieredkv.sidecar.mover.places import Places
from tieredkv.sidecar.mover.sealing import Sealing
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.remote import PeerReader
from tieredkv.tiers.slots import Generations

CONNECT_DEADLINE_S: Final = 1.0

_NICENESS: Final = 3
"""Engines come first, but what they wait for is loaded here: only a little behind them."""

_RECEIVE_BYTES: Final = 256 * 1024
_PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class _Peer:
    host: str
    port: int
    lane: Lane
    blob_ids: dict[int, Generations] = field(default_factory=dict[int, Generations])


class Process:
    """A mover. `sidecar` is the socket to it; `arena` a view of all bytes of the arena."""

    def __init__(self, sidecar: socket.socket, arena: npt.NDArray[np.uint8]) -> None:
        self._sidecar = sidecar
        self._sending = threading.Lock()
        self._arena = arena
        self._pools: dict[int, Places] = {}
        self._peers: dict[int, _Peer] = {}
        self._local = Lane("tieredkv-copy", _copy, self.answer)

    def answer(self, message: FromMover) -> None:
        """Tell the sidecar. Any thread; waits while it does not read."""
        frame = encode(message)
        with self._sending:
            self._sidecar.sendall(frame)

    def take(self, message: ToMover) -> None:
        """React to one message."""
        match message:
            case messages.Copy():
                self._local.put(LocalTask(self._pools[message.pool], message), urgent=message.urgent)
            case messages.Fetch():
                self._fetch(message)
            case messages.Cancel():
                for lane in self._lanes():
                    lane.cancel(message.pool, message.number)
            case messages.Seal():
                self._local.seal(Sealing(self._pools[message.pool], message))
            case messages.PoolIs():
                self._pools[message.pool] = Places(self._arena, message)
            case messages.PoolEnds():
                self._end_pool(message.pool)
            case messages.ResetsAre():
                self._pools[message.pool].resets = message.resets
            case messages.PeerIs():
                self._set_peer(message)
            case messages.PeerEnds():
                self._end_peer(message.pool, message.peer)
            case messages.ArenaIs():
                raise AssertionError("the arena stays the same as long as the process")

    def _lanes(self) -> list[Lane]:
        return [self._local, *(peer.lane for peer in self._peers.values())]

    def _fetch(self, job: messages.Fetch) -> None:
        peer = self._peers.get(job.peer)
        blob_ids = peer.blob_ids.get(job.pool) if peer is not None else None
        if peer is None or blob_ids is None:
            # It was taken away while the job was on its way here.
            self.answer(messages.Done(job.pool, job.number, dict.fromkeys(range(len(job)), Loss.UNREACHABLE), 0.0))
            return
        until_s = monotonic() + job.deadline_s
        peer.lane.put(PeerTask(self._pools[job.pool], job, blob_ids, until_s), urgent=job.urgent)

    def _end_pool(self, number: int) -> None:
        self._pools.pop(number).ended = True
        for lane in self._lanes():
            lane.cancel(number)
        for peer in list(self._peers):
            self._end_peer(number, peer)

    def _set_peer(self, message: messages.PeerIs) -> None:
        known = self._peers.get(message.peer)
        if known is None or (known.host, known.port) != (message.host, message.port):
            if known is not None:
                known.lane.end()
            reader = PeerReader(message.host, message.port, connect_deadline_s=CONNECT_DEADLINE_S)
            lane = Lane(f"tieredkv-peer-{message.peer}", partial(_fetch, reader), self.answer, reader.close)
            known = self._peers[message.peer] = _Peer(message.host, message.port, lane)
        known.blob_ids[message.pool] = np.frombuffer(message.blob_ids, np.uint64)

    def _end_peer(self, pool: int, number: int) -> None:
        peer = self._peers.get(number)
        if peer is None or peer.blob_ids.pop(pool, None) is None:
            return
        peer.lane.cancel(pool)
        if not peer.blob_ids:
            peer.lane.end()
            del self._peers[number]


def _copy(task: Task) -> dict[int, Loss]:
    assert isinstance(task, LocalTask)
    return copy(task.places, task.job)


def _fetch(reader: PeerReader, task: Task) -> dict[int, Loss]:
    assert isinstance(task, PeerTask)
    now_s = monotonic()
    if now_s >= task.until_s:
        return dict.fromkeys(range(len(task.job)), Loss.UNREACHABLE)
    return fetch(
        task.places,
        task.job,
        reader,
        task.blob_ids,
        until_s=min(task.until_s, now_s + task.job.work_s),
        cancelled=lambda: task.cancelled or task.places.ended,
    )


def main() -> None:
    """Serve the sidecar at the other end of standard input until it hangs up."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICENESS)
    sidecar = socket.socket(fileno=os.dup(0))
    try:
        _serve(sidecar)
    except ConnectionError:
        pass
    except BaseException:  # noqa: BLE001 - lanes are at work: end at once, and be restarted
        traceback.print_exc()
        os._exit(1)
    # Lanes may be in the middle of something; nothing of it is wanted any more.
    os._exit(0)


def _serve(sidecar: socket.socket) -> None:
    reader = FrameReader()
    received, fds, _, _ = socket.recv_fds(sidecar, _RECEIVE_BYTES, 1)
    process: Process | None = None
    while received:
        for body in reader.feed(received):
            message = messages.decode_to_mover(body)
            if process is not None:
                process.take(message)
                continue
            assert isinstance(message, messages.ArenaIs)
            arena = Arena(fds[0], message.size_bytes)
            os.close(fds[0])
            process = Process(sidecar, arena.view)
            process.answer(messages.Ready())
        received = sidecar.recv(_RECEIVE_BYTES)
