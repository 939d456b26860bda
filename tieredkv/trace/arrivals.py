"""The reference stream, written down: one JSON line per arrival, in the format of Mooncake's open traces.

    {"timestamp": ms since the first arrival, "input_length": tokens, "output_length": 0,
     "hash_ids": [...], "block_tokens": tokens between neighbouring positions,
     "session_id": "...", "tenant": "...", "hints": {...}}

Equal ids mean equal prefixes. The output's length is not known at an arrival: 0. Session and tenant are
pseudonyms and left out where none was named; of the hints only known names are there. The first line says
all this for itself in a field `note`, which readers of the format leave alone: a file that travels
without its documentation stays one valid file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Protocol

import msgspec

from tieredkv.trace.pseudonyms import IDS_MAX, Pseudonyms
from tieredkv.types import EngineId, Key

Hints = Mapping[str, str | int | float | bool]

NOTE: Final = (
    "recorded by tieredkv: hash_ids are numbers in the order of first sight, session_id and tenant are hashes "
    "under a key that was never stored; no token and no text is in this file"
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it came: an element of the reference stream."""

    now_s: float
    engine: EngineId
    chain: Sequence[Key]
    tokens: int
    tenant: str
    hints: Hints


class AccessRecord(Protocol):
    """Where the reference stream is written down. Must neither wait for anybody nor raise."""

    def arrived(self, arrival: Arrival) -> None:
        """`arrival.hints` holds known hints only, each of its kind."""
        ...


class ArrivalLines:
    """Turns arrivals into the lines of one recording."""

    def __init__(self, *, ids_max: int = IDS_MAX) -> None:
        self._pseudonyms = Pseudonyms(ids_max)
        self._encode = msgspec.json.Encoder().encode
        self._start_s: float | None = None

    def line(self, arrival: Arrival, chain_tokens: int) -> bytes:
        """The line of an arrival whose neighbouring positions are `chain_tokens` apart, end included.

        Times must not go back.
        """
        first = self._start_s is None
        if self._start_s is None:
            self._start_s = arrival.now_s
        ids = self._pseudonyms.chain(arrival.chain)
        if min(ids, default=0) < 0:
            ids = list(takewhile(lambda number: number >= 0, ids))
        line: dict[str, object] = {
            "timestamp": round((arrival.now_s - self._start_s) * 1000),
            "input_length": arrival.tokens,
            "output_length": 0,
            "hash_ids": ids,
            "block_tokens": chain_tokens,
        }
        hints = dict(arrival.hints)
        session = hints.pop("session", "")
        if session:
            line["session_id"] = self._pseudonyms.name(b"session", f"{len(arrival.tenant)}:{arrival.tenant}{session}")
        if arrival.tenant:
            line["tenant"] = self._pseudonyms.name(b"tenant", arrival.tenant)
        if hints:
            line["hints"] = hints
        if first:
            line["note"] = NOTE
        return self._encode(line) + b"\n"
