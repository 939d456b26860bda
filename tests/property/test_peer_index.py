"""The index of what peers hold, against a dictionary for each peer."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredkv.brain.fingerprint_table import SEGMENT_CELLS, FingerprintTable
from tieredkv.brain.moves import PeerId
from tieredkv.brain.peer_index import EXTENT_PLACES, HOLDERS_TRIED_MAX, PeerIndex, fingerprints
from tieredkv.types import Key

SEED = 0x0123_4567_89AB_CDEF
PEERS = 3
PLACES = 6
# Few, so that the same one is held in many places; the extremes among them.
FINGERPRINTS = (1, 2, 3, 2**63, 2**64 - 1)
GOLDEN = (0x88AC59DFACFFBC4C, 0x9009EC1CACEC911F)


class Model:
    """What each peer said last of each place."""

    def __init__(self) -> None:
        self.held: dict[PeerId, dict[int, tuple[int, int]]] = {}

    def apply(self, peer: PeerId, rows: list[tuple[int, int, int]]) -> None:
        for place, fingerprint, generation in rows:
            self.held[peer].pop(place, None)
            if fingerprint:
                self.held[peer][place] = (fingerprint, generation)

    def holders(self, fingerprint: int, usable: list[bool], first_place: int) -> set[tuple[int, int, int]]:
        return {
            (peer, place, generation)
            for peer, places in self.held.items()
            for place, (held, generation) in places.items()
            if held == fingerprint and usable[peer] and place >= first_place
        }


def compare(index: PeerIndex, model: Model, asked: list[int], usable: list[bool], first_place: int = 0) -> None:
    """Every answer is one of the model's, and there is one where the model has some."""
    firsts = np.full(PEERS, first_place) if first_place else None
    found = index.find(np.array(asked, np.uint64), np.array(usable), firsts)
    rows = zip(asked, found.peers.tolist(), found.places.tolist(), found.generations.tolist(), strict=True)
    for fingerprint, *answer in rows:
        holders = model.holders(fingerprint, usable, first_place)
        if holders:
            assert tuple(answer) in holders
        else:
            assert answer == [-1, -1, 0]


def change(index: PeerIndex, model: Model, peer: PeerId, rows: list[tuple[int, int, int]]) -> None:
    """Apply to both."""
    columns = np.array(rows, object).reshape(-1, 3)
    index.apply(peer, columns[:, 0].astype(np.int64), columns[:, 1].astype(np.uint64), columns[:, 2].astype(np.uint64))
    model.apply(peer, rows)


