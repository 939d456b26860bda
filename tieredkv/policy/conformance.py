"""The conformance suite of eviction policies, for those of this package and for yours.

    from tieredkv.policy import EvictionPolicy
    from tieredkv.policy.conformance import PolicySuite

    class TestMine(PolicySuite):
        def make(self, capacity: int) -> EvictionPolicy:
            return Mine(capacity)

pytest finds and runs it. It needs hypothesis, which tieredkv itself does not.

The oracle is a dict with losses: whatever a policy decides, it tracks exactly what was inserted and has
not left since, never more than its capacity, and what leaves obeys the rules of `EvictionPolicy`.
"""

from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("tieredkv.policy.conformance needs hypothesis: pip install hypothesis pytest") from error

CAPACITY: Final = 12
TREE: tuple[tuple[int, ...], ...] = (
    (0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 1), (0, 1), (0, 1, 0), (0, 1, 0, 0),
    (1,), (1, 0), (1, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0, 0), (2,), (2, 0), (2, 1), (2, 1, 0),
)  # fmt: skip
"""A small forest: a position is the path of branches that leads to it."""


def key_of(path: tuple[int, ...]) -> Key:
    """Key of a position; empty above the start."""
    return Key(sha256(repr(path).encode()).digest() if path else b"")


PARENT = {key_of(path): key_of(path[:-1]) for path in TREE}
KEYS = sorted(PARENT, key=list(PARENT).index)
LEAVES = [path for path in TREE if not any(other[:-1] == path for other in TREE)]


def chain_to(path: tuple[int, ...]) -> list[Key]:
    """All keys from the start to `path`."""
    return [key_of(path[: depth + 1]) for depth in range(len(path))]


@dataclass(frozen=True, slots=True)
class Access:
    """A request uses `chain`. Nonsense is among them: keys of a chain out of order, with gaps, twice."""

    chain: tuple[Key, ...]
    hints: UseHints


@dataclass(frozen=True, slots=True)
class Insert:
    """`keys` are stored, after room was made for them. Orphans and nonsense are among them."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """Room is wanted."""

    count: int
    protected: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Advise:
    """The application says something of the chain that ends in `key`."""

    key: Key
    hints: UseHints


@dataclass(frozen=True, slots=True)
class Remove:
    """A key is gone."""

    key: Key


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes. Between any two of these it stands still."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Maintain:
    """A good moment for other work."""


@dataclass(frozen=True, slots=True)
class Clear:
    """All is gone."""


NOTHING: Final[frozenset[Key]] = frozenset()

Operation = Access | Insert | Evict | Advise | Remove | Wait | Maintain | Clear

_chains = st.sampled_from([tuple(chain_to(path)) for path in TREE])
_keys = st.sampled_from(KEYS)
_hints = st.just(NO_HINTS) | st.builds(
    UseHints,
    session=st.sampled_from(["", "a", "b"]),
    closed=st.booleans(),
    return_within_s=st.none() | st.sampled_from([0.001, 20.0, 1e6]),
    keep=st.booleans(),
    one_shot=st.booleans(),
)
protections = st.frozensets(_keys, max_size=4)
operations = st.lists(
    st.one_of(
        st.builds(Access, _chains, _hints),
        st.builds(Insert, _chains),
        st.builds(Evict, st.integers(0, 4), protections),
        st.builds(Wait, st.sampled_from([0.001, 1.0, 30.0, 3600.0, 1e6])),
        st.builds(Remove, _keys),
        st.builds(Advise, _keys, _hints),
        st.builds(Maintain),
        st.builds(Clear),
        st.builds(Access, st.lists(_keys, max_size=6).map(tuple), _hints),
        st.builds(Insert, st.lists(_keys, max_size=4).map(tuple)),
    ),
    max_size=40,
)


class _Protected:
    """All that a policy may do with what is protected is to ask for a key."""

    def __init__(self, keys: AbstractSet[Key]) -> None:
        self._keys = keys

    def __contains__(self, key: object) -> bool:
        return key in self._keys


class Watched:
    """A policy and the dict with losses beside it; every rule is asserted at every call."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.resident: set[Key] = set()
        self._now_s = 0.0

    def apply(self, operation: Operation) -> list[Key]:
        """Do it; what it evicted, if it is an eviction."""
        match operation:
            case Access():
                self.access(list(operation.chain), operation.hints)
            case Insert():
                self.insert(list(operation.keys))
            case Evict():
                return self.evict(operation.count, operation.protected)
            case Advise():
                self.policy.advise(operation.key, operation.hints, self._now_s)
            case Remove():
                self.remove(operation.key)
            case Wait():
                self._now_s += operation.seconds
            case Maintain():
                self.policy.maintain(self._now_s)
            case Clear():
                self.clear()
        self.check()
        return []

    def access(self, chain: list[Key], hints: UseHints = NO_HINTS) -> None:
        """A request uses `chain`."""
        self.policy.access(chain, self._now_s, hints)
        self.check()

    def insert(self, keys: list[Key]) -> None:
        """Insert, after making room as the manager does; not at all if there is no room."""
        missing = len(self.resident | set(keys)) - self.capacity
        if missing > 0:
            self.evict(missing, set(keys))
        if len(self.resident | set(keys)) > self.capacity:
            return
        self.policy.insert(keys, [PARENT[key] for key in keys], self._now_s)
        self.resident |= set(keys)
        self.check()

    def evict(self, count: int, protected: AbstractSet[Key]) -> list[Key]:
        """The victims, after all that is promised of them was asserted."""
        before = set(self.resident)
        victims = self.policy.evict(count, _Protected(protected), self._now_s)
        assert len(victims) <= count, "more victims than wanted"
        assert len(set(victims)) == len(victims), "one victim twice"
        for victim in victims:
            assert victim in self.resident, "evicted what it did not have"
            assert victim not in protected, "evicted what is protected"
            assert not any(PARENT[key] == victim for key in self.resident), "evicted under a resident child"
            self.resident.remove(victim)
        assert before - set(victims) == self.resident
        if len(victims) < count:
            parents = {PARENT[key] for key in self.resident}
            left = [key for key in self.resident if key not in protected and key not in parents]
            assert not left, "kept what might leave"
        self.check()
        return victims

    def remove(self, key: Key) -> None:
        """Remove a resident key; nothing for another."""
        if key in self.resident:
            self.policy.remove(key)
            self.resident.remove(key)
            self.check()

    def clear(self) -> None:
        """Forget everything."""
        self.policy.clear()
        self.resident.clear()
        self.check()

    def check(self) -> None:
        """Exactly the resident keys are tracked, and the policy's own invariants hold."""
        self.policy.check()
        assert len(self.resident) <= self.capacity
        tracked = {key for key in KEYS if key in self.policy}
        assert tracked == self.resident, "tracks other keys than those that are resident"
        assert len(self.policy) == len(self.resident), "miscounts"


