"""Least recently used, in vLLM's order: one use of a chain leaves its deepest position the oldest.

It is exact, position by position, but its bookkeeping is by *runs*: stretches of a chain that were used
together. A use of a long chain moves a few runs, not thousands of keys; a store behind a long prefix
refreshes that prefix in the same way.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Final

from tieredkv.policy.base import PlainPolicy
from tieredkv.policy.chains import common
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.policy.keymap import KeyMap
from tieredkv.types import Key

RUN_KEYS_MIN: Final = 16
"""A use that touches runs shorter than this on average joins them."""


class _Run:
    """A stretch of one chain, head first: `keys[i]` is the parent of `keys[i + 1]`, `parent` of `keys[0]`.

    Runs form a ring in the order of their last use. Within a run the last key is the oldest.
    """

    __slots__ = ("keys", "older", "parent", "younger")

    def __init__(self, keys: list[Key], parent: Key) -> None:
        self.keys = keys
        self.parent = parent
        self.older = self
        self.younger = self

    def leave(self) -> None:
        """Take it out of the ring."""
        self.older.younger = self.younger
        self.younger.older = self.older

    def enter(self, younger: "_Run") -> None:
        """Put it into the ring, just older than `younger`."""
        self.older, self.younger = younger.older, younger
        self.older.younger = self
        younger.older = self


class LRU(PlainPolicy):
    """Recency order of the resident positions; the time of a use does not matter, only its turn.

    Using a key uses its resident ancestors too, so a key is always older than its parent, whatever
    the order of calls. `_branches` counts the runs below each key (resident or not): that shields a
    parent whose child is older but protected.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self._capacity = capacity
        self._run_of: KeyMap[_Run] = KeyMap()
        self._branches: dict[Key, int] = {}
        # Absent parents of runs. Without any, a chain has nothing resident past its first absent key.
        self._awaited: set[Key] = set()
        # Not a run: the ring's gap. Its `younger` is the oldest run, its `older` the youngest.
        self._ends = _Run([], Key(b""))

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        del now_s, hints
        keys = list(chain)
        used: dict[_Run, None] = {}
        at = 0
        while at < len(keys):
            run = self._run_of.get(keys[at])
            if run is None:
                at = self._run_of.first_known(keys, at) if self._awaited else len(keys)
                continue
            if run in used:
                at += 1
                continue
            same = common(keys, at, run.keys)
            # A chain that enters a run below its head left out its own ancestors: they are used too.
            run = self._head(run, same or run.keys.index(keys[at]) + 1)
            self._use(run.parent, used, {})
            used[run] = None
            at += same or 1
        self._refresh(self._joined(used))

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        del now_s
        used: dict[_Run, None] = {}
        if keys and parents[1:] == keys[:-1] and self._run_of.none_of(keys):
            # The usual batch: one path, all of it new.
            self._use(parents[0], used, {})
            self._enter(parents[0], list(keys), used)
        else:
            absent = {key: parent for key, parent in zip(keys, parents, strict=True) if key not in self._run_of}
            for key in keys:
                self._use(key, used, absent)
        self._refresh(used)
        assert len(self._run_of) <= self._capacity

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        del now_s
        victims: list[Key] = []
        run = self._ends.younger
        while run is not self._ends and len(victims) < count:
            younger = run.younger
            keys = run.keys
            # One that must stay shields all above it in its run.
            while keys and len(victims) < count and keys[-1] not in self._branches and keys[-1] not in protected:
                victims.append(keys.pop())
            if not keys:
                self._drop(run)
            run = younger
        self._run_of.discard(victims)
        return victims

    def remove(self, key: Key) -> None:
        run = self._run_of[key]
        run = self._head(run, run.keys.index(key) + 1)
        run.keys.pop()
        self._run_of.discard((key,))
        if key in self._branches:
            self._awaited.add(key)
        if not run.keys:
            self._drop(run)

    def clear(self) -> None:
        self._run_of.clear()
        self._branches.clear()
        self._awaited.clear()
        self._ends = _Run([], Key(b""))

    def __contains__(self, key: Key) -> bool:
        return key in self._run_of

    def __len__(self) -> int:
        return len(self._run_of)

    def check(self) -> None:
        assert len(self._run_of) <= self._capacity
        branches: dict[Key, int] = {}
        turn: dict[Key, int] = {}
        seen = 0
        run = self._ends.younger
        while run is not self._ends:
            assert run.keys
            assert run.younger.older is run
            branches[run.parent] = branches.get(run.parent, 0) + 1
            for key in reversed(run.keys):
                assert self._run_of[key] is run
                turn[key] = seen
                seen += 1
            run = run.younger
        assert seen == len(self._run_of) == len(turn)
        assert branches == self._branches
        assert self._awaited == {parent for parent in branches if parent and parent not in self._run_of}
        for run in set(self._run_of.values()):
            assert turn.get(run.parent, seen) > turn[run.keys[0]], "a key is younger than its parent"

    # --- runs ---------------------------------------------------------------------------------------

    def _use(self, key: Key, used: dict[_Run, None], absent: dict[Key, Key]) -> None:
        """Use `key` and its ancestors, up to what `used` has: their runs enter it, heads first.

        Keys of `absent` (with their parents) become resident on the way, and leave it.
        """
        parts: list[_Run | tuple[Key, list[Key]]] = []
        while True:
            path: list[Key] = []
            while key in absent:
                path.append(key)
                key = absent.pop(key)
            if path:
                path.reverse()
                parts.append((key, path))
            run = self._run_of.get(key)
            if run is None or run in used:
                break
            run = self._head(run, len(run.keys) if run.keys[-1] == key else run.keys.index(key) + 1)
            parts.append(run)
            key = run.parent
        for part in reversed(parts):
            if isinstance(part, _Run):
                used[part] = None
            else:
                self._enter(*part, used)

    def _enter(self, parent: Key, path: list[Key], used: dict[_Run, None]) -> None:
        """The keys of `path`, children of `parent`, become resident: used after all that is in `used`."""
        last = next(reversed(used), None)
        if last is not None and last.keys[-1] == parent:
            last.keys += path
        else:
            last = self._new_run(path, parent, self._ends)
            used[last] = None
        self._run_of.assign(path, last)
        self._awaited.difference_update(path)

    def _head(self, run: _Run, size: int) -> _Run:
        """The first `size` keys of `run` as a run of their own, in the same place."""
        keys = run.keys
        if size == len(keys):
            return run
        if size * 2 > len(keys):
            tail = self._new_run(keys[size:], keys[size - 1], run)
            del keys[size:]
            self._run_of.assign(tail.keys, tail)
            return run
        head = _Run(keys[:size], run.parent)
        head.enter(run.younger)
        del keys[:size]
        run.parent = head.keys[-1]
        self._branches[run.parent] = self._branches.get(run.parent, 0) + 1
        self._run_of.assign(head.keys, head)
        return head

    def _joined(self, used: dict[_Run, None]) -> Iterable[_Run]:
        """`used`, where too many short runs follow each other as one run."""
        if len(used) * RUN_KEYS_MIN <= sum(len(run.keys) for run in used):
            return used
        joined: list[_Run] = []
        for run in used:
            if joined and joined[-1].keys[-1] == run.parent:
                joined[-1].keys += run.keys
                self._run_of.assign(run.keys, joined[-1])
                self._drop(run)
            else:
                joined.append(run)
        return joined

    def _refresh(self, used: Iterable[_Run]) -> None:
        """Make these runs the youngest, the first of them the very youngest."""
        place = self._ends
        for run in used:
            run.leave()
            run.enter(place)
            place = run

    def _new_run(self, keys: list[Key], parent: Key, younger: _Run) -> _Run:
        run = _Run(keys, parent)
        run.enter(younger)
        self._branches[parent] = self._branches.get(parent, 0) + 1
        if parent and parent not in self._run_of:
            self._awaited.add(parent)
        return run

    def _drop(self, run: _Run) -> None:
        run.leave()
        left = self._branches[run.parent] - 1
        if left:
            self._branches[run.parent] = left
        else:
            del self._branches[run.parent]
            self._awaited.discard(run.parent)
