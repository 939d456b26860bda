"""The warm tier: which chunk is in which slot, and who leaves first. Chunks of a position leave together."""

from collections.abc import Container, Sequence

import numpy as np

from tieredkv.brain.changes import Changes
from tieredkv.brain.forest import Forest
from tieredkv.brain.ghosts import Ghosts
from tieredkv.brain.residents import PinnedPositions, Residents
from tieredkv.brain.slots import SlotTable
from tieredkv.brain.values import Forgotten, Slots, Tallies
from tieredkv.clock import Clock
from tieredkv.policy.base import EvictionPolicy
from tieredkv.types import Key


class Warm:
    """Slots, residents and their order, kept in step with each other.

    Every resident position is in the policy, but for those that the cold side is about to take: they are
    found as before, and belong to it until it lets them go or gives them back.
    """

    def __init__(
        self,
        *,
        slots: int,
        groups: int,
        policy: EvictionPolicy,
        clock: Clock,
        ghosts_max: int,
        next_generation: int,
        tallies: Tallies,
    ) -> None:
        self.table = SlotTable(slots, next_generation)
        self.residents = tuple(Residents(slots) for _ in range(groups))
        self.forest = Forest()
        self.ghosts = Ghosts(ghosts_max)
        self.policy = policy
        self.clock = clock
        self.tallies = tallies
        self.pinned: Container[Key] = PinnedPositions(self.residents, self.table)
        self.changes = Changes()
        self._gone: dict[int, list[Key]] = {}

    def find(self, chain: Sequence[Key], strides: tuple[int, ...]) -> list[Slots]:
        """Per group the slots of its chunks in chain order, -1 where absent; trailing absent ones left out."""
        closed = len(strides) == 1 and self.forest.closed
        return [
            residents.find(chain if stride == 1 else chain[stride - 1 :: stride], closed=closed)
            for residents, stride in zip(self.residents, strides, strict=True)
        ]

    def enter(
        self, group: int, keys: list[Key], parents: list[Key], positions: list[int], slots: Sequence[int]
    ) -> None:
        """The chunks in these READY slots, accepted by the forest, can be found from now on."""
        self.residents[group].add(keys, parents, positions, slots)
        self.changes.entered(group, keys, slots)
        self.policy.insert(keys, parents, self.clock.now_s())

    def victims(self, slots: int) -> list[Key]:
        """Positions that hold at most `slots` slots (one at least), taken out of the policy: all the rest of
        them is the caller's. None when nothing may leave.
        """
        return self.policy.evict(-(-slots // len(self.residents)), self.pinned, self.clock.now_s())

    def leave(self, keys: Sequence[Key]) -> list[int]:
        """These positions, children before parents, are found no more; their slots, for the caller to free."""
        self.ghosts.add(keys)
        self.forest.remove(keys)
        vacated: list[int] = []
        for group, residents in enumerate(self.residents):
            gone, slots = residents.remove(keys)
            if gone:
                self._gone.setdefault(group, []).extend(gone)
                vacated += slots
        self.changes.left(vacated)
        return vacated

    def gone(self) -> dict[int, list[Key]]:
        """The chunks that left since the last call, by group."""
        gone, self._gone = self._gone, {}
        return gone

    def forget_all(self) -> Forgotten:
        """Every chunk is found no more, in the order of their tenancies. Slots are FREE, or will be when unpinned."""
        unreadable = self.table.published()
        tenancies = self.table.generation_of
        visible: list[int] = []
        for group, residents in enumerate(self.residents):
            if len(residents):
                chunks = sorted(residents.items(), key=lambda chunk: tenancies[chunk[1]])
                self._gone.setdefault(group, []).extend(key for key, _ in chunks)
                visible += [slot for _, slot in chunks]
            residents.clear()
        self.policy.clear()
        self.forest.clear()
        self.ghosts.clear()
        self.table.forget(visible)
        self.changes.left(visible)
        self.tallies.evicted("reset", len(visible))
        return Forgotten(unreadable.astype(np.int32), self.gone())
