"""The GIX policy: runs, classes, cohorts, tables and queues put together.

At each use the runs of the chain are looked at: those known are an event at their age (resident or ghost:
what was lost teaches as well), go into the class of their new history and to the young end of its queue.
What leaves is the tail of the run with the least index at the head of a queue. Ghosts are remembered for
several times the life of a resident chunk, because a policy that forgets what it lost believes in what
it kept.
"""

from collections.abc import Container, Iterator, Sequence
from itertools import compress
from itertools import count as counting
from typing import Final

from tieredkv.policy.chains import common
from tieredkv.policy.gix.additions import Additions
from tieredkv.policy.gix.classes import (
    BASE,
    HITS_MAX,
    NOTHING_SAID,
    chain_class,
    hint_class,
    trunk_class,
)
from tieredkv.policy.gix.cohorts import NO_COHORT, Cohort, CohortLog
from tieredkv.policy.gix.queues import Queues
from tieredkv.policy.gix.runs import Forest, Run
from tieredkv.policy.gix.tables import Counts, Tuning, indices
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key

TRUNK_FAN: Final = 3
"""More chains than this go on after a trunk."""

REBUILD_USES: Final = 64
REBUILD_INTERVAL_S: Final = 2.0


class GIX:
    """See the module. `tracked_max` bounds resident positions and ghosts together."""

    def __init__(self, capacity: int, tuning: Tuning | None = None, *, tracked_max: int | None = None) -> None:
        assert capacity >= 1
        self._tuning = tuning or Tuning()
        self._capacity = capacity
        self._tracked_max = max(5 * capacity, capacity + 1_000_000) if tracked_max is None else tracked_max
        self._resident = 0
        self._forest = Forest()
        self._counts = Counts()
        self._log = CohortLog()
        self._queues = Queues(indices(self._counts, self._tuning))
        self._additions = Additions()
        self._uses = 0
        self._uses_rebuilt = 0
        self._rebuilt_s = float("-inf")

    # --- EvictionPolicy -----------------------------------------------------------------------------

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        self._uses += 1
        keys = chain if isinstance(chain, list) else list(chain)
        if not keys:
            return
        path, new = self._walk(keys, now_s)
        turn = next((run.turn + 1 for run in reversed(path) if run.fan <= TRUNK_FAN and run not in new), 0)
        self._use(path, new, turn, hints, now_s)
        self._forget()

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        at = 0
        while at < len(keys):
            end = at + 1
            while end < len(keys) and parents[end] == keys[end - 1]:
                end += 1
            self._enter(list(keys[at:end]), parents[at], now_s)
            at = end
        self._forget()
        assert self._resident <= self._capacity

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        victims: list[Key] = []
        aside: list[Run] = []
        while len(victims) < count:
            lowest = self._queues.lowest(now_s)
            if lowest is None:
                break
            run = lowest[1]
            if self._forest.shielded(run):
                # It comes back when its last resident child leaves. Until it is the lowest it shields
                # the younger ones of its class.
                self._queues.drop(run)
                continue
            taken = self._take(run, count - len(victims), protected)
            victims += taken
            if not taken or (run.resident and len(victims) < count):
                self._queues.drop(run)
                aside.append(run)
            elif not run.resident:
                self._queues.drop(run)
            if taken and not run.resident:
                self._childless(run.parent, now_s)
        for run in reversed(aside):
            # The last child of a run that was put aside may have left since, and have brought it back.
            if not run.queued:
                self._queues.push(run, now_s, oldest=True)
        self._resident -= len(victims)
        self._forget()
        return victims

    def advise(self, key: Key, hints: UseHints, now_s: float) -> None:
        hint = hint_class(hints)
        for run in self._prefix(key):
            if run.fan > TRUNK_FAN:
                break
            self._reclass(run, hint * BASE + run.class_ % BASE, now_s)

    def maintain(self, now_s: float) -> None:
        due = REBUILD_USES if self._uses >= REBUILD_USES else max(1, self._uses_rebuilt)
        if self._uses - self._uses_rebuilt < due or now_s - self._rebuilt_s < REBUILD_INTERVAL_S:
            return
        if self._uses_rebuilt:
            self._counts.decay(0.5 ** ((now_s - self._rebuilt_s) / self._tuning.half_life_s))
        self._log.sweep(self._counts, now_s)
        self._additions.renew()
        self._queues.renew(indices(self._counts, self._tuning))
        self._uses_rebuilt = self._uses
        self._rebuilt_s = now_s

    def remove(self, key: Key) -> None:
        run = self._forest.run_of[key]
        at = run.keys.index(key)
        assert at < run.resident
        now_s = run.used_s
        # What follows stays, below an absent key.
        head = self._split(run, at + 1, now_s) if at + 1 < run.resident else run
        head.resident -= 1
        self._resident -= 1
        self._forest.forgettable[head] = None
        if not head.resident:
            self._queues.drop(head)
            self._childless(head.parent, now_s)
        elif not head.queued:
            self._queues.push(head, now_s, oldest=True)

    def clear(self) -> None:
        """What was learnt stays: it is about habits, not about keys."""
        self._forest.clear()
        self._queues.clear()
        self._log.abandon()
        self._resident = 0

    def __contains__(self, key: Key) -> bool:
        run = self._forest.run_of.get(key)
        return run is not None and key in run.keys[: run.resident]

    def __len__(self) -> int:
        return self._resident

    def check(self) -> None:
        self._forest.check()
        self._queues.check()
        runs = set(self._forest.run_of.values())
        assert sum(run.resident for run in runs) == self._resident <= self._capacity
        assert self._forest.tracked <= max(self._tracked_max, self._resident)
        for run in runs:
            assert run.queued or not run.resident or self._forest.shielded(run), "nobody would evict this run"

    def value(self, key: Key, now_s: float) -> float:
        """Expected hits per second that the slot of a tracked key holds."""
        run = self._forest.run_of[key]
        return self._queues.index(run.class_, now_s - run.used_s)

    def victims(self, now_s: float) -> Iterator[tuple[float, Run]]:
        """Who would leave: (index, run), the least first. Nothing may change meanwhile.

        Runs that a resident child shields are among them: by their turn the child has left, most likely.
        """
        return self._queues.ascending(now_s)

    def run(self, key: Key) -> Run | None:
        """The run that tracks `key`."""
        return self._forest.run_of.get(key)

    def ancestors(self, key: Key) -> frozenset[Run]:
        """The runs that the prefix ending in `key` consists of, as far as it is tracked."""
        return frozenset(self._prefix(key))

    def _prefix(self, key: Key) -> Iterator[Run]:
        """The runs that lead to `key`, deepest first. Ghosts may claim a cycle: only residents are a forest."""
        seen: set[Run] = set()
        run = self._forest.run_of.get(key)
        while run is not None and run not in seen:
            yield run
            seen.add(run)
            run = self._forest.run_of.get(run.parent)

    # --- uses ---------------------------------------------------------------------------------------

    def _walk(self, keys: list[Key], now_s: float) -> tuple[list[Run], set[Run]]:
        """The runs that `keys` consists of, head first, and which of them are new (and in no cohort)."""
        run_of = self._forest.run_of
        path: dict[Run, None] = {}
        new: set[Run] = set()
        parent, at = Key(b""), 0
        while at < len(keys):
            run = run_of.get(keys[at])
            if run is None:
                run = self._unseen(keys, at, parent, now_s)
                new.add(run)
                above = run_of.get(parent)
                if above is not None and above.keys[-1] == parent:
                    above.fan += 1
                size = len(run.keys)
            else:
                if run.keys[0] != keys[at]:
                    self._split(run, run.keys.index(keys[at]), now_s)
                size = common(keys, at, run.keys)
                if size < len(run.keys):
                    run = self._split(run, size, now_s)
            path[run] = None
            parent, at = run.keys[-1], at + size
        return list(path), new

    def _unseen(self, keys: list[Key], at: int, parent: Key, now_s: float) -> Run:
        """A new run of the untracked keys from `at` on; without residents, class and cohort."""
        run_of = self._forest.run_of
        # One that is tracked below them has lost its prefix, or came before it.
        rest = keys[at : run_of.first_known(keys, at + 1)]
        del rest[self._forest.before_awaited(rest) :]
        run = Run(rest, parent, now_s, 0, NO_COHORT, 0.0)
        self._forest.add(run)
        return run

    def _use(self, path: list[Run], new: set[Run], turn: int, hints: UseHints, now_s: float) -> None:
        """Count the use of `path` and give its runs the history that they have now."""
        added = sum(len(run.keys) for run in new)
        bucket = self._additions.bucket(added)
        self._additions.count(added)
        hint = hint_class(hints)
        used: list[Run] = []
        for run in path:
            hits, class_ = 0, chain_class(0, turn > 0, bucket) + hint * BASE
            if run not in new:
                self._log.use(run.cohort, run.weight * len(run.keys), now_s)
                self._queues.drop(run)
                hits = min(run.hits + 1, HITS_MAX)
                if run.fan > TRUNK_FAN:
                    # Others use it: what is said of one chain says nothing of it.
                    class_ = trunk_class(now_s - run.used_s)
                else:
                    known = NOTHING_SAID if hints.one_shot and not hints.closed else hint
                    class_ = chain_class(hits, turn > 0, bucket) + known * BASE
            run.used_s, run.hits, run.class_, run.turn = now_s, hits, class_, turn
            if used and self._alike(used[-1], run):
                used[-1] = self._forest.join(used[-1], run)
            else:
                used.append(run)
        cohorts: dict[int, Cohort] = {}
        for run in reversed(used):
            cohort = cohorts.get(run.class_)
            if cohort is None:
                cohort = cohorts[run.class_] = self._log.start(run.class_, now_s)
            run.cohort = cohort
            run.weight = len(run.keys) ** -0.5
            self._log.enter(cohort, run.weight * len(run.keys))
            if run.resident:
                self._queues.push(run, now_s)
            if run.resident < len(run.keys):
                self._forest.remember(run)

    def _alike(self, head: Run, tail: Run) -> bool:
        """Whether two neighbours can be one run from now on."""
        return (
            head.class_ == tail.class_
            and head.hits == tail.hits
            and head.fan <= 1
            and head.keys[-1] == tail.parent
            and (head.resident == len(head.keys) or not tail.resident)
            and self._forest.below.get(tail.parent, 0) == (1 if tail.resident else 0)
        )

    def _split(self, run: Run, size: int, now_s: float) -> Run:
        """See Forest.split; the head takes the place in the queue when the rest has no residents."""
        head = self._forest.split(run, size)
        if not run.resident:
            self._queues.drop(run)
            if head.resident:
                self._queues.push(head, now_s, oldest=True)
        return head

    # --- residency ----------------------------------------------------------------------------------

    def _enter(self, keys: list[Key], parent: Key, now_s: float) -> None:
        """`keys`, a path below `parent`, become resident."""
        run_of = self._forest.run_of
        at = 0
        while at < len(keys):
            run = run_of.get(keys[at])
            if run is None:
                fresh = keys[at : run_of.first_known(keys, at + 1)]
                run = self._unused(fresh[: self._forest.before_awaited(fresh)], parent, now_s)
            at += self._fill(run, keys, at, parent, now_s)
            parent = keys[at - 1]

    def _fill(self, run: Run, keys: list[Key], at: int, parent: Key, now_s: float) -> int:
        """The keys of `run` that follow each other from `keys[at]` on become resident; their number."""
        start = run.resident if run.resident < len(run.keys) and run.keys[run.resident] == keys[at] else None
        if start is None:
            start = run.keys.index(keys[at])
        if start < run.resident:
            return min(common(keys, at, run.keys[start:]), run.resident - start)
        if start > run.resident or (run.keys[start - 1] if start else run.parent) != parent:
            # Below something absent, or it was seen below another key, by mistake.
            if start:
                self._split(run, start, now_s)
            if parent in run.keys:
                run = self._split(run, 1, now_s)
            run.parent = parent
            start = 0
        size = common(keys, at, run.keys[start:] if start else run.keys)
        if not run.resident:
            above = self._forest.run_of.get(run.parent)
            if above is not None and above.keys[-1] != run.parent:
                self._split(above, above.keys.index(run.parent) + 1, now_s)
            self._forest.shield(run.parent)
        run.resident += size
        self._resident += size
        if not run.queued:
            self._queues.push(run, now_s)
        if run.resident == len(run.keys):
            self._forest.forgettable.pop(run, None)
        return size

    def _unused(self, keys: list[Key], parent: Key, now_s: float) -> Run:
        """The run of keys that no request named: generated by the request that used their parent."""
        above = self._forest.run_of.get(parent)
        if above is not None and above.keys[-1] == parent and not above.fan and parent not in self._forest.below:
            self._forest.extend(above, keys)
            self._log.enter(above.cohort, above.weight * len(keys))
            self._forest.remember(above)
            return above
        turn, class_ = 0, chain_class(0, later_turn=False, new_bucket=self._additions.bucket(len(keys)))
        if above is not None and above.keys[-1] == parent:
            above.fan += 1
            turn = above.turn
        run = Run(keys, parent, now_s, class_, self._log.start(class_, now_s), len(keys) ** -0.5)
        run.turn = turn
        self._log.enter(run.cohort, run.weight * len(keys))
        self._forest.add(run)
        self._forest.remember(run)
        return run

    def _take(self, run: Run, count: int, protected: Container[Key]) -> list[Key]:
        """The last `count` resident keys of `run` leave, the deepest first; fewer when one is protected."""
        taken = run.keys[max(0, run.resident - count) : run.resident]
        taken.reverse()
        stays = next(compress(counting(), map(protected.__contains__, taken)), len(taken))
        del taken[stays:]
        if taken:
            run.resident -= len(taken)
            self._forest.forgettable.setdefault(run)
        return taken

    def _childless(self, parent: Key, now_s: float) -> None:
        """A run below `parent` has no residents any more: `parent` may be free to leave."""
        if self._forest.unshield(parent):
            above = self._forest.run_of.get(parent)
            if above is not None and above.resident and not above.queued:
                self._queues.push(above, now_s, oldest=True)

    def _reclass(self, run: Run, class_: int, now_s: float) -> None:
        """Move `run` to another class; it is as old as before."""
        weight = run.weight * len(run.keys)
        self._log.leave(run.cohort, weight)
        queued = run.queued
        self._queues.drop(run)
        run.class_ = class_
        run.cohort = self._log.start(class_, run.used_s)
        self._log.enter(run.cohort, weight)
        if queued:
            self._queues.push(run, now_s)

    def _forget(self) -> None:
        """Keep what is tracked within its bound, the longest unused ghosts first."""
        for run, count in self._forest.forget(self._tracked_max):
            self._log.leave(run.cohort, run.weight * count)
