"""What other nodes hold, as far as this node knows: it may have changed, so whoever reads it checks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tieredkv.brain.moves import PeerId
from tieredkv.types import Key


@dataclass(frozen=True, slots=True)
class Copy:
    """A chunk in a slot or page of another node, and the tenancy that it had there."""

    peer: PeerId
    place: int
    generation: int


class Elsewhere(Protocol):
    """Answers from memory, of nodes that can be reached only. No call waits."""

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        """Where to get each of these chunks."""
        ...

    def keeps(self, group: int, keys: Sequence[Key]) -> list[bool]:
        """Which of these chunks a page of another node holds: nothing is lost when they leave here."""
        ...

    def distrust(self, copies: Sequence[Copy]) -> None:
        """These did not prove themselves: they are not found any more, until their node tells something new."""
        ...

    def home(self, key: Key) -> PeerId | None:
        """The node whose cold pool this position belongs to; None: here, or nowhere."""
        ...


class Nowhere:
    """No other node."""

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        del group
        return [None] * len(keys)

    def keeps(self, group: int, keys: Sequence[Key]) -> list[bool]:
        del group
        return [False] * len(keys)

    def distrust(self, copies: Sequence[Copy]) -> None:
        assert not copies

    def home(self, key: Key) -> PeerId | None:
        del key
        return None
