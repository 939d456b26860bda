"""What this node holds, and what each follower has not been told of it yet.

Of a place that changed often a follower is told only the last: what waits for it are places, each once,
not changes, so that a follower that is slow, or gone, never makes more wait than there are places.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tieredkv.brain.fingerprint_table import Fingerprints, Rows

Generations = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Places and what they hold now: fingerprint 0 (and generation 0) is nothing."""

    places: Rows
    fingerprints: Fingerprints
    generations: Generations

    def __len__(self) -> int:
        return len(self.places)


class Follower:
    """One reader of the holdings. It begins with all that is held: the snapshot."""

    def __init__(self, holdings: "Holdings") -> None:
        self._holdings = holdings
        self._waits: npt.NDArray[np.bool_] = holdings.fingerprints != 0
        self._queue: deque[Rows] = deque([np.flatnonzero(self._waits)])
        self.waiting = len(self._queue[0])
        """Places that it was not told of."""
        self.snapshot_left = self.waiting
        """Places of the snapshot among them: the first ones."""

    def take(self, rows_max: int) -> Changes:
        """What to tell it next, up to `rows_max` places, oldest first; empty when it knows all."""
        assert rows_max > 0
        taken: list[Rows] = []
        room = rows_max
        while room and self._queue:
            head = self._queue.popleft()
            if len(head) > room:
                self._queue.appendleft(head[room:])
                head = head[:room]
            taken.append(head)
            room -= len(head)
        places = np.concatenate(taken) if taken else np.zeros(0, np.int64)
        self._waits[places] = False
        self.waiting -= len(places)
        self.snapshot_left = max(0, self.snapshot_left - len(places))
        return Changes(places, self._holdings.fingerprints[places], self._holdings.generations[places])

    def changed(self, places: Rows) -> None:
        """These places (all different) hold something else now. For the holdings only."""
        fresh = places[~self._waits[places]]
        if len(fresh):
            self._waits[fresh] = True
            self._queue.append(fresh)
            self.waiting += len(fresh)

    def check(self) -> None:
        """Assert that exactly the places that wait are queued, each once."""
        queued = np.concatenate([np.zeros(0, np.int64), *self._queue])
        assert len(queued) == len(np.unique(queued)) == self.waiting
        assert self._waits[queued].all()
        assert int(np.count_nonzero(self._waits)) == self.waiting
        assert 0 <= self.snapshot_left <= self.waiting


class Holdings:
    """Fingerprint and generation of each own place. Not thread safe."""

    def __init__(self, places: int) -> None:
        self.fingerprints: Fingerprints = np.zeros(places, np.uint64)
        self.generations: Generations = np.zeros(places, np.uint64)
        self._followers: list[Follower] = []

    def __len__(self) -> int:
        """How many places hold something."""
        return int(np.count_nonzero(self.fingerprints))

    def hold(self, places: Rows, fingerprints: Fingerprints, generations: Generations) -> None:
        """These places (all different) hold that from now on. Fingerprints are never 0."""
        assert len(places) == len(fingerprints) == len(generations)
        assert fingerprints.all()
        self._set(places, fingerprints, generations)

    def drop(self, places: Rows) -> None:
        """These places (all different) hold nothing any more; some may have held nothing before."""
        held = places[self.fingerprints[places] != 0]
        self._set(held, np.zeros(len(held), np.uint64), np.zeros(len(held), np.uint64))

    def follow(self) -> Follower:
        """A new follower; it must be given back to `leave`."""
        follower = Follower(self)
        self._followers.append(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """This one is told nothing more."""
        self._followers.remove(follower)

    def check(self) -> None:
        """Assert the invariants. Takes as long as there are places."""
        assert not self.generations[self.fingerprints == 0].any()
        for follower in self._followers:
            follower.check()

    def _set(self, places: Rows, fingerprints: Fingerprints, generations: Generations) -> None:
        if not len(places):
            return
        self.fingerprints[places] = fingerprints
        self.generations[places] = generations
        for follower in self._followers:
            follower.changed(places)
