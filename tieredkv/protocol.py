"""The control protocol between engines and their node's sidecar, over a Unix stream socket.

A frame is a little-endian u32 length and that many bytes of msgpack: one message, an array whose
first element is its tag. Bytes of KV never travel here. Arrays of slots are little-endian int32 and
arrays of generations little-endian uint64, as raw bytes.

A connection starts with `Hello`; the sidecar answers `Welcome` (to schedulers and workers, with file
descriptors: see `Welcome`) or `Refused` and closes. Anything malformed, oversized or out of turn closes
that connection and nothing else.
"""

import struct
from typing import Final

import msgspec

from tieredkv.errors import ProtocolError

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages."""


# --- engine -> sidecar ----------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """First message of a connection.

    `role` is scheduler, worker or admin; an admin sends only `protocol_*` and may say `StatusAsk`,
    `Hint`, `Prefetch`, `Record` and `Stop`. All connections of one engine carry the same `engine_id`; what the
    engine holds (leases, pins) is freed when the last of them is closed. `namespace` is the 16-byte
    fingerprint of all that makes KV bytes interchangeable, `description` its readable parts. `held_*`
    name the slots that stores of this engine are still writing after a reconnect, valid only if
    `held_epoch` is current.
    """

    protocol_min: int
    protocol_max: int
    role: str
    engine_id: str = ""
    rank: int = 0
    world_size: int = 1
    namespace: bytes = b""
    description: dict[str, str] = {}
    body_bytes: int = 0
    chain_tokens: int = 0
    group_strides: tuple[int, ...] = ()
    wants_events: bool = False
    held_epoch: int = 0
    held_slots: bytes = b""


class Arrive(Message, frozen=True, tag="arrive"):
    """A request arrived (or asks `again`; `seq` counts). `chain` holds all keys of its full positions.

    `tenant` and `hints` are the application's words: see tieredkv.policy.hints.
    """

    request: str
    seq: int
    chain: list[bytes]
    tokens: int
    tenant: str = ""
    hints: dict[str, str | int | float | bool] = {}
    again: bool = False


class Lease(Message, frozen=True, tag="lease"):
    """Give `count` more slots to write into; answered by one `Leased`, perhaps with fewer."""

    count: int


class Publish(Message, frozen=True, tag="publish"):
    """All ranks wrote these chunks of one group: make them readable. Head of the prefix first.

    `parents[i]` is the key of the previous chain position (empty at the start), `positions` the chain
    indices as int32 bytes, `slots` the leased slots as int32 bytes.
    """

    group: int
    keys: list[bytes]
    parents: list[bytes]
    positions: bytes
    slots: bytes


class Return(Message, frozen=True, tag="return"):
    """Give leased slots back unused (or not wholly written)."""

    slots: bytes


class Release(Message, frozen=True, tag="release"):
    """The request needs its pins no more."""

    request: str


class Live(Message, frozen=True, tag="live"):
    """All requests that still need their pins: others of this engine are released (lost messages)."""

    requests: list[str]


class Reset(Message, frozen=True, tag="reset"):
    """Forget every chunk of the namespace (weights changed)."""


class SelfTest(Message, frozen=True, tag="selftest"):
    """A worker's verdict on its round trip of known bytes. `reason` is empty when it passed."""

    reason: str


class Ledger(Message, frozen=True, tag="ledger"):
    """Counters of the engine, as increments since its last report: {metric: {label value: amount}}.

    Answered by `PoolState` when a scheduler sent it.
    """

    counters: dict[str, dict[str, float]]


class StatusAsk(Message, frozen=True, tag="status_ask"):
    """Answered by `Status`."""


class Stop(Message, frozen=True, tag="stop"):
    """End the sidecar cleanly (admin only)."""


class Hint(Message, frozen=True, tag="hint"):
    """The application says something of a session between its requests (admin only): `Hinted` answers.

    In every namespace, because who routes requests does not know them.
    """

    session: str
    hints: dict[str, str | int | float | bool]
    tenant: str = ""


class Prefetch(Message, frozen=True, tag="prefetch"):
    """Load what a session used last, before its next request comes (admin only): `Prefetched` answers."""

    session: str
    tenant: str = ""


class Record(Message, frozen=True, tag="record"):
    """Send every arrival from now on as `Recorded`, or (not `on`) no more (admin only)."""

    on: bool


# --- sidecar -> engine ----------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="welcome"):
    """Accepted. Comes with two file descriptors by SCM_RIGHTS on its first byte (not for admins).

    They are the arena's memfd, `arena_bytes` long, and an attachment lock: a file that the engine must
    keep open as long as the process can still write into the arena (its flock tells a later sidecar
    that this process lives). `offsets` are int64 bytes, one per slot, relative to the arena's start.
    """

    protocol: int
    epoch: int
    arena_bytes: int
    slot_bytes: int
    offsets: bytes


