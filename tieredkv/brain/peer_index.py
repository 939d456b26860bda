"""What the other nodes hold, as they told: fingerprint of (key, group) -> who holds it, and where.

A fingerprint may be held in several places, of one peer or of several: those places are a list, threaded
through two arrays, whose first the table knows. An answer can be stale, or another chunk's (64 bits): who
reads there proves what he reads. Nothing that peers say can make more of the index than their places.

Places of all peers have one numbering, in extents of `EXTENT_PLACES`, which come and go with the peers. A
forgotten peer is forgotten at once; its places are taken out of their lists bit by bit, by later calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.brain.fingerprint_table import Fingerprints, FingerprintTable, Rows, mixed
from tieredkv.brain.moves import PeerId
from tieredkv.types import KEY_BYTES_MAX, Key

Peers = npt.NDArray[np.int32]
Generations = npt.NDArray[np.uint64]

EXTENT_PLACES: Final = 4096
HOLDERS_TRIED_MAX: Final = 64
"""So many holders are looked at for one that is usable."""

_NOBODY: Final = -1
_NO_PLACE: Final = 1 << 62
_WORD_BYTES: Final = 8
# Odd, and otherwise arbitrary; equal on all nodes, like everything that makes a fingerprint.
_FACTORS: Final = mixed(np.arange(1, KEY_BYTES_MAX // _WORD_BYTES + 3, dtype=np.uint64)) | np.uint64(1)


def fingerprints(keys: Sequence[Key], group: int) -> Fingerprints:
    """64 bits for each key in `group`; never 0. The same on every node, and part of the peers' protocol."""
    if not keys:
        return np.zeros(0, np.uint64)
    length = len(keys[0])
    if length % _WORD_BYTES == 0 and len(set(map(len, keys))) == 1:
        lengths = np.array([length], np.uint64)
        words = np.frombuffer(b"".join(keys), "<u8").reshape(len(keys), length // _WORD_BYTES)
    else:
        lengths = np.fromiter(map(len, keys), np.uint64, len(keys))
        padded = b"".join([key.ljust(KEY_BYTES_MAX, b"\0") for key in keys])
        words = np.frombuffer(padded, "<u8").reshape(len(keys), KEY_BYTES_MAX // _WORD_BYTES)
    # Of an array of one: a number of numpy's would warn that it wraps.
    sums: Fingerprints = words @ _FACTORS[: words.shape[1]]
    sums += lengths * _FACTORS[-1] + np.array([group + 1], np.uint64) * _FACTORS[-2]
    result = mixed(sums)
    result[result == 0] = 1
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Who holds what was asked for: peer (-1 nobody usable), its place, and the tenancy of that place."""

    peers: Peers
    places: Rows
    generations: Generations


class PeerIndex:
    """Not thread safe. Every call takes time by what it is given, not by what there is."""

    def __init__(self, seed: int) -> None:
        """`seed`: 64 bits that no peer knows."""
        self._table = FingerprintTable(seed)
        self._extents: dict[PeerId, Rows] = {}
        self._free: list[int] = []
        self._leaving: list[int] = []
        # By extent.
        self._owners: Peers = np.zeros(0, np.int32)
        self._firsts: Rows = np.zeros(0, np.int64)
        # By place in the common numbering. Neighbours in a list are one more than their number, 0 none.
        self._fingerprints: Fingerprints = np.zeros(0, np.uint64)
        self._generations: Generations = np.zeros(0, np.uint64)
        self._next: Peers = np.zeros(0, np.int32)
        self._previous: Peers = np.zeros(0, np.int32)
        self._gone: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._places: dict[PeerId, int] = {}
        self.entries = 0
        """Places that hold something, those of forgotten peers included until they are taken out."""

    @property
    def peers(self) -> frozenset[PeerId]:
        """Who is followed."""
        return frozenset(self._places)

    @property
    def size_bytes(self) -> int:
        """Memory of the index."""
        arrays = (self._fingerprints, self._generations, self._next, self._previous, self._gone, self._firsts)
        return self._table.size_bytes + sum(array.nbytes for array in arrays) + self._owners.nbytes

    def follow(self, peer: PeerId, places: int) -> None:
        """A peer with so many places, all empty as far as is known. It must not be followed already."""
        assert peer >= 0
        assert places >= 0
        assert peer not in self._places
        count = -(-places // EXTENT_PLACES)
        while len(self._free) < count:
            if self._leaving:
                self.tidy()
            else:
                self._grow(max(count - len(self._free), len(self._owners) // 8))
        extents = np.array([self._free.pop() for _ in range(count)], np.int64)
        self._owners[extents] = peer
        self._firsts[extents] = np.arange(count) * EXTENT_PLACES
        self._extents[peer] = extents
        self._places[peer] = places

    def forget(self, peer: PeerId) -> None:
        """Nothing of this peer is found from here on. It may be followed again at once."""
        extents = self._extents.pop(peer)
        del self._places[peer]
        self._owners[extents] = _NOBODY
        self._leaving += extents.tolist()

    def tidy(self) -> bool:
        """Take an extent of a forgotten peer out of the lists; False if there was none."""
        if not self._leaving:
            return False
        extent = self._leaving.pop()
        own = np.arange(extent * EXTENT_PLACES, (extent + 1) * EXTENT_PLACES)
        self._unlink(own[self._fingerprints[own] != 0])
        self._generations[own] = 0
        self._free.append(extent)
        return True

    def apply(self, peer: PeerId, places: Rows, fingerprints: Fingerprints, generations: Generations) -> None:
        """These places hold that from now on; fingerprint 0 is nothing. Of one place twice the last counts."""
        assert len(places) == len(fingerprints) == len(generations)
        self.tidy()
        if not len(places):
            return
        assert int(places.min()) >= 0
        assert int(places.max()) < self._places[peer]
        rows = _last_of_each(places)
        places, fingerprints, generations = places[rows], fingerprints[rows], generations[rows]
        own: Rows = self._extents[peer][places // EXTENT_PLACES] * EXTENT_PLACES + places % EXTENT_PLACES
        before = self._fingerprints.take(own)
        changed = before != fingerprints
        self._unlink(own[changed & (before != 0)])
        added = changed & (fingerprints != 0)
        self._link(own[added], fingerprints[added])
        self._generations[own] = np.where(fingerprints != 0, generations, np.uint64(0))

    def find(self, fingerprints: Fingerprints, usable: npt.NDArray[np.bool_], first_places: Rows | None = None) -> Held:
        """A holder of each fingerprint among the peers that are `usable` (by PeerId; false past its end).

        `first_places`, as long as `usable`: of each peer only the places from that one on count.
        """
        places = self._table.values(self._table.locate(fingerprints))
        # By peer, and the last is nobody's, which is where -1 looks: places from where on are welcome.
        firsts: Rows = np.full(max([len(usable) - 1, *self._places]) + 2, _NO_PLACE)
        firsts[: len(usable)] = np.where(usable, 0 if first_places is None else first_places, _NO_PLACE)
        rows = np.flatnonzero(places >= 0)
        for _ in range(HOLDERS_TRIED_MAX):
            extents = places[rows] // EXTENT_PLACES
            theirs = self._firsts.take(extents) + places[rows] % EXTENT_PLACES
            rows = rows[theirs < firsts.take(self._owners.take(extents))]
            if not len(rows):
                break
            places[rows] = self._next[places[rows]].astype(np.int64) - 1
            rows = rows[places[rows] >= 0]
        places[rows] = -1
        absent = places < 0
        if absent.all():
            return _nothing(len(places))
        extents = places // EXTENT_PLACES
        peers = self._owners.take(extents)
        theirs = self._firsts.take(extents) + places % EXTENT_PLACES
        generations = self._generations.take(places)
        peers[absent] = _NOBODY
        theirs[absent] = -1
        generations[absent] = 0
        return Held(peers, theirs, generations)

    def check(self) -> None:
        """Assert that lists, table and places agree. Takes as long as the index is large."""
        self._table.check()
        held = np.flatnonzero(self._fingerprints)
        assert len(held) == self.entries
        assert not self._gone.any()
        following, previous = self._next[held].astype(np.int64) - 1, self._previous[held].astype(np.int64) - 1
        empty = self._fingerprints == 0
        assert not self._next[empty].any()
        assert not self._previous[empty].any()
        assert not self._generations[empty].any()
        for there, back in ((following, self._previous), (previous, self._next)):
            linked = there >= 0
            assert (back[there[linked]] - 1 == held[linked]).all(), "neighbours agree"
            assert (self._fingerprints[there[linked]] == self._fingerprints[held[linked]]).all()
        known, firsts = self._table.items()
        assert len(np.unique(known)) == len(known), "one list for each fingerprint"
        assert (self._fingerprints[firsts] == known).all()
        assert set(held[previous < 0].tolist()) == set(firsts.tolist()), "every list is known by its first"
        owned = [*self._free, *self._leaving, *(int(extent) for own in self._extents.values() for extent in own)]
        assert sorted(owned) == list(range(len(self._owners)))
        for peer, extents in self._extents.items():
            assert (self._owners[extents] == peer).all()

    def _unlink(self, own: Rows) -> None:
        """Take places, which are all different and hold something, out of their lists."""
        if not len(own):
            return
        self._gone[own] = True
        for neighbours in (self._next, self._previous):
            # Past neighbours that leave as well; the distance doubles with every round.
            while True:
                there = neighbours[own].astype(np.int64) - 1
                passed = (there >= 0) & self._gone[there]
                if not passed.any():
                    break
                neighbours[own[passed]] = neighbours[there[passed]]
        following, previous = self._next[own], self._previous[own]
        self._next[previous[previous > 0] - 1] = following[previous > 0]
        self._previous[following[following > 0] - 1] = previous[following > 0]
        first = previous == 0
        cells = self._table.locate(self._fingerprints[own[first]])
        self._table.put(cells, following[first].astype(np.int64) - 1)
        self._next[own] = 0
        self._previous[own] = 0
        self._fingerprints[own] = 0
        self._gone[own] = False
        self.entries -= len(own)

    def _link(self, own: Rows, fingerprints: Fingerprints) -> None:
        """Put empty places at the beginning of the lists of their fingerprints."""
        if not len(own):
            return
        self._fingerprints[own] = fingerprints
        order = np.argsort(fingerprints, kind="stable")
        own, fingerprints = own[order], fingerprints[order]
        begins = np.append(True, fingerprints[1:] != fingerprints[:-1])
        cells = self._table.reserve(fingerprints[begins])
        heads = self._table.values(cells)
        # Within the batch each precedes the next; the last of each fingerprint precedes what there was.
        inner = np.flatnonzero(~begins)
        self._next[own[inner - 1]] = own[inner] + 1
        self._previous[own[inner]] = own[inner - 1] + 1
        lasts = own[np.append(begins[1:], True)]
        self._next[lasts] = heads + 1
        self._previous[heads[heads >= 0]] = lasts[heads >= 0] + 1
        self._table.put(cells, own[begins])
        self.entries += len(own)

    def _grow(self, extents: int) -> None:
        """More extents. In place: large memory is moved by its page table, not copied."""
        before = len(self._owners)
        after = before + extents
        for by_extent in (self._owners, self._firsts):
            by_extent.resize(after, refcheck=False)
        for by_place in (self._fingerprints, self._generations, self._next, self._previous, self._gone):
            by_place.resize(after * EXTENT_PLACES, refcheck=False)
        self._owners[before:] = _NOBODY
        self._free += range(after - 1, before - 1, -1)


def _last_of_each(places: Rows) -> Rows:
    """Rows of `places` without those of which the same place comes again later."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    rows: Rows = order[np.append(ordered[1:] != ordered[:-1], True)]
    return rows


def _nothing(count: int) -> Held:
    return Held(np.full(count, _NOBODY, np.int32), np.full(count, -1), np.zeros(count, np.uint64))
