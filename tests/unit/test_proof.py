"""What is read from a place proves itself: everything that is wrong with it is found out."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tieredkv.tiers import proof
from tieredkv.tiers.pool import Pool, PoolRecord
from tieredkv.tiers.proof import Expected, Proof
from tieredkv.tiers.slots import HEADER_BYTES, HEADER_DTYPE, TRAILER_BYTES, slot_bytes
from tieredkv.types import Geometry

NAMESPACE = b"n" * 16
BODY_BYTES = 1000
RESETS = 3
EXPECTED = Expected(key=b"k" * 32, parent=b"p" * 20, position=7, group=1, generation=41)


def a_place(*, sealed: bool = True) -> bytearray:
    """A published slot: header | body | body's padding | trailer."""
    arena = np.random.default_rng(1).integers(0, 256, slot_bytes(BODY_BYTES), np.uint8)
    geometry = Geometry(body_bytes=BODY_BYTES, chain_tokens=16, group_strides=(1, 1))
    pool = Pool(PoolRecord(NAMESPACE, {}, geometry, (1,), np.zeros(1, np.int64)), arena)
    first, generation = np.zeros(1, np.int64), np.array([EXPECTED.generation], np.uint64)
    pool.start_tenancy(first, generation)
    pool.publish(
        first,
        generation,
        group=EXPECTED.group,
        keys=[EXPECTED.key],
        parents=[EXPECTED.parent],
        positions=np.array([EXPECTED.position]),
        resets=RESETS,
    )
    place = bytearray(arena.tobytes())
    if sealed:
        header = place[:HEADER_BYTES]
        place[:HEADER_BYTES] = proof.sealed(header, proof.checksum(header, body_of(place)))
    return place


def body_of(place: bytearray) -> memoryview:
    return memoryview(place)[HEADER_BYTES : HEADER_BYTES + BODY_BYTES]


def proved(
    place: bytearray, expected: Expected = EXPECTED, *, namespace: bytes = NAMESPACE, resets: int = RESETS
) -> Proof:
    view = memoryview(place)
    return proof.prove(
        view[:HEADER_BYTES],
        proof.checksum(view[:HEADER_BYTES], body_of(place)),
        view[-TRAILER_BYTES:],
        expected,
        namespace=namespace,
        resets=resets,
        body_bytes=BODY_BYTES,
    )


def flipped(place: bytearray, bit: int) -> bytearray:
    wrong = bytearray(place)
    wrong[bit // 8] ^= 1 << bit % 8
    return wrong


def test_a_sealed_chunk_is_right() -> None:
    assert proved(a_place()) is Proof.RIGHT


def test_a_chunk_without_checksum_is_not_accepted() -> None:
    assert proved(a_place(sealed=False)) is Proof.UNSEALED


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (replace(EXPECTED, generation=42), Proof.TORN),
        (replace(EXPECTED, key=b"k" * 31), Proof.OTHER),
        (replace(EXPECTED, parent=b""), Proof.OTHER),
        (replace(EXPECTED, position=8), Proof.OTHER),
        (replace(EXPECTED, group=0), Proof.OTHER),
    ],
)
def test_another_chunk_is_refused(expected: Expected, found: Proof) -> None:
    assert proved(a_place(), expected) is found


def test_another_namespace_and_other_weights_are_foreign() -> None:
    assert proved(a_place(), namespace=b"m" * 16) is Proof.FOREIGN
    assert proved(a_place(), resets=RESETS + 1) is Proof.FOREIGN


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("magic", Proof.FOREIGN),
        ("generation", Proof.TORN),
        ("namespace", Proof.FOREIGN),
        ("body_bytes", Proof.FOREIGN),
        ("checksum", Proof.CORRUPT),
        ("group", Proof.OTHER),
        ("format", Proof.FOREIGN),
        ("position", Proof.OTHER),
        ("key_bytes", Proof.OTHER),
        ("parent_bytes", Proof.OTHER),
        ("resets", Proof.FOREIGN),
    ],
)
def test_each_bit_of_a_field_is_covered(field: str, found: Proof) -> None:
    place = a_place()
    assert HEADER_DTYPE.fields is not None
    kind, offset = HEADER_DTYPE.fields[field][:2]
    for bit in range(offset * 8, (offset + kind.itemsize) * 8):
        assert proved(flipped(place, bit)) is found, f"bit {bit} of {field}"