# One suite, many subclasses; and nothing here judges how fast a policy is.
_calmly = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow])


class PolicySuite(ABC):
    """Subclass it as `TestMyPolicy` and implement `make`."""

    @abstractmethod
    def make(self, capacity: int) -> EvictionPolicy:
        """A new, empty policy for `capacity` positions."""

    @_calmly
    @given(operations)
    def test_behaves_like_a_dict_with_losses(self, steps: list[Operation]) -> None:
        watched = Watched(self.make(CAPACITY), CAPACITY)
        for step in steps:
            watched.apply(step)
        # Drain: without protection everything can leave, tails first.
        watched.evict(CAPACITY, NOTHING)
        assert not watched.resident

    @_calmly
    @given(operations)
    def test_same_calls_give_the_same_victims(self, steps: list[Operation]) -> None:
        first, second = (Watched(self.make(CAPACITY), CAPACITY) for _ in range(2))
        for step in steps:
            assert first.apply(step) == second.apply(step)

    def test_a_chain_leaves_from_its_tail(self) -> None:
        watched = Watched(self.make(CAPACITY), CAPACITY)
        chain = chain_to((1, 0, 0, 0, 0))
        watched.insert(chain)
        assert watched.evict(3, NOTHING) == chain[:1:-1]

    def test_a_protected_tail_shields_its_whole_prefix(self) -> None:
        watched = Watched(self.make(CAPACITY), CAPACITY)
        chain = chain_to((1, 0, 0, 0, 0))
        watched.insert(chain)
        assert watched.evict(5, frozenset({chain[-1]})) == []
        assert watched.evict(5, frozenset({chain[1]})) == chain[:1:-1]

    def test_a_protected_tail_shields_a_prefix_that_others_used_since(self) -> None:
        watched = Watched(self.make(CAPACITY), CAPACITY)
        chain = chain_to((0, 1, 0, 0))
        watched.insert(chain)
        watched.insert(chain_to((0, 0)))
        watched.access(chain[:1])
        assert watched.evict(9, frozenset({chain[-1]})) == [chain_to((0, 0))[-1]]

    def test_long_chains_are_served_whole(self) -> None:
        size = 5000
        keys = [Key(sha256(str(number).encode()).digest()) for number in range(size)]
        parents = [Key(b""), *keys[:-1]]
        policy = self.make(size)
        for start in range(0, size, 64):
            policy.insert(keys[start : start + 64], parents[start : start + 64], float(start))
        policy.access(keys, 1e6)
        policy.check()
        assert policy.evict(size, NOTHING, 1e6) == keys[::-1]
