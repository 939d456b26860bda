"""pool.json: written, read back, and refused when it is something else."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.sidecar.record import EpochPool, ProcessName, SidecarRecord, read_record, write_record
from tieredkv.tiers.pool import PoolRecord
from tieredkv.types import Geometry


def _record(offsets: list[int], ids: list[int]) -> SidecarRecord:
    pool = PoolRecord(b"n" * 16, {"model": "m"}, Geometry(100, 16, (1, 2)), tuple(ids), np.array(offsets, np.int64))
    return SidecarRecord(ProcessName(12, 345), (EpochPool(2**62, pool),))


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**64 - 1)), min_size=1, max_size=50))
def test_any_layout_comes_back(tmp_path_factory: pytest.TempPathFactory, slots: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("record") / "pool.json"
    record = _record([offset * 8 for offset, _ in slots], [blob_id for _, blob_id in slots])
    write_record(path, record)
    again = read_record(path)
    assert again is not None
    assert again.vineyardd == record.vineyardd
    (pool,), (wrote,) = again.pools, record.pools
    assert pool.epoch == wrote.epoch
    assert pool.record.offsets.tolist() == wrote.record.offsets.tolist()
    assert pool.record.blob_ids == wrote.record.blob_ids
    assert pool.record.geometry == wrote.record.geometry
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_even_pool_takes_no_more_room_with_more_slots(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    write_record(path, _record([64 + 128 * slot for slot in range(100_000)], list(range(2**63, 2**63 + 100_000))))
    assert path.stat().st_size < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["pool.json"]


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none") is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"vineyardd": {"pid": "x", "start_ticks": 0}},
        {"extra": 1},
        {"namespace": "zz"},
        {"namespace": "00"},
        {"offsets": [[0, 8, 10**12]]},
        {"offsets": [[0, 8, -1]]},
        {"offsets": [[-8, 8, 2]]},
        {"offsets": [[3, 8, 2]]},
        {"offsets": []},
        {"ids": [[1, 1, 5]]},
        {"group_strides": []},
        {"body_bytes": 0},
    ],
)
def test_nonsense_is_a_value_error(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "pool.json"
    write_record(path, _record([64, 192], [5, 6]))
    content = json.loads(path.read_text())
    pool = content["pools"][0]
    (pool if set(change) & set(pool) else content).update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"."):
        read_record(path)
