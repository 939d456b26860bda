"""The table of cold pages of one node: what is in which page, and who leaves for whom.

    FREE    -> FILLING        the mover writes it (demotion)
    FILLING -> HELD | FREE    written, or not
    HELD    -> FREE           evicted or forgotten

A page that a mover still reads or writes when its chunk is gone is *doomed*: FREE when the mover ends.
One page holds one chunk. The policy knows positions only, as in warm, and hears of the same accesses, so
that both tiers rank by the same index.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from tieredkv.brain.changes import Changes
from tieredkv.brain.links import Links
from tieredkv.brain.moves import Demote, Pull
from tieredkv.brain.values import AdoptedChunk
from tieredkv.clock import Clock
from tieredkv.policy.admission import Admission
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key

EXPIRIES_MAX = 256
"""Positions that one step lets go for their age."""


class Copies(Enum):
    """What becomes of a cold copy while its chunk is in warm as well."""

    CLEAN = "clean"  # kept, and leaves by its index alone: the next demotion needs no write
    SPARE = "spare"  # kept as well, but first to leave when cold needs room
    NONE = "none"  # given up: a chunk is in one tier only
    ALL = "all"  # as CLEAN, and made of whatever is stored, when it is stored


class PageState(IntEnum):
    """What a page is used for."""

    FREE = 0
    FILLING = 1
    HELD = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A position that warm gives up: slots by group."""

    key: Key
    parent: Key
    position: int
    slots: tuple[tuple[int, int], ...]


