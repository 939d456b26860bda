"""What the scheduler tells the workers about the slots of a job."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tieredkv.vllm_client.compat import LoadStoreSpec


@dataclass(frozen=True, slots=True, eq=False)
class SlotLoadStoreSpec(LoadStoreSpec):
    """Slots of one epoch, ordered by group as vLLM orders a job's keys, with their generations.

    A worker that is attached to another epoch, or finds other generations in the slots, fails the job.
    """

    epoch: int
    slots: npt.NDArray[np.int64] | npt.NDArray[np.int32]
    generations: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls) -> "SlotLoadStoreSpec":
        """A spec of no slots."""
        return cls(0, np.empty(0, np.int32), np.empty(0, np.uint64))
