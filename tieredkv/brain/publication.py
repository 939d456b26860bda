"""Which rows of a publication are kept: an engine may be late, mistaken or hostile."""

from collections.abc import Sequence
from itertools import compress
from typing import TypeVar

from tieredkv.brain.tiering import Tiering
from tieredkv.brain.warm import Warm
from tieredkv.policy.admission import Admission
from tieredkv.types import Key

Value = TypeVar("Value")


class Judge:
    """Tallies has the verdicts. A chunk that is on its way from cold counts as present."""

    def __init__(self, warm: Warm, admission: Admission, tiering: Tiering | None) -> None:
        self._warm = warm
        self._admission = admission
        self._tiering = tiering
        self._loading = tiering.promotions.loading if tiering is not None else None
        # Tenancies older than this began before the last reset: what they write is not wanted.
        self._valid_from = 1

    def judge(
        self,
        group: int,
        keys: Sequence[Key],
        parents: Sequence[Key],
        positions: Sequence[int],
        owned: Sequence[int],
    ) -> tuple[list[int], list[int]]:
        """Enter what is accepted into the forest: accepted rows, and slots to be dropped.

        `owned` has the row's slot, -1 where the engine has not leased it.
        """
        warm = self._warm
        present = warm.residents[group].slot_of.known(keys)
        tenancies, valid_from, loading = warm.table.generation_of, self._valid_from, self._loading
        candidates: list[int] = []
        dropped: list[int] = []
        for row, (key, slot) in enumerate(zip(keys, owned, strict=True)):
            if slot < 0:
                warm.tallies.published("foreign")
            elif tenancies[slot] < valid_from:
                warm.tallies.published("stale")
                dropped.append(slot)
            elif key in present or (loading is not None and loading(group, key)):
                warm.tallies.published("present")
                dropped.append(slot)
            else:
                # One that comes again in this publication is.
                present.add(key)
                candidates.append(row)
        admitted = self._admitted(candidates, keys, parents)
        fits = warm.forest.add(of_rows(keys, admitted), of_rows(parents, admitted), of_rows(positions, admitted))
        rows = admitted if all(fits) else list(compress(admitted, fits))
        warm.ghosts.remove(of_rows(keys, rows))
        if len(rows) < len(candidates):
            warm.tallies.published("refused", len(candidates) - len(admitted))
            warm.tallies.published("nonsense", len(admitted) - len(rows))
            dropped += [owned[row] for row in set(candidates).difference(rows)]
        return rows, dropped

    def reset(self) -> None:
        """What is leased now is not wanted when it is published."""
        self._valid_from = self._warm.table.next_generation

    def _admitted(self, candidates: list[int], keys: Sequence[Key], parents: Sequence[Key]) -> list[int]:
        """The rows that shall be kept. A position that another group holds already is.

        Engines refill what they lease, so each chunk that stays costs a free slot, or an eviction when
        there is none. What is not worth a slot may be worth a page: it has to go through warm to get there.
        """
        warm = self._warm
        new = candidates
        if len(warm.residents) > 1:
            new = [row for row in candidates if keys[row] not in warm.forest]
        free = warm.table.free if self._tiering is None else self._tiering.demotions.unreserved
        excess = max(0, -(-(len(new) - free) // len(warm.residents)))
        new_keys, new_parents = of_rows(keys, new), of_rows(parents, new)
        verdicts = self._admission.admit(new_keys, new_parents, excess, warm.clock.now_s())
        if all(verdicts):
            return candidates
        if self._tiering is not None:
            worth_a_page = self._tiering.table.would_admit(new_keys, new_parents)
            verdicts = [here or there for here, there in zip(verdicts, worth_a_page, strict=True)]
        refused = {row for row, admitted in zip(new, verdicts, strict=True) if not admitted}
        return [row for row in candidates if row not in refused]


def of_rows(values: Sequence[Value], rows: Sequence[int]) -> list[Value]:
    """The values of these rows, each named once and in order: all of them, most often."""
    if len(rows) == len(values):
        return values if isinstance(values, list) else list(values)
    return [values[row] for row in rows]
