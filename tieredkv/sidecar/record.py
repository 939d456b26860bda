"""pool.json: what a later sidecar must know to adopt the pools of a crashed one.

Written whole and renamed, mode 0600. The slots' contents are described by their own headers; this file
says only which vineyardd holds them and where they lie.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from tieredkv.sidecar.runs import Runs, expanded, runs
from tieredkv.tiers.pool import NAMESPACE_BYTES, PoolRecord
from tieredkv.types import Geometry

FORMAT: Final = 1
_RECORD_BYTES_MAX: Final = 64 * 1024 * 1024
_SLOTS_MAX: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class EpochPool:
    """A pool and the random number that names this life of it to engines and other nodes."""

    epoch: int
    record: PoolRecord
    resets: int = 0
    """How often its chunks were forgotten because of new weights."""


@dataclass(frozen=True, slots=True)
class SidecarRecord:
    """All pools inside one vineyardd, which serves other nodes at `rpc_port` (None: it does not)."""

    vineyardd: ProcessName
    pools: tuple[EpochPool, ...]
    rpc_port: int | None = None


class _PoolJson(msgspec.Struct, forbid_unknown_fields=True):
    epoch: int
    namespace: str
    description: dict[str, str]
    body_bytes: int
    chain_tokens: int
    group_strides: tuple[int, ...]
    offsets: list[tuple[int, int, int]]
    ids: list[tuple[int, int, int]]
    pages: int = 0
    resets: int = 0


class _ProcessJson(msgspec.Struct, forbid_unknown_fields=True):
    pid: int
    start_ticks: int


class _RecordJson(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    vineyardd: _ProcessJson
    pools: list[_PoolJson]
    rpc_port: int | None = None


def write_record(path: Path, record: SidecarRecord) -> None:
    """Replace the file. Raises OSError."""
    content = msgspec.to_builtins(
        _RecordJson(
            FORMAT,
            _ProcessJson(record.vineyardd.pid, record.vineyardd.start_ticks),
            [_pool_json(pool) for pool in record.pools],
            record.rpc_port,
        )
    )
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(content, file)
    new.replace(path)


def read_record(path: Path) -> SidecarRecord | None:
    """Read the file; None when there is none. Raises ValueError when it is not what we write."""
    try:
        if path.stat().st_size > _RECORD_BYTES_MAX:
            raise ValueError(f"{path}: too large")
        content = msgspec.json.decode(path.read_bytes(), type=_RecordJson)
        if content.format != FORMAT:
            raise ValueError(f"{path}: format {content.format} instead of {FORMAT}")
        pools = tuple(_pool(pool) for pool in content.pools)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise ValueError(f"{path}: {error}") from None
    return SidecarRecord(ProcessName(content.vineyardd.pid, content.vineyardd.start_ticks), pools, content.rpc_port)


def _pool_json(pool: EpochPool) -> _PoolJson:
    record, geometry = pool.record, pool.record.geometry
    return _PoolJson(
        epoch=pool.epoch,
        namespace=record.namespace.hex(),
        description=dict(record.description),
        body_bytes=geometry.body_bytes,
        chain_tokens=geometry.chain_tokens,
        group_strides=geometry.group_strides,
        offsets=_offset_runs(record.offsets.tobytes()),
        ids=_id_runs(record.blob_ids),
        pages=record.pages,
        resets=pool.resets,
    )


# A reset writes the file while engines wait for slots, and these do not change with it.
@lru_cache(maxsize=16)
def _offset_runs(offsets: bytes) -> Runs:
    return runs(np.frombuffer(offsets, np.int64).tolist())


@lru_cache(maxsize=16)
def _id_runs(blob_ids: tuple[int, ...]) -> Runs:
    return runs(blob_ids)


def _pool(content: _PoolJson) -> EpochPool:
    namespace = bytes.fromhex(content.namespace)
    offsets, ids = expanded(content.offsets, _SLOTS_MAX), expanded(content.ids, _SLOTS_MAX)
    plausible = (
        len(namespace) == NAMESPACE_BYTES
        and 0 < len(offsets) == len(ids)
        and min(offsets) >= 0
        and max(offsets) < 1 << 62
        and not any(offset % 8 for offset in offsets)
        and content.body_bytes > 0
        and content.chain_tokens > 0
        and 0 <= content.pages < len(offsets)
        and content.resets >= 0
        and content.group_strides
        and min(content.group_strides) > 0
    )
    if not plausible:
        raise ValueError(f"the pool of namespace {content.namespace} makes no sense")
    geometry = Geometry(content.body_bytes, content.chain_tokens, content.group_strides)
    record = PoolRecord(
        namespace, content.description, geometry, tuple(ids), np.array(offsets, np.int64), content.pages
    )
    return EpochPool(content.epoch, record, content.resets)
