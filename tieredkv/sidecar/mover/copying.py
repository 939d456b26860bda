"""Copies between places of this node: from slots to pages (demotion) and back (promotion)."""

from typing import Final

import numpy as np

from tieredkv.sidecar.mover.messages import Copy, Loss, Rows
from tieredkv.sidecar.mover.places import Places
from tieredkv.tiers import proof
from tieredkv.tiers.proof import BodyChecksum, Expected, Proof

PIECE_BYTES: Final = 256 * 1024
"""Copied, then read for the checksum: from a cache of one core, which has room for both ends."""


def copy(places: Places, job: Copy) -> dict[int, Loss]:
    """Carry out a job; the rows that did not arrive. Bodies are copied and read without the GIL.

    A chunk that has its checksum is verified, on the copy; one that has none (only slots may) gets it.
    """
    places.begin(job.targets, job.target_generations)
    failed: dict[int, Loss] = {}
    for row in range(len(job)):
        if places.ended:
            failed[row] = Loss.CANCELLED
            continue
        found = _copy_row(places, job, row)
        if found is not Proof.RIGHT:
            failed[row] = Loss(found.value)
    return failed


def _copy_row(places: Places, job: Copy, row: int) -> Proof:
    source, target = job.sources[row], job.targets[row]
    expected = expected_of(job, row)
    header, trailer = places.header(source), places.trailer(source)
    found = places.describes(header, trailer, expected)
    if found is not Proof.RIGHT:
        return found
    was_sealed = proof.is_sealed(header)
    if not was_sealed and source >= places.slots:
        return Proof.UNSEALED  # a page never is: its flag was damaged
    checksum = _copy_body(places, source, target, header)
    if was_sealed:
        found = places.prove(header, checksum, trailer, expected)
    else:
        header = proof.sealed(header, checksum)
    if not places.agrees(source, expected.generation):
        return Proof.TORN
    if found is Proof.RIGHT:
        places.finish(target, job.target_generations[row], header)
    return found


def _copy_body(places: Places, source: int, target: int, header: bytes) -> int:
    """Copy the body; the checksum of what arrived, with `header`."""
    theirs, ours = places.body(source), places.body(target)
    checksum = BodyChecksum(header)
    for start in range(0, places.body_bytes, PIECE_BYTES):
        piece = ours[start : start + PIECE_BYTES]
        np.copyto(piece, theirs[start : start + PIECE_BYTES])
        checksum.add(piece.data)
    return checksum.value


def expected_of(job: Rows, row: int) -> Expected:
    """What the source of a row should hold."""
    return Expected(
        key=job.keys[row],
        parent=job.parents[row],
        position=job.positions[row],
        group=job.groups[row],
        generation=job.source_generations[row],
    )