class Refused(Message, frozen=True, tag="refused"):
    """Not accepted, and why, in one line; the sidecar closes."""

    reason: str


class Enabled(Message, frozen=True, tag="enabled"):
    """To schedulers: tiering is on (`reason` empty) once all ranks passed their self-test, or why not."""

    reason: str


class Found(Message, frozen=True, tag="found"):
    """Answer to `Arrive`: per group the slots of its chunks in order (int32 bytes, -1 absent), pinned.

    Trailing absent chunks are left out. `generations` are uint64 bytes of the same lengths (0 where
    absent). `evicted` counts chain positions past the last hit that were known and evicted. More of the
    chain, its first `coming` positions if all goes well (0: nothing), is told by `Loaded` within `wait_s`.
    """

    request: str
    seq: int
    slots: list[bytes]
    generations: list[bytes]
    evicted: int = 0
    coming: int = 0
    wait_s: float = 0.0


class Loaded(Message, frozen=True, tag="loaded"):
    """What came from cold or from other nodes for a request: chunk numbers[i] of groups[i] is in slots[i],
    pinned (int32 bytes each; generations uint64). `seq` is that of the request's last `Arrive`. `over`:
    nothing more will come.
    """

    request: str
    seq: int
    groups: bytes
    numbers: bytes
    slots: bytes
    generations: bytes
    over: bool


class Leased(Message, frozen=True, tag="leased"):
    """Slots that now belong to the engine's scheduler (or to the worker that asked)."""

    slots: bytes
    generations: bytes


class Evicted(Message, frozen=True, tag="evicted"):
    """Chunks of `group` that are gone; sent before their slots are handed out again."""

    group: int
    keys: list[bytes]


class PoolState(Message, frozen=True, tag="pool_state"):
    """Answer to `Ledger`: slots of the engine's pool by state, for the engine's own metrics."""

    slots: dict[str, int]


class Hinted(Message, frozen=True, tag="hinted"):
    """Answer to `Hint`: how many pools know the session."""

    pools: int


class Prefetched(Message, frozen=True, tag="prefetched"):
    """Answer to `Prefetch`: how many pools know all that the session used last, and how many chunks will come."""

    pools: int
    chunks: int


class Recorded(Message, frozen=True, tag="recorded"):
    """Arrivals since the last one, as lines of a trace (see tieredkv.trace), without any prompt's keys.

    `requests` counts the lines, `lost` what there was no room for. `last` answers `Record` off.
    """

    lines: bytes
    requests: int
    lost: int
    last: bool


class Status(Message, frozen=True, tag="status"):
    """The sidecar's state as JSON bytes (what `tieredkv status --json` prints)."""

    json: bytes


FromEngine = (
    Hello
    | Arrive
    | Lease
    | Publish
    | Return
    | Release
    | Live
    | Reset
    | SelfTest
    | Ledger
    | StatusAsk
    | Stop
    | Hint
    | Prefetch
    | Record
)
FromSidecar = (
    Welcome
    | Refused
    | Enabled
    | Found
    | Loaded
    | Leased
    | Evicted
    | PoolState
    | Status
    | Hinted
    | Prefetched
    | Recorded
)

_encoder = msgspec.msgpack.Encoder()
_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
_sidecar_decoder = msgspec.msgpack.Decoder(FromSidecar)


def encode(message: Message) -> bytes:
    """The whole frame, length included. Raises ProtocolError when it would exceed the bound."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"message of {len(body)} bytes exceeds the bound of {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def decode_from_engine(body: bytes | bytearray | memoryview) -> FromEngine:
    """Decode the body of one frame sent by an engine. Raises ProtocolError."""
    try:
        message: FromEngine = _engine_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message


def decode_from_sidecar(body: bytes | bytearray | memoryview) -> FromSidecar:
    """Decode the body of one frame sent by a sidecar. Raises ProtocolError."""
    try:
        message: FromSidecar = _sidecar_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message


class FrameReader:
    """Cuts a byte stream into frame bodies; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Append received bytes; return the bodies that are now whole. Raises ProtocolError."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > FRAME_BYTES_MAX:
                raise ProtocolError(f"frame of {size} bytes exceeds the bound of {FRAME_BYTES_MAX}")
            end = start + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            bodies.append(bytes(memoryview(self._buffer)[start + _LENGTH.size : end]))
            start = end
        if start:
            del self._buffer[:start]
        return bodies

    @property
    def pending_bytes(self) -> int:
        """Bytes of the unfinished frame received so far."""
        return len(self._buffer)