peers = st.integers(0, PEERS - 1).map(PeerId)
row = st.tuples(st.integers(0, PLACES - 1), st.sampled_from((0, *FINGERPRINTS)), st.integers(1, 9))
operation = st.one_of(
    st.tuples(st.just("apply"), peers, st.lists(row, max_size=10)),
    st.tuples(st.just("forget"), peers, st.just([])),
    st.tuples(st.just("tidy"), peers, st.just([])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(operation, max_size=30), st.lists(st.booleans(), min_size=PEERS, max_size=PEERS))
def test_as_a_dictionary(operations: list[tuple[str, PeerId, list[tuple[int, int, int]]]], usable: list[bool]) -> None:
    index, model = PeerIndex(SEED), Model()
    for kind, peer, rows in operations:
        match kind:
            case "apply":
                if peer not in model.held:
                    index.follow(peer, PLACES)
                    model.held[peer] = {}
                change(index, model, peer, rows)
            case "forget" if peer in model.held:
                index.forget(peer)
                del model.held[peer]
            case _:
                index.tidy()
        assert index.peers == model.held.keys()
        compare(index, model, [*FINGERPRINTS, 77], usable)
        compare(index, model, [*FINGERPRINTS, 77], [True] * PEERS)
        compare(index, model, [*FINGERPRINTS, 77], usable, PLACES // 2)
        index.check()


@pytest.mark.parametrize("seed", [1, 2])
def test_many_places_come_go_and_come_again(seed: int) -> None:
    source = np.random.default_rng(seed)
    places = 120_000
    index = PeerIndex(SEED + seed)
    names = source.integers(1, 2**64, 400_000, np.uint64)
    told = np.zeros((PEERS, places), np.uint64)
    generations = np.zeros((PEERS, places), np.uint64)
    for number in range(PEERS):
        index.follow(PeerId(number), places)
    for number in range(260):
        peer = number % PEERS
        if number in {100, 180}:
            index.forget(PeerId(peer))
            index.follow(PeerId(peer), places)
            told[peer] = generations[peer] = 0
        rows = source.integers(0, places, 4096)
        fingerprints_of_rows = source.choice(names, len(rows))
        fingerprints_of_rows[source.random(len(rows)) < (0.6 if 90 < number < 150 else 0.1)] = 0
        tenancies = source.integers(1, 2**62, len(rows), np.uint64)
        index.apply(PeerId(peer), rows, fingerprints_of_rows, tenancies)
        told[peer, rows], generations[peer, rows] = fingerprints_of_rows, tenancies
        if number % 13 == 0:
            _compare_all(index, told, generations, names)
    index.check()


def _compare_all(
    index: PeerIndex,
    told: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
    generations: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
    names: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> None:
    found = index.find(names, np.ones(PEERS, np.bool_))
    present = found.peers >= 0
    assert (told[found.peers[present], found.places[present]] == names[present]).all()
    assert (generations[found.peers[present], found.places[present]] == found.generations[present]).all()
    assert (np.isin(names, told) == present).all()


def test_removals_do_not_fill_the_table() -> None:
    source = np.random.default_rng(3)
    index = PeerIndex(SEED)
    index.follow(PeerId(0), EXTENT_PLACES)
    places = np.arange(EXTENT_PLACES)
    for _ in range(20):
        index.apply(PeerId(0), places, source.integers(1, 2**64, len(places), np.uint64), places.astype(np.uint64))
    before = index.size_bytes
    for _ in range(200):
        index.apply(PeerId(0), places, source.integers(1, 2**64, len(places), np.uint64), places.astype(np.uint64))
    assert index.size_bytes == before
    index.check()


def test_one_fingerprint_everywhere() -> None:
    """A peer that says the same of all its places costs no more than another, and hides nobody."""
    index = PeerIndex(SEED)
    places = np.arange(30_000)
    same = np.full(len(places), 5, np.uint64)
    index.follow(PeerId(0), 1)
    index.apply(PeerId(0), np.array([0]), np.array([5], np.uint64), np.array([8], np.uint64))
    index.follow(PeerId(1), len(places))
    index.apply(PeerId(1), places, same, places.astype(np.uint64))
    index.check()
    assert index.find(same[:1], np.array([True, True])).peers[0] == 1
    # Only so many holders are tried, but no more than that is lost, and not for long.
    assert index.find(same[:1], np.array([True, False])).peers[0] == -1
    index.apply(PeerId(1), places[HOLDERS_TRIED_MAX - 1 :], same[HOLDERS_TRIED_MAX - 1 :] * 0, same[63:])
    index.check()
    assert index.find(same[:1], np.array([True, False])).peers[0] == 0
    index.forget(PeerId(1))
    assert index.find(same[:1], np.array([True, True])).places[0] == 0
    while index.tidy():
        index.check()
    assert index.entries == 1


def test_usable_is_by_peer_and_false_past_its_end() -> None:
    index = PeerIndex(SEED)
    index.follow(PeerId(4), 1)
    index.apply(PeerId(4), np.array([0]), np.array([5], np.uint64), np.array([8], np.uint64))
    assert index.find(np.array([5], np.uint64), np.ones(4, np.bool_)).peers[0] == -1
    assert index.find(np.array([5], np.uint64), np.ones(9, np.bool_)).peers[0] == 4
    assert not len(index.find(np.zeros(0, np.uint64), np.ones(9, np.bool_)).peers)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=64), min_size=1, max_size=20, unique=True), st.integers(0, 3))
def test_fingerprints_are_of_key_and_group(names: list[bytes], group: int) -> None:
    keys = [Key(name) for name in names]
    together = fingerprints(keys, group)
    assert together.all()
    assert together.tolist() == [int(fingerprints([key], group)[0]) for key in keys]
    assert len({*together.tolist(), *fingerprints(keys, group + 1).tolist()}) == 2 * len(keys)


def test_fingerprints_are_the_same_on_every_node() -> None:
    keys = [Key(sha256(b"a").digest()), Key(sha256(b"b").digest()[:20])]
    assert fingerprints(keys, 0).tolist() == [*GOLDEN]
    assert not len(fingerprints([], 0))


def test_a_table_is_split_piece_by_piece() -> None:
    source = np.random.default_rng(5)
    table = FingerprintTable(SEED)
    everything = np.unique(source.integers(1, 2**64, 60 * SEGMENT_CELLS, np.uint64))
    source.shuffle(everything)
    for first in range(0, len(everything), 1000):
        part = everything[first : first + 1000]
        table.put(table.reserve(part), np.arange(first, first + len(part)))
    table.check()
    assert (table.values(table.locate(everything)) == np.arange(len(everything))).all()
    assert (table.locate(everything ^ np.uint64(1 << 40)) < 0).all()
