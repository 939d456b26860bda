"""Shadow selection: small caches of other policies run beside the live one, on a sample of the requests.

What is sampled are chains: a conversation is in the sample with all its requests or with none. A shadow has
the sample's part of the capacity and stores whatever its requests miss, so that the hits of shadows compare
as those of whole caches would. The live policy has a shadow too: only shadows are compared. Another policy
becomes the live one when its shadow had clearly more hits in two periods that follow each other.

A switch moves all residents into the new policy in one call, the order of the old one kept. It happens in
`maintain`, and takes microseconds for each resident.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, Protocol
from zlib import crc32

from tieredkv.policy.admission import Admission
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key

ADVANTAGE_MIN: Final = 0.03
"""Part of the live policy's hits that another must have more."""

PERIODS: Final = 2
"""Periods that follow each other in which it must."""

BATCH_MAX: Final = 64
"""Chunks that a shadow stores before it makes room, at most."""

ENDS_MAX: Final = 100_000
"""Ends of sampled and other chains that are remembered, to know their continuations."""


class Chosen(Protocol):
    """Who leaves and who enters."""

    @property
    def eviction(self) -> EvictionPolicy: ...

    @property
    def admission(self) -> Admission: ...


CONTINUED_MAX: Final = 3
"""More requests than this do not go on after the same request of one conversation."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried: `candidates` beside the first policy, on the part `sample` of all chains.

    A period is half of `requests` sampled requests.
    """

    candidates: tuple[str, ...]
    sample: float
    requests: int


class _End:
    """Where a chain ended: whether its conversation is sampled, and how often another chain went on there."""

    __slots__ = ("continued", "sampled")

    def __init__(self, sampled: bool) -> None:
        self.sampled = sampled
        self.continued = 0


class Sample:
    """Which chains are in the sample: by the hash of the last key of a conversation's first request.

    Chains of many conversations share their heads, so a head cannot tell them apart. A request that
    goes on after the end of a former one belongs to its conversation, unless many did: what ended there
    was the common head of many conversations.
    """

    def __init__(self, part: float) -> None:
        assert 0 < part <= 1
        self._limit = int(part * 2**32)
        self._ends: OrderedDict[Key, _End] = OrderedDict()

    def has(self, chain: Sequence[Key]) -> bool:
        """Whether this request's conversation is sampled. `chain` is not empty."""
        sampled = crc32(chain[-1]) < self._limit
        for key in filter(self._ends.__contains__, reversed(chain)):
            end = self._ends[key]
            end.continued += 1
            if end.continued <= CONTINUED_MAX:
                sampled = end.sampled
                break
        self._ends.setdefault(chain[-1], _End(sampled))
        self._ends.move_to_end(chain[-1])
        if len(self._ends) > ENDS_MAX:
            self._ends.popitem(last=False)
        return sampled


class ShadowCache:
    """One policy with a cache of `capacity` chunks that holds nothing. `hits` counts prefix hits."""

    def __init__(self, chosen: Chosen, capacity: int) -> None:
        self._chosen = chosen
        self._capacity = capacity
        self.hits = 0

    def serve(self, chain: Sequence[Key], now_s: float, hints: UseHints) -> None:
        """Use what is there of `chain`, store the rest."""
        policy, admission = self._chosen.eviction, self._chosen.admission
        found = next((depth for depth, key in enumerate(chain) if key not in policy), len(chain))
        self.hits += found
        policy.access(chain, now_s, hints)
        batch_max = batch_for(self._capacity)
        for start in range(found, len(chain), batch_max):
            keys = chain[start : start + batch_max]
            parents = [chain[start - 1] if start else Key(b""), *keys[:-1]]
            excess = max(0, len(policy) + len(keys) - self._capacity)
            verdicts = admission.admit(keys, parents, excess, now_s)
            policy.insert(list(compress(keys, verdicts)), list(compress(parents, verdicts)), now_s)
            if len(policy) > self._capacity:
                policy.evict(len(policy) - self._capacity, (), now_s)
            if keys[-1] not in policy:
                return

    @property
    def policy(self) -> EvictionPolicy:
        """The policy that is tried."""
        return self._chosen.eviction


