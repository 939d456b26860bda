"""The columns of peers' messages as arrays, checked against the pool that they speak of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.brain.moves import JOB_ROWS_MAX
from tieredkv.errors import ProtocolError
from tieredkv.sidecar.cluster.peer_protocol import PLACES_MAX, Changes, Offer, OfferTaken, PoolNews, Used
from tieredkv.sidecar.runs import expanded
from tieredkv.tiers.pool import GENERATION_MAX
from tieredkv.tiers.slots import slot_bytes

_PLACE: Final = np.dtype("<i4")
_WORD: Final = np.dtype("<u8")
_BLOB_ID_END: Final = 1 << 64


@dataclass(frozen=True, slots=True, eq=False)
class ChangeColumns:
    """Of `Changes`: places int64, fingerprints and generations uint64."""

    places: npt.NDArray[np.int64]
    fingerprints: npt.NDArray[np.uint64]
    generations: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class OfferColumns:
    """Of `Offer`, beside its keys and parents."""

    groups: tuple[int, ...]
    positions: tuple[int, ...]
    places: tuple[int, ...]
    generations: tuple[int, ...]


def pack32(numbers: Iterable[int] | npt.NDArray[np.int64]) -> bytes:
    """An int32 column."""
    return np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers), _PLACE).tobytes()


def pack64(numbers: Iterable[int] | npt.NDArray[np.uint64]) -> bytes:
    """A uint64 column."""
    return np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers), _WORD).tobytes()


def blob_ids(news: PoolNews) -> list[int]:
    """The blob of each place. Raises ProtocolError when they are not as many as the places, or impossible."""
    places = news.slots + news.pages
    try:
        ids = expanded(news.ids, min(places, PLACES_MAX))
    except ValueError as error:
        raise ProtocolError(f"PoolNews: {error}") from None
    if len(ids) != places or not ids or min(ids) < 0 or max(ids) >= _BLOB_ID_END:
        raise ProtocolError(f"PoolNews: {len(ids)} blobs for {places} places")
    if news.slot_bytes != slot_bytes(news.body_bytes):
        raise ProtocolError(f"PoolNews: slots of {news.slot_bytes} bytes for bodies of {news.body_bytes}")
    return ids


def changes(message: Changes, places: int) -> ChangeColumns:
    """What the message says about a pool of `places` places. Raises ProtocolError."""
    at = _column32("Changes", message.places, places)
    fingerprints = _column64("Changes", message.fingerprints, len(at))
    generations = _column64("Changes", message.generations, len(at))
    if bool(((fingerprints == 0) != (generations == 0)).any()) or int(generations.max(initial=0)) > GENERATION_MAX:
        raise ProtocolError("Changes: a generation that makes no sense")
    return ChangeColumns(at, fingerprints, generations)


def offer(message: Offer, places: int, groups: int) -> OfferColumns:
    """The rows of an offer out of a pool of `places` places and `groups` groups. Raises ProtocolError."""
    rows = len(message.keys)
    if rows > JOB_ROWS_MAX:
        # It is read in one job.
        raise ProtocolError(f"Offer: {rows} rows, more than {JOB_ROWS_MAX}")
    columns = OfferColumns(
        groups=tuple(_column32("Offer", message.groups, groups).tolist()),
        positions=tuple(_column32("Offer", message.positions, 1 << 31).tolist()),
        places=tuple(_column32("Offer", message.places, places).tolist()),
        generations=tuple(_column64("Offer", message.generations, rows).tolist()),
    )
    lengths = {len(columns.groups), len(columns.positions), len(columns.places), len(message.parents), rows}
    if len(lengths) != 1:
        raise ProtocolError(f"Offer: columns of {sorted(lengths)} rows")
    if not all(0 < generation <= GENERATION_MAX for generation in columns.generations):
        raise ProtocolError("Offer: a generation that makes no sense")
    return columns


def rows_taken(message: OfferTaken, rows: int) -> frozenset[int]:
    """The rows of an offer of `rows` rows that were stored. Raises ProtocolError."""
    return frozenset(_column32("OfferTaken", message.rows, rows).tolist())


def groups_used(message: Used, groups: int) -> tuple[int, ...]:
    """The group of each key. Raises ProtocolError."""
    column = _column32("Used", message.groups, groups)
    if len(column) != len(message.keys):
        raise ProtocolError(f"Used: {len(column)} groups of {len(message.keys)} keys")
    return tuple(column.tolist())


def _column32(name: str, column: bytes, end: int) -> npt.NDArray[np.int64]:
    """Numbers from 0 to `end` - 1."""
    if len(column) % _PLACE.itemsize:
        raise ProtocolError(f"{name}: a column of {len(column)} bytes")
    numbers = np.frombuffer(column, _PLACE).astype(np.int64)
    if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < end):
        raise ProtocolError(f"{name}: a number outside of 0 to {end - 1}")
    return numbers


def _column64(name: str, column: bytes, rows: int) -> npt.NDArray[np.uint64]:
    if len(column) != rows * _WORD.itemsize:
        raise ProtocolError(f"{name}: a column of {len(column)} bytes for {rows} rows")
    return np.frombuffer(column, _WORD).astype(np.uint64)
