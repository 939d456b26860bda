"""Every invariant between the parts of the brain, stated once."""

from collections.abc import Sequence

import numpy as np

from tieredkv.brain.holder import Holder
from tieredkv.brain.residents import Residents
from tieredkv.brain.slots import SlotTable
from tieredkv.brain.tiering import Tiering
from tieredkv.brain.warm import Warm
from tieredkv.types import Key, SlotState


def audit(warm: Warm, holders: Sequence[Holder], tiering: Tiering | None) -> None:
    """Assert them all. O(slots + pages)."""
    table = warm.table
    table.check()
    warm.forest.check()
    warm.policy.check()
    warm.ghosts.check()
    resident = _check_residents(table, warm.residents)
    assert len(warm.forest) == len(resident)
    assert all(key in warm.forest for key in resident)
    assert not any(key in warm.ghosts for key in resident)
    pins = np.zeros(table.slots, np.int32)
    leaving = 0
    if tiering is not None:
        pins += tiering.check()
        leaving = len(tiering.demotions)
    assert len(warm.policy) == len(resident) - leaving
    assert leaving or all(key in warm.policy for key in resident)
    for holder in holders:
        pins += holder.check()
    assert (pins == table.pins).all()
    assert sum(holder.leased for holder in holders) == table.counts()[SlotState.LEASED]


def _check_residents(table: SlotTable, groups: Sequence[Residents]) -> set[Key]:
    """Each chunk is in a visible slot of its own; the keys of all."""
    resident: set[Key] = set()
    slots: list[int] = []
    for residents in groups:
        residents.check()
        for key, slot in residents.items():
            resident.add(key)
            slots.append(slot)
    assert sorted(slots) == np.flatnonzero(table.visible).tolist()
    return resident
