"""Every call to a manager that decides something, with its outcome, so that a replay can be compared.

One JSON line per call, in order; `call` names it. Keys, engines, requests, sessions and tenants are
pseudonyms (numbers for keys: Pseudonyms.NO_KEY for the empty one, smaller for what cannot be a key). Times
are seconds since the recording began, exactly as the manager saw them. Outcomes are counts, keys that
left, and a digest of slots and generations.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from tieredkv.trace.pseudonyms import NO_KEY
from tieredkv.types import Key

NOTE: Final = (
    "recorded by tieredkv: keys are numbers in the order of first sight, other names are hashes under a key that was "
    "never stored; no token and no text is in this file"
)
_DIGEST_BYTES: Final = 8
_NUMBER_BYTES: Final = 16
_ODD_BYTES: Final = 8


def _tag(name: str) -> str:
    return name.removesuffix("Call").lower()


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag=_tag, omit_defaults=True):
    """Base of all calls: which manager (they are numbered as they are made), and when."""

    pool: int
    now_s: float


class OpenCall(Call, frozen=True):
    """A manager was made. `policy` is its section of the configuration as JSON."""

    version: str
    slots: int
    groups: int
    policy: dict[str, Any]
    engine_share_max: float
    ghosts_max: int
    next_generation: int
    note: str


class PopulateCall(Call, frozen=True):
    first: int
    count: int


class AdoptCall(Call, frozen=True):
    """Rows of slot, generation, group, key, parent, position."""

    chunks: list[tuple[int, int, int, int, int, int]]


class QuarantineCall(Call, frozen=True):
    slots: list[int]
    generations: list[int]


class SettleCall(Call, frozen=True):
    """The quarantine ended."""


class AttachCall(Call, frozen=True):
    engine: str


class DetachCall(Call, frozen=True):
    engine: str


class ResumeCall(Call, frozen=True):
    engine: str
    slots: list[int]
    digest: str


class ArriveCall(Call, frozen=True):
    """`found` counts the chunks present, per group."""

    engine: str
    request: str
    chain: list[int]
    strides: tuple[int, ...]
    tokens: int
    found: list[int]
    digest: str
    tenant: str = ""
    hints: dict[str, str | int | float | bool] = {}
    again: bool = False
    evicted: int = 0


class ReleaseCall(Call, frozen=True):
    engine: str
    request: str


class KeepCall(Call, frozen=True):
    """Only these requests still need their pins."""

    engine: str
    live: list[str]


class HintCall(Call, frozen=True):
    session: str
    hints: dict[str, str | int | float | bool]
    known: bool
    tenant: str = ""


class LeaseCall(Call, frozen=True):
    """`evicted` holds the keys that left, by group."""

    engine: str
    count: int
    slots: int
    digest: str
    evicted: dict[int, list[int]] = {}


class PublishCall(Call, frozen=True):
    """`parents` is left out where each key follows the one before: then `parent` is the first one's."""

    engine: str
    group: int
    keys: list[int]
    positions: list[int]
    slots: list[int]
    rows: int
    digest: str
    parent: int = NO_KEY
    parents: list[int] | None = None


class ReturnCall(Call, frozen=True):
    engine: str
    slots: list[int]


class ResetCall(Call, frozen=True):
    digest: str
    evicted: dict[int, list[int]] = {}


class StepCall(Call, frozen=True):
    idle: bool = True


AnyCall = (
    OpenCall
    | PopulateCall
    | AdoptCall
    | QuarantineCall
    | SettleCall
    | AttachCall
    | DetachCall
    | ResumeCall
    | ArriveCall
    | ReleaseCall
    | KeepCall
    | HintCall
    | LeaseCall
    | PublishCall
    | ReturnCall
    | ResetCall
    | StepCall
)

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(AnyCall)


def call_line(call: Call) -> bytes:
    """The line of a call, end included."""
    return _encoder.encode(call) + b"\n"


def read_call(line: bytes) -> AnyCall:
    """The call of a line. Raises msgspec.MsgspecError."""
    call: AnyCall = _decoder.decode(line)
    return call


def synthetic_key(number: int) -> Key:
    """The key that stands for a number in a replay; its own length says whether it can be one."""
    if number >= 0:
        return Key(number.to_bytes(_NUMBER_BYTES, "big"))
    return Key(b"") if number == NO_KEY else Key((-number).to_bytes(_ODD_BYTES, "big"))


def digest(*columns: "npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.uint64]") -> str:
    """A digest of arrays of whole numbers; their lengths count."""
    hashed = blake2b(digest_size=_DIGEST_BYTES)
    for column in columns:
        hashed.update(len(column).to_bytes(8, "little"))
        hashed.update(column.astype("<u8").tobytes())
    return hashed.hexdigest()


def follow(parents: Sequence[Key], keys: Sequence[Key]) -> bool:
    """Whether each key's parent is the key before it."""
    return list(parents[1:]) == list(keys[:-1])
