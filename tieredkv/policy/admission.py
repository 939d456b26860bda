"""Whether a written chunk is worth keeping. Separate from eviction: either can be changed alone."""

from collections.abc import Sequence
from typing import Protocol

from tieredkv.types import Key


class Admission(Protocol):
    """Asked once per publication; the slots of refused chunks are free again."""

    def admit(self, keys: Sequence[Key], parents: Sequence[Key], excess: int, now_s: float) -> list[bool]:
        """Which of `keys` shall be kept, head first within a chain; none of them is resident.

        If all were, `excess` resident positions would have to leave (0: there is room for all).
        """
        ...


class AdmitAll:
    """Keeps whatever was written."""

    def admit(self, keys: Sequence[Key], parents: Sequence[Key], excess: int, now_s: float) -> list[bool]:
        del parents, excess, now_s
        return [True] * len(keys)
