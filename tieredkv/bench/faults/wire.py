"""The network between nodes: everything that is said to a port goes through one of these, which can spoil it.

Each connection has a thread for each direction. A wire of the control protocol forwards whole frames, so
that it knows who dialled, and can say old frames again.
"""

import socket
from collections import deque
from contextlib import suppress
from random import Random
from threading import Event, Lock, Thread
from typing import Final

from tieredkv.errors import ProtocolError
from tieredkv.sidecar.cluster.peer_protocol import PeerHello, decode_from_peer

BLOCK_BYTES: Final = 64 * 1024
HISTORY_FRAMES: Final = 512
GREETING_FRAMES: Final = 2
"""Of each direction: a greeting and a verdict."""

_LENGTH_BYTES: Final = 4
_CONNECT_DEADLINE_S: Final = 5.0


class Wire:
    """Listens at `port` and forwards to `target_port` of the loopback, as it is told."""

    def __init__(self, target_port: int, random: Random, *, frames: bool) -> None:
        self._target_port = target_port
        self._random = random
        self._frames = frames
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._open = Event()
        self._open.set()
        self._over = Event()
        self._cut = False
        self._without: set[str] = set()
        self._delay_s = 0.0
        self._corrupt = 0.0
        self._flows: set[_Flow] = set()
        self._history: deque[tuple[str, bool, bytes]] = deque(maxlen=HISTORY_FRAMES)
        self._lock = Lock()
        self._thread = Thread(target=self._accept, name=f"wire-{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and threads."""
        self._over.set()
        self._open.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut_all()

    # --- faults -------------------------------------------------------------------------------------

    def cut(self, dialler: str | None = None) -> None:
        """End all connections (or those of one node) and let no other begin."""
        if dialler is None:
            self._cut = True
        else:
            self._without.add(dialler)
        self._cut_all(dialler)

    def hold(self) -> None:
        """Forward nothing; what is said meanwhile comes late."""
        self._open.clear()

    def delay(self, seconds: float) -> None:
        """Forward each block so much later."""
        self._delay_s = seconds

    def corrupt(self, part: float) -> None:
        """Flip a bit in this part of all blocks."""
        self._corrupt = part

    def repeat(self, count: int) -> int:
        """Say frames of before once more, also those of earlier connections; how many."""
        with self._lock:
            flows, history = list(self._flows), list(self._history)
        said = 0
        for flow in flows if history else ():
            mine = [frame for _, forward, frame in history if forward == flow.forward]
            for frame in self._random.choices(mine, k=count) if mine and flow.greeted else ():
                said += flow.say(frame)
        return said

    def heal(self) -> None:
        """No fault any more."""
        self._cut = False
        self._without.clear()
        self._delay_s = self._corrupt = 0.0
        self._open.set()

    # --- threads ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                dialled, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                dialled.close()
                continue
            try:
                served = socket.create_connection(("127.0.0.1", self._target_port), _CONNECT_DEADLINE_S)
            except OSError:
                dialled.close()
                continue
            served.settimeout(None)
            for one in (dialled, served):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there, back = _Flow(dialled, served, forward=True), _Flow(served, dialled, forward=False)
            there.other, back.other = back, there
            with self._lock:
                self._flows |= {there, back}
            for flow in (there, back):
                Thread(target=self._run, args=(flow,), name=f"wire-{self.port}", daemon=True).start()

    def _run(self, flow: "_Flow") -> None:
        try:
            while data := flow.source.recv(BLOCK_BYTES):
                self._open.wait()
                if self._delay_s:
                    self._over.wait(self._delay_s)
                for block in flow.cut_frames(data) if self._frames else [data]:
                    if self._frames and not self._may_pass(flow, block):
                        return
                    if not flow.say(self._spoilt(flow, block)):
                        return
        except OSError:
            pass
        finally:
            flow.end()
            with self._lock:
                self._flows.discard(flow)

    def _may_pass(self, flow: "_Flow", frame: bytes) -> bool:
        """Note what is said, and who says it."""
        flow.frames += 1
        if flow.frames == 1 and flow.forward:
            flow.dialler = _node_of(frame)
            if flow.other is not None:
                flow.other.dialler = flow.dialler
        elif flow.greeted:
            with self._lock:
                self._history.append((flow.dialler, flow.forward, frame))
        return flow.dialler not in self._without

    def _spoilt(self, flow: "_Flow", block: bytes) -> bytes:
        if not self._corrupt or self._random.random() >= self._corrupt or (self._frames and not flow.greeted):
            return block
        spoilt = bytearray(block)
        spoilt[self._random.randrange(len(spoilt))] ^= 1 << self._random.randrange(8)
        return bytes(spoilt)

    def _cut_all(self, dialler: str | None = None) -> None:
        with self._lock:
            flows = list(self._flows)
        for flow in flows:
            if dialler is None or flow.dialler == dialler:
                flow.end()


class _Flow:
    """One direction of a connection. `source` is read by one thread, `target` written by several."""

    def __init__(self, source: socket.socket, target: socket.socket, *, forward: bool) -> None:
        self.source = source
        self.target = target
        self.forward = forward
        self.frames = 0
        self.dialler = ""
        self.other: _Flow | None = None
        self._rest = bytearray()
        self._lock = Lock()

    @property
    def greeted(self) -> bool:
        """Whether the connection is past its greetings."""
        return self.frames > GREETING_FRAMES

    def cut_frames(self, data: bytes) -> list[bytes]:
        """Whole frames, with their lengths."""
        self._rest += data
        whole: list[bytes] = []
        while len(self._rest) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._rest[:_LENGTH_BYTES], "little")
            if len(self._rest) < end:
                break
            whole.append(bytes(self._rest[:end]))
            del self._rest[:end]
        return whole

    def say(self, data: bytes) -> bool:
        """False when the connection is gone."""
        try:
            with self._lock:
                self.target.sendall(data)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End the connection, both ways. May be repeated."""
        for one in (self.source, self.target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        # The last of the two threads to leave closes.
        if self.other is not None and self.other.other is None:
            for one in (self.source, self.target):
                one.close()
        self.other = None


def _node_of(frame: bytes) -> str:
    """Who greets."""
    try:
        message = decode_from_peer(frame[_LENGTH_BYTES:])
    except ProtocolError:
        return ""
    return message.node if isinstance(message, PeerHello) else ""