def batch_for(capacity: int) -> int:
    """How many chunks a shadow stores before it makes room: slots that its policy has beyond its capacity."""
    return max(1, min(BATCH_MAX, capacity // 8))


class Shadow:
    """The live policy, for eviction and admission, and the shadows beside it.

    `make(name, capacity)` makes a policy; `first` is the name of the one to begin with.
    """

    def __init__(self, first: str, capacity: int, trial: Trial, make: Callable[[str, int], Chosen]) -> None:
        assert trial.requests >= PERIODS
        self._capacity = capacity
        self._trial = trial
        self._make = make
        self._first = first
        self._start()

    def _start(self) -> None:
        self.live = self._first
        self._chosen = self._make(self._first, self._capacity)
        self._parent: dict[Key, Key] = {}
        self._sample = Sample(self._trial.sample)
        capacity = max(1, int(self._capacity * self._trial.sample))
        self._shadows = {
            name: ShadowCache(self._make(name, capacity + batch_for(capacity)), capacity)
            for name in dict.fromkeys((self._first, *self._trial.candidates))
        }
        self._begin_contest()

    def _begin_contest(self) -> None:
        self._requests = 0
        # The policies that were clearly better in all periods so far; None: no period is over.
        self._better: set[str] | None = None
        self._periods = 0
        for shadow in self._shadows.values():
            shadow.hits = 0

    # --- EvictionPolicy and Admission ---------------------------------------------------------------

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        """See EvictionPolicy."""
        self._chosen.eviction.access(chain, now_s, hints)
        if chain and self._sample.has(chain):
            self._requests += 1
            for shadow in self._shadows.values():
                shadow.serve(chain, now_s, hints)

    def admit(self, keys: Sequence[Key], parents: Sequence[Key], excess: int, now_s: float) -> list[bool]:
        """See Admission."""
        return self._chosen.admission.admit(keys, parents, excess, now_s)

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        """See EvictionPolicy."""
        for key, parent in zip(keys, parents, strict=True):
            self._parent.setdefault(key, parent)
        self._chosen.eviction.insert(keys, parents, now_s)

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        """See EvictionPolicy."""
        victims = self._chosen.eviction.evict(count, protected, now_s)
        for victim in victims:
            del self._parent[victim]
        return victims

    def advise(self, key: Key, hints: UseHints, now_s: float) -> None:
        """See EvictionPolicy."""
        self._chosen.eviction.advise(key, hints, now_s)
        for shadow in self._shadows.values():
            shadow.policy.advise(key, hints, now_s)

    def maintain(self, now_s: float) -> None:
        """See EvictionPolicy: the moment for a switch."""
        self._chosen.eviction.maintain(now_s)
        for shadow in self._shadows.values():
            shadow.policy.maintain(now_s)
        if self._requests >= self._trial.requests // PERIODS:
            self._end_period(now_s)

    def remove(self, key: Key) -> None:
        """See EvictionPolicy."""
        del self._parent[key]
        self._chosen.eviction.remove(key)

    def clear(self) -> None:
        """See EvictionPolicy. The live policy and what was learnt of the others stay."""
        self._parent.clear()
        self._chosen.eviction.clear()
        for shadow in self._shadows.values():
            shadow.policy.clear()

    def switch(self, name: str, now_s: float) -> None:
        """`name` is the live policy from now on."""
        leaving = self._chosen.eviction.evict(len(self._parent), (), now_s)
        assert len(leaving) == len(self._parent)
        # What would have left last comes first: it is worth most, and heads precede their tails.
        keys = leaving[::-1]
        self.live = name
        self._chosen = self._make(name, self._capacity)
        self._chosen.eviction.insert(keys, [self._parent[key] for key in keys], now_s)

    def __contains__(self, key: Key) -> bool:
        return key in self._parent

    def __len__(self) -> int:
        return len(self._parent)

    def check(self) -> None:
        """See EvictionPolicy."""
        live = self._chosen.eviction
        live.check()
        assert len(live) == len(self._parent)
        assert all(key in live for key in self._parent)
        assert self.live in self._shadows
        for shadow in self._shadows.values():
            shadow.policy.check()

    # --- parts --------------------------------------------------------------------------------------

    def _end_period(self, now_s: float) -> None:
        hits = {name: shadow.hits for name, shadow in self._shadows.items()}
        needed = (1 + ADVANTAGE_MIN) * hits[self.live]
        better = {name for name, count in hits.items() if count > needed}
        self._better = better if self._better is None else self._better & better
        self._periods += 1
        self._requests = 0
        for shadow in self._shadows.values():
            shadow.hits = 0
        if not self._better:
            self._begin_contest()
        elif self._periods >= PERIODS:
            self.switch(max(sorted(self._better), key=hits.__getitem__), now_s)
            self._begin_contest()
