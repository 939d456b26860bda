"""Every policy against the conformance suite, and LRU against a textbook."""

from collections.abc import Container, Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.config import PolicyConfig
from tieredkv.config.tree import POLICY_NAMES
from tieredkv.errors import ConfigError
from tieredkv.policy import LRU, NO_HINTS, POLICIES, EvictionPolicy, UseHints, make_policy
from tieredkv.policy.conformance import (
    CAPACITY,
    PARENT,
    Access,
    Operation,
    PolicySuite,
    Watched,
    operations,
    protections,
)
from tieredkv.types import Key


@pytest.mark.parametrize("name", sorted(POLICIES))
class TestNamedPolicies(PolicySuite):
    """All policies that a configuration can name."""

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.name = name

    def make(self, capacity: int) -> EvictionPolicy:
        return make_policy(PolicyConfig(name=self.name), capacity).eviction


class Textbook:
    """LRU by one list, oldest first, and a scan of it for everything."""

    def __init__(self) -> None:
        self.order: list[Key] = []

    def use(self, keys: list[Key]) -> None:
        """The first key of `keys` ends up youngest, and ancestors before their descendants."""
        youngest_first: list[Key] = []
        for key in keys:
            path: list[Key] = []
            above = key
            while above in self.order and above not in youngest_first:
                path.append(above)
                above = PARENT[above]
            youngest_first += reversed(path)
        self.order = [key for key in self.order if key not in youngest_first] + youngest_first[::-1]

    def insert(self, keys: list[Key]) -> None:
        self.order += [key for key in dict.fromkeys(keys) if key not in self.order]
        self.use(keys)

    def evict(self, count: int, protected: Container[Key]) -> list[Key]:
        victims: list[Key] = []
        while len(victims) < count:
            shielded = {PARENT[key] for key in self.order}
            free = [key for key in self.order if key not in shielded and key not in protected]
            if not free:
                break
            self.order.remove(free[0])
            victims.append(free[0])
        return victims


def chain_of(last: Sequence[Key]) -> list[Key]:
    """The whole chain that ends in `last`."""
    chain = list(last)
    while chain and PARENT[chain[0]]:
        chain.insert(0, PARENT[chain[0]])
    return chain


class WatchedLRU(Watched):
    """Compares every eviction of LRU with the textbook's."""

    def __init__(self, capacity: int) -> None:
        super().__init__(LRU(capacity), capacity)
        self.textbook = Textbook()

    def access(self, chain: list[Key], hints: UseHints = NO_HINTS) -> None:
        super().access(chain, hints)
        self.textbook.use(chain)

    def insert(self, keys: list[Key]) -> None:
        super().insert(keys)
        if all(key in self.resident for key in keys):
            self.textbook.insert(keys)

    def evict(self, count: int, protected: Container[Key]) -> list[Key]:
        victims = super().evict(count, protected)
        assert victims == self.textbook.evict(count, protected)
        return victims

    def remove(self, key: Key) -> None:
        super().remove(key)
        if key in self.textbook.order:
            self.textbook.order.remove(key)

    def clear(self) -> None:
        super().clear()
        self.textbook.order.clear()


class TestLRU:
    @given(operations, st.integers(1, 6), protections)
    def test_equals_a_textbook(self, steps: list[Operation], count: int, protected: frozenset[Key]) -> None:
        watched = WatchedLRU(CAPACITY)
        for step in steps:
            # What follows an unknown key in nonsense is not promised to be used.
            if not isinstance(step, Access) or list(step.chain) == chain_of(step.chain[-1:]):
                watched.apply(step)
        watched.evict(count, protected)
        watched.evict(CAPACITY, frozenset())

    @given(operations, st.integers(1, 6), protections)
    def test_evicting_one_by_one_equals_evicting_at_once(
        self, steps: list[Operation], count: int, protected: frozenset[Key]
    ) -> None:
        once, single = (Watched(LRU(CAPACITY), CAPACITY) for _ in range(2))
        for step in steps:
            once.apply(step)
            single.apply(step)
        victims = [key for _ in range(count) for key in single.evict(1, protected)]
        assert once.evict(count, protected) == victims


class CountingContainer:
    """Protects some keys and counts how often it is asked."""

    def __init__(self, keys: set[Key]) -> None:
        self.asked = 0
        self._keys = keys

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return key in self._keys


class TestCostOfEviction:
    CHAINS, LENGTH = 100, 1000

    def _full(self) -> tuple[LRU, list[list[Key]]]:
        lru = LRU(self.CHAINS * self.LENGTH)
        chains: list[list[Key]] = []
        for number in range(self.CHAINS):
            chain = [Key(sha256(f"{number} {depth}".encode()).digest()) for depth in range(self.LENGTH)]
            lru.insert(chain, [Key(b""), *chain[:-1]], float(number))
            chains.append(chain)
        return lru, chains

    def test_each_victim_is_looked_at_once(self) -> None:
        lru, _ = self._full()
        nothing = CountingContainer(set())
        victims = 0
        while len(lru) > self.LENGTH:
            victims += len(lru.evict(64, nothing, 1e6))
        assert nothing.asked <= victims + victims // 64 + self.CHAINS

    def test_pinned_chains_at_the_old_end_cost_one_look_each(self) -> None:
        lru, chains = self._full()
        pinned = CountingContainer({key for chain in chains[: self.CHAINS // 2] for key in chain})
        for _ in range(10):
            assert len(lru.evict(64, pinned, 1e6)) == 64
        assert pinned.asked <= 10 * (64 + self.CHAINS // 2 + 1)


def test_names_of_the_configuration_and_policies_agree() -> None:
    assert set(POLICIES) == set(POLICY_NAMES)


@pytest.mark.parametrize("name", ["nowhere.at_all:Policy", "tieredkv.policy:Nothing", "tieredkv.policy:POLICIES"])
def test_what_cannot_be_imported_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.name: '[^\n]*$"):
        make_policy(PolicyConfig(name=name), 10)
