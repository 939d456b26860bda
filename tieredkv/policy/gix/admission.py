"""Admission by index: what is worth much less than who would have to leave for it stays out."""

from collections.abc import Sequence

from tieredkv.policy.gix.policy import GIX
from tieredkv.policy.gix.runs import Run
from tieredkv.types import Key


class AdmitByIndex:
    """Compares each new chunk with the residents that GIX would evict for it, from the least index on."""

    def __init__(self, gix: GIX, theta: float) -> None:
        assert theta >= 0
        self._gix = gix
        self._theta = theta

    def admit(self, keys: Sequence[Key], parents: Sequence[Key], excess: int, now_s: float) -> list[bool]:
        verdicts = [True] * len(keys)
        if excess <= 0:
            return verdicts
        victims = self._gix.victims(now_s)
        victim: Run | None = None
        victim_index, left = 0.0, 0
        run: Run | None = None
        value = 0.0
        refused: set[Key] = set()
        kept: frozenset[Run | None] = frozenset()
        # The first ones take what is free.
        for row in range(len(keys) - excess, len(keys)):
            if refused and parents[row] in refused:
                verdicts[row] = False
                refused.add(keys[row])
                continue
            own = self._gix.run(keys[row])
            if own is not run or row == len(keys) - excess:
                run = own
                kept = self._gix.ancestors(parents[row]) | {own}
                # Nobody asked for it yet (generated tokens): nothing is known against it.
                value = self._gix.value(keys[row], now_s) if own is not None else float("inf")
            while not left or victim in kept:
                # Its own prefix does not leave for it.
                victim_index, victim = next(victims, (float("inf"), None))
                if victim is None:
                    break
                left = victim.resident
            if victim is None or value < self._theta * victim_index:
                verdicts[row] = False
                refused.add(keys[row])
            else:
                left -= 1
        return verdicts
