"""The brain's jobs in the mover's words."""

from typing import Final, assert_never

from tieredkv.brain.moves import Demote, Fetch, Promote, Pull
from tieredkv.sidecar.mover import messages
from tieredkv.sidecar.mover.messages import Loss
from tieredkv.sidecar.mover.traffic import Movement

OwnJob = Demote | Promote | Fetch | Pull
"""Jobs that move bytes to places of this node."""

_MOVEMENTS: Final = {
    Demote: Movement.DEMOTE,
    Promote: Movement.PROMOTE,
    Fetch: Movement.FETCH,
    Pull: Movement.PULL,
}
_NOT_THERE: Final = frozenset({Loss.TORN, Loss.FOREIGN, Loss.OTHER, Loss.CORRUPT, Loss.MISSING})


def movement_of(job: OwnJob) -> Movement:
    """What kind of movement a job is."""
    return _MOVEMENTS[type(job)]


def message_of(
    pool: int, first_page: int, job: OwnJob, deadline_s: float, work_s: float
) -> messages.Copy | messages.Fetch:
    """The message for a job, in places: pages count on from `first_page`. The deadlines are those of messages.Fetch.

    What a request waits for goes before what makes room.
    """
    match job:
        case Demote():
            return messages.Copy(
                pool, job.number, job.groups, job.keys, job.parents, job.positions,
                job.slots, job.generations, _places(first_page, job.pages), job.page_generations, urgent=False,
            )  # fmt: skip
        case Promote():
            return messages.Copy(
                pool, job.number, job.groups, job.keys, job.parents, job.positions,
                _places(first_page, job.pages), job.page_generations, job.slots, job.generations, urgent=True,
            )  # fmt: skip
        case Fetch():
            return messages.Fetch(
                pool, job.number, job.groups, job.keys, job.parents, job.positions,
                job.places, job.place_generations, job.slots, job.generations,
                urgent=True, peer=job.peer, deadline_s=deadline_s, work_s=work_s,
            )  # fmt: skip
        case Pull():
            return messages.Fetch(
                pool, job.number, job.groups, job.keys, job.parents, job.positions,
                job.places, job.place_generations, _places(first_page, job.pages), job.page_generations,
                urgent=False, peer=job.peer, deadline_s=deadline_s, work_s=work_s,
            )  # fmt: skip
        case _:
            assert_never(job)


def _places(first_page: int, pages: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(first_page + page for page in pages)


def unproven(movement: Movement, failed: dict[int, Loss]) -> frozenset[int]:
    """Rows whose source does not hold the chunk, or a damaged one: it need not be asked again.

    A peer's chunk without a checksum may get it later; a page without one is damaged.
    """
    wrong = _NOT_THERE | {Loss.UNSEALED} if movement is Movement.PROMOTE else _NOT_THERE
    return frozenset(row for row, loss in failed.items() if loss in wrong)
