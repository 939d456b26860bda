"""Copies between places of this node: from slots to pages (demotion) and back (promotion)."""

import numpy as np

from tieredkv.sidecar.mover.messages import Copy, Loss, Rows
from tieredkv.sidecar.mover.places import Places
from tieredkv.tiers import proof
from tieredkv.tiers.proof import Expected, Proof


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
    np.copyto(places.body(target), places.body(source))
    if was_sealed:
        found = places.prove(header, target, trailer, expected)
    else:
        header = proof.sealed(header, places.body(target).data)
    if not places.agrees(source, expected.generation):
        return Proof.TORN
    if found is Proof.RIGHT:
        places.finish(target, job.target_generations[row], header)
    return found


def expected_of(job: Rows, row: int) -> Expected:
    """What the source of a row should hold."""
    return Expected(
        key=job.keys[row],
        parent=job.parents[row],
        position=job.positions[row],
        group=job.groups[row],
        generation=job.source_generations[row],
    )
