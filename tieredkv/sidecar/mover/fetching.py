"""Copies from another node: received straight into place, and accepted only once they proved themselves."""

from collections.abc import Callable
from typing import Final

from tieredkv.errors import VineyardError
from tieredkv.sidecar.mover.copying import expected_of
from tieredkv.sidecar.mover.messages import Fetch, Loss
from tieredkv.sidecar.mover.places import Places
from tieredkv.tiers.proof import BodyChecksum, Proof
from tieredkv.tiers.remote import PeerReader, Wanted
from tieredkv.tiers.slots import HEADER_BYTES, TRAILER_BYTES, Generations

_ENDS_BYTES: Final = HEADER_BYTES + TRAILER_BYTES
_HEADER, _ROOM = 0, 1
"""Which target is which."""


def fetch(
    places: Places,
    job: Fetch,
    reader: PeerReader,
    blob_ids: Generations,
    *,
    until_s: float,
    cancelled: Callable[[], bool],
) -> dict[int, Loss]:
    """Carry out a job; the rows that did not arrive. `blob_ids` are those of the peer's places.

    A body goes into the target's body, header and trailer beside; its checksum is taken piece by piece as
    it arrives, and the row is proved while the peer sends the next ones.
    """
    failed = dict.fromkeys(range(len(job)), Loss.MISSING)
    known = [row for row in range(len(job)) if job.sources[row] < len(blob_ids)]
    ends = memoryview(bytearray(_ENDS_BYTES * len(known)))

    sums: dict[int, BodyChecksum] = {}

    def received(at: int, target: int, piece: memoryview) -> None:
        if target == _HEADER:
            sums[at] = BodyChecksum(piece)
        elif target == _ROOM:
            # What pads the body is not covered.
            body = sums[at]
            body.add(piece[: places.body_bytes - body.size_bytes])

    def arrived(at: int) -> None:
        row = known[at]
        header = bytes(ends[at * _ENDS_BYTES : at * _ENDS_BYTES + HEADER_BYTES])
        trailer = bytes(ends[at * _ENDS_BYTES + HEADER_BYTES : (at + 1) * _ENDS_BYTES])
        found = places.prove(header, sums.pop(at).value, trailer, expected_of(job, row))
        if found is Proof.RIGHT:
            places.finish(job.targets[row], job.target_generations[row], header)
            del failed[row]
        else:
            failed[row] = Loss(found.value)

    wanted = [
        Wanted(
            int(blob_ids[job.sources[row]]),
            places.size_bytes,
            (
                ends[at * _ENDS_BYTES : at * _ENDS_BYTES + HEADER_BYTES],
                places.room(job.targets[row]),
                ends[at * _ENDS_BYTES + HEADER_BYTES : (at + 1) * _ENDS_BYTES],
            ),
        )
        for at, row in enumerate(known)
    ]
    places.begin(job.targets, job.target_generations)
    try:
        reader.read(wanted, until_s=until_s, cancelled=cancelled, on_piece=received, on_arrived=arrived)
        reason = Loss.CANCELLED if cancelled() else Loss.MISSING
    except VineyardError:
        reason = Loss.UNREACHABLE
    return {row: reason if loss is Loss.MISSING else loss for row, loss in failed.items()}
