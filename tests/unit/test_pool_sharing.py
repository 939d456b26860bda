"""What a pool knows of the pools of other nodes, when some of those cannot be asked."""

import msgspec
import numpy as np
import pytest

from tieredkv.brain.moves import PeerId
from tieredkv.brain.peer_index import fingerprints
from tieredkv.errors import ProtocolError
from tieredkv.sidecar.cluster.columns import pack32, pack64
from tieredkv.sidecar.cluster.peer_protocol import Changes, PoolNews
from tieredkv.sidecar.cluster.sharing import PoolSharing
from tieredkv.sidecar.record import EpochPool
from tieredkv.tiers.pool import PoolRecord
from tieredkv.types import Geometry, Key

NAMESPACE = b"namespace-of-16b"
GEOMETRY = Geometry(body_bytes=4096, chain_tokens=16, group_strides=(1,))
KEY = Key(b"k" * 32)
SLOTS, PAGES = 4, 4
NEWS = PoolNews(NAMESPACE, {}, 4096, 16, (1,), 7, SLOTS, PAGES, 4416, [(1, 1, SLOTS + PAGES)])


def sharing(usable: set[int]) -> PoolSharing:
    record = PoolRecord(NAMESPACE, {}, GEOMETRY, tuple(range(8)), np.arange(8) * 4416, PAGES)
    return PoolSharing(EpochPool(1, record), "here", lambda peer: peer in usable, lambda: PAGES)


def tell(of: PoolSharing, peer: int, place: int) -> None:
    """A node holds the chunk in that place."""
    marks = pack64(fingerprints([KEY], 0).tolist())
    of.change(PeerId(peer), Changes(NAMESPACE, NEWS.epoch, 0, True, pack32([place]), marks, pack64([1])))


def test_a_node_that_cannot_be_asked_may_have_a_higher_number_than_all_that_can() -> None:
    usable = {0, 1}
    known = sharing(usable)
    for peer in (0, 1):
        known.join(PeerId(peer), f"node {peer}", NEWS)
    tell(known, 1, SLOTS)
    assert known.keeps(0, [KEY]) == [True]
    usable.remove(1)
    assert known.keeps(0, [KEY]) == [False]
    assert known.find(0, [KEY]) == [None]


def test_only_pages_keep_a_chunk() -> None:
    known = sharing({0})
    known.join(PeerId(0), "node 0", NEWS)
    tell(known, 0, SLOTS - 1)
    assert known.keeps(0, [KEY]) == [False]
    assert known.find(0, [KEY]) != [None]


@pytest.mark.parametrize("different", [{"slots": 1, "pages": 7}, {"group_strides": (1, 1)}], ids=str)
def test_a_pool_does_not_become_another_one_while_it_is_told_of(different: dict[str, object]) -> None:
    known = sharing({0})
    known.join(PeerId(0), "node 0", NEWS)
    grown = msgspec.structs.replace(NEWS, resets=1)
    known.renew(PeerId(0), grown)
    with pytest.raises(ProtocolError, match="another pool"):
        known.renew(PeerId(0), msgspec.structs.replace(NEWS, **different))
    tell(known, 0, SLOTS + PAGES - 1)
    assert known.knows(PeerId(0)) == grown
