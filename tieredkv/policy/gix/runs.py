"""Runs: stretches of prefix chains whose chunks share their history.

Keys are chained, so an equal key means an equal prefix: chains are compared in stretches at memory speed,
and all bookkeeping is per run, not per chunk.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from tieredkv.policy.gix.cohorts import Cohort
from tieredkv.policy.keymap import KeyMap
from tieredkv.types import Key


class Run:
    """`keys[i]` is the parent of `keys[i + 1]`, `parent` that of `keys[0]` (empty at the start of a chain).

    The first `resident` keys are resident, the rest are ghosts. `used_s` is the time of the last use,
    `hits` counts uses after the first, `fan` how many different chains were ever seen to go on after it,
    `turn` how often its chain was extended before; each key has `weight` in `cohort`.
    """

    __slots__ = (
        "class_", "cohort", "fan", "hits", "keys", "new_bucket", "parent", "queued", "resident", "turn", "used_s",
        "weight",
    )  # fmt: skip

    def __init__(self, keys: list[Key], parent: Key, used_s: float, class_: int, cohort: Cohort, weight: float) -> None:
        self.keys = keys
        self.parent = parent
        self.used_s = used_s
        self.class_ = class_
        self.cohort = cohort
        self.weight = weight
        self.resident = 0
        self.hits = 0
        self.fan = 0
        self.turn = 0
        self.new_bucket = 0
        self.queued = False


class Forest:
    """All runs: by key, and by what hangs below each key. Residency is kept by the caller.

    `below` counts the runs with residents whose parent a key is: they shield it from eviction.
    The tracked ones are last in their runs; `awaited` are those that are not tracked. `forgettable` holds
    the runs with ghosts, to be forgotten from the first on: descendants precede their ancestors.
    """

    def __init__(self) -> None:
        self.run_of: KeyMap[Run] = KeyMap()
        self.tracked = 0
        self.below: dict[Key, int] = {}
        self.awaited: set[Key] = set()
        self.forgettable: OrderedDict[Run, None] = OrderedDict()

    def before_awaited(self, keys: list[Key]) -> int:
        """How many of these untracked keys can be one run: it must end where something resident goes on."""
        if not self.awaited:
            return len(keys)
        return next((at + 1 for at, key in enumerate(keys) if key in self.awaited), len(keys))

    def add(self, run: Run) -> None:
        """Track a run of untracked keys. One that occurs twice in it (a peer's nonsense) counts once."""
        self.run_of.assign(run.keys, run)
        tracked = len(self.run_of)
        if tracked - self.tracked < len(run.keys):
            run.keys = list(dict.fromkeys(run.keys))
        self.tracked = tracked
        self.awaited.discard(run.keys[-1])

    def extend(self, run: Run, keys: list[Key]) -> None:
        """Untracked keys go on after `run`."""
        self.run_of.assign(keys, run)
        self.tracked += len(keys)
        run.keys += keys
        self.awaited.discard(keys[-1])

    def join(self, head: Run, tail: Run) -> Run:
        """Both, neighbours of the same history, as one: the longer keeps its name."""
        if tail.resident:
            self.unshield(tail.parent)
        if len(head.keys) >= len(tail.keys):
            self.run_of.assign(tail.keys, head)
            head.keys += tail.keys
            head.resident += tail.resident
            head.fan = tail.fan
            self.forgettable.pop(tail, None)
            return head
        self.run_of.assign(head.keys, tail)
        tail.keys = head.keys + tail.keys
        tail.parent = head.parent
        tail.resident += head.resident
        self.forgettable.pop(head, None)
        return tail

    def remember(self, run: Run) -> None:
        """Forget the ghosts of `run` after all others."""
        self.forgettable[run] = None
        self.forgettable.move_to_end(run)

    def split(self, run: Run, size: int) -> Run:
        """Make the first `size` keys of `run` a run of their own and return it; `run` keeps the rest.

        Both share history, cohort and weights. The caller places the new one beside the old.
        """
        assert 0 < size < len(run.keys)
        head = Run(run.keys[:size], run.parent, run.used_s, run.class_, run.cohort, run.weight)
        head.hits, head.turn, head.new_bucket, head.fan = run.hits, run.turn, run.new_bucket, 1
        head.resident = min(run.resident, size)
        run.keys = run.keys[size:]
        run.resident -= head.resident
        run.parent = head.keys[-1]
        self.run_of.assign(head.keys, head)
        if run.resident:
            self.below[run.parent] = self.below.get(run.parent, 0) + 1
        if run.resident == len(run.keys):
            self.forgettable.pop(run, None)
        if head.resident < size:
            # Behind its rest, though perhaps also behind what is above it.
            self.forgettable[head] = None
        return head

    def shielded(self, run: Run) -> bool:
        """Whether a resident child keeps the last resident key of `run`."""
        return run.resident == len(run.keys) and run.keys[-1] in self.below

    def shield(self, parent: Key) -> None:
        """A run below `parent` has residents now."""
        if parent:
            self.below[parent] = self.below.get(parent, 0) + 1
            if parent not in self.run_of:
                self.awaited.add(parent)

    def unshield(self, parent: Key) -> bool:
        """A run below `parent` has no residents any more. Whether it was the last one there."""
        if not parent:
            return False
        left = self.below[parent] - 1
        if left:
            self.below[parent] = left
            return False
        del self.below[parent]
        self.awaited.discard(parent)
        return True

    def forget(self, tracked_max: int) -> Iterator[tuple[Run, int]]:
        """Forget ghosts until at most `tracked_max` keys are tracked; yields runs and how many they lost."""
        while self.tracked > tracked_max and self.forgettable:
            run, _ = self.forgettable.popitem(last=False)
            count = len(run.keys) - run.resident
            self.run_of.discard(islice(run.keys, run.resident, None))
            self.tracked -= count
            if run.keys[-1] in self.below:
                self.awaited.add(run.keys[-1])
            del run.keys[run.resident :]
            yield run, count

    def clear(self) -> None:
        """Forget everything."""
        self.run_of.clear()
        self.tracked = 0
        self.below.clear()
        self.awaited.clear()
        self.forgettable.clear()

    def check(self) -> None:
        """Assert that runs, keys and shields agree. O(n)."""
        below: dict[Key, int] = {}
        seen = 0
        for run in set(self.run_of.values()):
            assert run.keys
            assert 0 <= run.resident <= len(run.keys)
            assert all(self.run_of[key] is run for key in run.keys)
            assert (run in self.forgettable) == (run.resident < len(run.keys))
            seen += len(run.keys)
            if run.resident and run.parent:
                below[run.parent] = below.get(run.parent, 0) + 1
        assert seen == len(self.run_of) == self.tracked
        assert below == self.below
        assert self.awaited == {key for key in below if key not in self.run_of}
        assert all(self.run_of[key].keys[-1] == key for key in below if key in self.run_of)
        assert all(run.keys and self.run_of[run.keys[0]] is run for run in self.forgettable)