def test_each_bit_of_the_flags_is_covered() -> None:
    place = a_place()
    found = [proved(flipped(place, bit)) for bit in range(48 * 8, 52 * 8)]
    assert found == [Proof.UNSEALED] + [Proof.FOREIGN] * 31


def test_each_bit_of_the_header_is_covered_also_what_means_nothing_yet() -> None:
    place = a_place()
    assert all(proved(flipped(place, bit)) is not Proof.RIGHT for bit in range(HEADER_BYTES * 8))
    unused = range(200 * 8, HEADER_BYTES * 8)
    assert {proved(flipped(place, bit)) for bit in unused} == {Proof.CORRUPT}


def test_each_bit_of_the_body_and_of_the_trailers_generation_is_covered() -> None:
    place = a_place()
    body = range(HEADER_BYTES * 8, (HEADER_BYTES + BODY_BYTES) * 8)
    assert {proved(flipped(place, bit)) for bit in body} == {Proof.CORRUPT}
    trailer = (len(place) - TRAILER_BYTES) * 8
    assert {proved(flipped(place, bit)) for bit in range(trailer, trailer + 64)} == {Proof.TORN}


def test_random_flips_are_never_accepted() -> None:
    place = a_place()
    draw = random.Random(7)
    covered = [*range((HEADER_BYTES + BODY_BYTES) * 8), *range(trailer := (len(place) - 64) * 8, trailer + 64)]
    accepted = 0
    for _ in range(10_000):
        wrong = place
        for bit in draw.sample(covered, draw.randint(1, 8)):
            wrong = flipped(wrong, bit)
        accepted += proved(wrong) is Proof.RIGHT
    assert not accepted


def test_the_checksum_survives_a_copy_to_another_place() -> None:
    place = a_place()
    generation = (99).to_bytes(8, "little")
    place[8:16] = generation
    place[-TRAILER_BYTES : -TRAILER_BYTES + 8] = generation
    assert proved(place, replace(EXPECTED, generation=99)) is Proof.RIGHT
    assert proved(place) is Proof.TORN


def test_all_kinds_of_buffers_give_one_checksum() -> None:
    place = a_place()
    header, body = bytes(place[:HEADER_BYTES]), bytes(body_of(place))
    kinds = [bytes, bytearray, memoryview, lambda raw: np.frombuffer(raw, np.uint8).data]
    assert len({proof.checksum(kind(header), kind(body)) for kind in kinds}) == 1


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, BODY_BYTES - 1, BODY_BYTES])
def test_a_body_in_pieces_gives_the_same_checksum(piece_bytes: int) -> None:
    place = a_place()
    header, body = place[:HEADER_BYTES], body_of(place)
    pieces = proof.BodyChecksum(header)
    for start in range(0, BODY_BYTES, piece_bytes):
        pieces.add(body[start : start + piece_bytes])
    assert pieces.size_bytes == BODY_BYTES
    assert pieces.value == proof.checksum(header, body)


def test_sealing_changes_neither_checksum_nor_other_bytes() -> None:
    place = a_place(sealed=False)
    header = bytes(place[:HEADER_BYTES])
    assert not proof.is_sealed(header)
    sealed = proof.sealed(header, proof.checksum(header, body_of(place)))
    assert proof.is_sealed(sealed)
    assert proof.checksum(sealed, body_of(place)) == proof.checksum(header, body_of(place))
    assert (sealed[:40], sealed[52:]) == (header[:40], header[52:])
