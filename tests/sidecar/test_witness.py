"""The shipped Vineyard client as an independent witness: it finds our blobs and reads our bytes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.record import read_record
from tieredkv.tiers.slots import HEADER_BYTES, TRAILER_BYTES

from .engine import BODY_BYTES, Engine, body_of, chain
from .process import SidecarProcess

_WITNESS = """
import json, sys
import numpy as np
import vineyard
client = vineyard.connect(sys.argv[1])
ids = [vineyard.ObjectID(int(text)) for text in json.loads(sys.argv[2])]
blobs = [client.get_blob(blob_id, unsafe=True) for blob_id in ids]
print(json.dumps([np.frombuffer(memoryview(blob), np.uint8).tobytes().hex() for blob in blobs]))
"""


def test_the_shipped_client_finds_the_blobs_by_id_and_reads_the_bytes(sidecar: SidecarProcess) -> None:
    pytest.importorskip("vineyard.bdist")
    engine = Engine(sidecar.socket)
    keys = chain(1, 8)
    engine.store(keys)
    found = engine.find(keys)
    slots = np.frombuffer(found.slots[0], "<i4").tolist()
    generations = np.frombuffer(found.generations[0], "<u8").tolist()
    record = read_record(RuntimeDirectory(sidecar.directory).pool_record)
    assert record is not None
    ids = [str(record.pools[0].record.blob_ids[slot]) for slot in slots]
    socket = str(sidecar.directory / "vineyard.sock")
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITNESS, socket, json.dumps(ids)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    blobs = [bytes.fromhex(text) for text in json.loads(told.stdout.splitlines()[-1])]
    assert len(blobs) == len(keys)
    for blob, key, generation in zip(blobs, keys, generations, strict=True):
        assert len(blob) == HEADER_BYTES + BODY_BYTES + TRAILER_BYTES
        assert blob[HEADER_BYTES : HEADER_BYTES + BODY_BYTES] == bytes(body_of(key))
        assert int.from_bytes(blob[8:16], "little") == generation
        assert int.from_bytes(blob[-TRAILER_BYTES : -TRAILER_BYTES + 8], "little") == generation
        assert key in blob[:HEADER_BYTES]