class ColdTable:
    """See the module. `pages` chunks fit in; `policy` is empty."""

    def __init__(
        self,
        *,
        pages: int,
        groups: int,
        policy: EvictionPolicy,
        admission: Admission,
        copies: Copies,
        clock: Clock,
        next_generation: int = 1,
        ttl_s: float | None = None,
    ) -> None:
        """What nobody used for `ttl_s` seconds leaves with `expire`."""
        assert pages >= 0
        assert len(policy) == 0
        self.pages = pages
        self.policy = policy
        self.evictions = 0
        self.changes = Changes()
        self._admission = admission
        self._copies = copies
        self._clock = clock
        self.groups = groups
        self._page_of: tuple[dict[Key, int], ...] = tuple({} for _ in range(groups))
        self._links = Links()
        self._state = [PageState.FREE] * pages
        self._generation = [0] * pages
        self._next_generation = next_generation
        self._readers = [0] * pages
        self._doomed: set[int] = set()
        self._free = list(range(pages - 1, -1, -1))
        # Positions that are in warm too, and can leave without loss: the youngest last.
        self._spare: dict[Key, None] = {}
        self._ttl_s = ttl_s
        # When each position was used last, the longest ago first; kept only if there is a limit.
        self._used_s: OrderedDict[Key, float] = OrderedDict()

    @property
    def free(self) -> int:
        """Number of FREE pages."""
        return len(self._free)

    def page(self, group: int, key: Key) -> int | None:
        """The page that holds a chunk, None if it is absent."""
        return self._page_of[group].get(key)

    def held(self, group: int) -> Container[Key]:
        """The chunks of a group that are here."""
        return self._page_of[group]

    def knows(self, key: Key) -> bool:
        """Whether a chunk of this position is here."""
        return key in self._links

    def link(self, key: Key) -> tuple[Key, int]:
        """Parent and position of a key that is here."""
        return self._links[key]

    def generation(self, page: int) -> int:
        """The tenancy of a page that is not FREE."""
        return self._generation[page]

    def holds(self, candidate: Candidate) -> bool:
        """Whether all of its chunks are here already."""
        return all(candidate.key in self._page_of[group] for group, _ in candidate.slots)

    def adopt(self, chunks: Sequence[AdoptedChunk]) -> None:
        """Take over what a former sidecar left; their `slot` is the page. Only before anything else.

        Of two that claim the same chunk the newer tenancy counts.
        """
        taken: dict[tuple[int, Key], AdoptedChunk] = {}
        for chunk in sorted(chunks, key=lambda chunk: chunk.generation, reverse=True):
            name = (chunk.group, chunk.key)
            if name not in taken and self._links.add(chunk.key, chunk.parent, chunk.position):
                taken[name] = chunk
        pages = {chunk.slot for chunk in taken.values()}
        self._free = [page for page in self._free if page not in pages]
        # The older tenancy of a chain is its head.
        for chunk in reversed(taken.values()):
            assert chunk.generation < self._next_generation
            self._state[chunk.slot] = PageState.HELD
            self._generation[chunk.slot] = chunk.generation
            self._page_of[chunk.group][chunk.key] = chunk.slot
            self.changes.entered(chunk.group, [chunk.key], [chunk.slot])
        keys = dict.fromkeys(chunk.key for chunk in reversed(taken.values()))
        self.policy.insert(list(keys), [self._links[key][0] for key in keys], self._clock.now_s())
        self._touch(keys)

    # --- demotion -----------------------------------------------------------------------------------

    def admit(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those of `candidates` (heads first within a chain) that shall be written; there is a page for each
        chunk that they lack here.
        """
        if not candidates:
            return []
        verdicts = self.would_admit([one.key for one in candidates], [one.parent for one in candidates])
        # A position of which a part is here gets the rest.
        taken = [one for one, verdict in zip(candidates, verdicts, strict=True) if verdict or one.key in self._links]
        self._make_room(sum(self._lacking(one) for one in taken))
        left = len(self._free)
        kept: list[Candidate] = []
        for one in taken:
            left -= self._lacking(one)
            if left < 0:
                break
            kept.append(one)
        return kept

    def would_admit(self, keys: Sequence[Key], parents: Sequence[Key]) -> list[bool]:
        """Which of these positions (heads first within a chain) are worth new pages; what is here is not."""
        new = [row for row, key in enumerate(keys) if key not in self._links]
        room = (len(self._free) + len(self._spare)) // self.groups
        admitted = self._admission.admit(
            [keys[row] for row in new],
            [parents[row] for row in new],
            max(0, len(new) - room),
            self._clock.now_s(),
        )
        verdicts = [False] * len(keys)
        for row, verdict in zip(new, admitted, strict=True):
            verdicts[row] = verdict
        return verdicts

    def fill(self) -> int:
        """FREE -> FILLING: a page of a new tenancy."""
        page = self._free.pop()
        self._state[page] = PageState.FILLING
        self._generation[page] = self._next_generation
        self._next_generation += 1
        return page

    def unfill(self, page: int) -> None:
        """FILLING -> FREE: the mover did not write it, or does not write it any more."""
        assert self._state[page] == PageState.FILLING
        self._doomed.discard(page)
        self._release(page)

    def filled(self, job: Demote | Pull, rows: Sequence[int]) -> None:
        """FILLING -> HELD for these rows of the job; FREE where the chunk is not wanted (any more)."""
        keys: list[Key] = []
        parents: list[Key] = []
        for row in rows:
            page, group, key = job.pages[row], job.groups[row], job.keys[row]
            assert self._state[page] == PageState.FILLING
            known = key in self._page_of[group]
            if page in self._doomed or known or not self._links.add(key, job.parents[row], job.positions[row]):
                self.unfill(page)
                continue
            self._state[page] = PageState.HELD
            self._page_of[group][key] = page
            self.changes.entered(group, [key], [page])
            keys.append(key)
            parents.append(job.parents[row])
        if keys:
            self.policy.insert(keys, parents, self._clock.now_s())
            self._touch(keys)

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        """A request used `chain`."""
        self.policy.access(chain, now_s, hints)
        if self._ttl_s is not None:
            self._touch([key for key in chain if key in self._links])

    def expire(self) -> None:
        """Let go of what nobody used for too long, some at a time."""
        if self._ttl_s is None:
            return
        oldest_s = self._clock.now_s() - self._ttl_s
        for _ in range(EXPIRIES_MAX):
            key = next(iter(self._used_s), None)
            if key is None or self._used_s[key] > oldest_s:
                return
            self.evictions += 1
            self._drop(key)

    # --- promotion ----------------------------------------------------------------------------------

    def read(self, pages: Iterable[int]) -> None:
        """A mover reads these HELD pages."""
        for page in pages:
            assert self._state[page] == PageState.HELD
            self._readers[page] += 1

    def end_read(self, pages: Iterable[int]) -> None:
        """It does not read them any more."""
        for page in pages:
            self._readers[page] -= 1
            if not self._readers[page] and page in self._doomed:
                self._doomed.remove(page)
                self._release(page)

    def damaged(self, chunks: Iterable[tuple[int, Key, int]]) -> None:
        """These chunks (group, key, page) did not prove themselves: their positions are forgotten."""
        for group, key, page in chunks:
            if self._page_of[group].get(key) == page:
                self._drop(key)

    # --- what is in warm too ------------------------------------------------------------------------

    def entered_warm(self, keys: Iterable[Key]) -> None:
        """Chunks of these positions are in warm now."""
        if self._copies in {Copies.CLEAN, Copies.ALL}:
            return
        known = [key for key in keys if key in self._links]
        if self._copies is Copies.SPARE:
            self._spare.update(dict.fromkeys(known))
        else:
            # Tails first: taken from the end of a run, as victims are.
            for key in reversed(known):
                self._drop(key)

    def left_warm(self, keys: Iterable[Key]) -> None:
        """These positions are in warm no more."""
        for key in filter(self._spare.__contains__, keys):
            del self._spare[key]

    def clear(self) -> None:
        """Forget every chunk; what is on its way in is not wanted either."""
        for pages in self._page_of:
            self.changes.left(pages.values())
            for page in pages.values():
                self._vacate(page)
            pages.clear()
        self._doomed.update(page for page, state in enumerate(self._state) if state == PageState.FILLING)
        self._links.clear()
        self._spare.clear()
        self._used_s.clear()
        self.policy.clear()

    def counts(self) -> dict[PageState, int]:
        """Number of pages in each state. O(pages)."""
        return {state: self._state.count(state) for state in PageState}

    def __len__(self) -> int:
        """Number of positions."""
        return len(self._links)

    def check(self, in_warm: Iterable[Key], filling: Sequence[int], read: Sequence[int]) -> None:
        """Assert every invariant, given what is in warm and the pages of the jobs in flight. O(pages)."""
        self.policy.check()
        self._links.check()
        held: list[int] = []
        known: set[Key] = set()
        for pages in self._page_of:
            held += pages.values()
            known |= pages.keys()
        assert len(set(held)) == len(held), "two chunks in one page"
        assert all(self._state[page] == PageState.HELD and page not in self._doomed for page in held)
        assert len(self.policy) == len(self._links) == len(known)
        assert all(key in self.policy and key in self._links for key in known)
        assert sorted(self._free) == [page for page, state in enumerate(self._state) if state == PageState.FREE]
        assert sorted(filling) == [page for page, state in enumerate(self._state) if state == PageState.FILLING]
        readers = [0] * self.pages
        for page in read:
            readers[page] += 1
        assert readers == self._readers
        unheld = {page for page, state in enumerate(self._state) if state == PageState.HELD}.difference(held)
        assert all(self._readers[page] for page in unheld), "a page is lost"
        assert unheld <= self._doomed <= unheld.union(filling)
        used = [self._generation[page] for page, state in enumerate(self._state) if state != PageState.FREE]
        assert len(set(used)) == len(used)
        assert self._used_s.keys() == (known if self._ttl_s is not None else set())
        assert list(self._used_s.values()) == sorted(self._used_s.values())
        both = known.intersection(in_warm)
        assert set(self._spare) == (both if self._copies is Copies.SPARE else set())
        assert not both or self._copies is not Copies.NONE, "a chunk is in both tiers"

    def _lacking(self, candidate: Candidate) -> int:
        return sum(candidate.key not in self._page_of[group] for group, _ in candidate.slots)

    def _make_room(self, pages: int) -> None:
        """Make `pages` FREE, or as many as may be: first what is in warm anyhow, then by the policy."""
        while len(self._free) < pages and self._spare:
            # The one that came to warm last will be the last to need its copy.
            key, _ = self._spare.popitem()
            self.policy.remove(key)
            self._remove(key)
        while len(self._free) < pages:
            missing = pages - len(self._free)
            victims = self.policy.evict(-(-missing // self.groups), (), self._clock.now_s())
            if not victims:
                return
            self.evictions += len(victims)
            for key in victims:
                self._remove(key)

    def _drop(self, key: Key) -> None:
        self.policy.remove(key)
        self._remove(key)

    def _remove(self, key: Key) -> None:
        """The policy tracks `key` no more: its pages are FREE, or will be."""
        self._links.remove(key)
        self._spare.pop(key, None)
        self._used_s.pop(key, None)
        for pages in self._page_of:
            page = pages.pop(key, None)
            if page is not None:
                self.changes.left((page,))
                self._vacate(page)

    def _touch(self, keys: Iterable[Key]) -> None:
        if self._ttl_s is not None:
            now_s = self._clock.now_s()
            for key in keys:
                self._used_s[key] = now_s
                self._used_s.move_to_end(key)

    def _vacate(self, page: int) -> None:
        if self._readers[page]:
            self._doomed.add(page)
        else:
            self._release(page)

    def _release(self, page: int) -> None:
        self._state[page] = PageState.FREE
        self._free.append(page)
