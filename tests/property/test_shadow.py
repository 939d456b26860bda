"""Shadow selection: it is a policy like any other, and changes only for a clear and lasting advantage."""

import pytest

from tests.sim.trees import chain_trace
from tieredkv.config import PolicyConfig
from tieredkv.errors import ConfigError
from tieredkv.policy import EvictionPolicy, make_policy
from tieredkv.policy.choice import ChosenPolicy
from tieredkv.policy.conformance import PolicySuite
from tieredkv.policy.shadow import Sample, Shadow, Trial
from tieredkv.sim.replay import replay
from tieredkv.types import Key


def shadowed(name: str, capacity: int, *candidates: str, requests: int = 40) -> Shadow:
    def make(name: str, capacity: int) -> ChosenPolicy:
        return make_policy(PolicyConfig(name=name), capacity)

    return Shadow(name, capacity, Trial(candidates, 1.0, requests), make)


def key(name: str) -> Key:
    return Key(name.encode().ljust(16, b"."))


class Driver:
    """Requests of one chunk each, as an engine brings them."""

    def __init__(self, shadow: Shadow, capacity: int) -> None:
        self.shadow = shadow
        self.hits = 0
        self._capacity = capacity
        self._now_s = 0.0

    def use(self, name: str) -> None:
        self._now_s += 1
        self.hits += key(name) in self.shadow
        self.shadow.access([key(name)], self._now_s)
        if key(name) not in self.shadow:
            self.shadow.evict(len(self.shadow) + 1 - self._capacity, (), self._now_s)
            self.shadow.insert([key(name)], [Key(b"")], self._now_s)
        self.shadow.maintain(self._now_s)
        self.shadow.check()

    def loop(self, rounds: int) -> None:
        """A few keys are used always; between two rounds of them a flood passes, too large for LRU."""
        for turn in range(rounds):
            for number in range(8):
                self.use(f"often {number}")
            for number in range(24):
                self.use(f"once {turn} {number}")


class TestAsAPolicy(PolicySuite):
    def make(self, capacity: int) -> EvictionPolicy:
        return make_policy(
            PolicyConfig(
                name="gix", shadow=True, shadow_sample=1.0, shadow_requests=4, shadow_candidates=("lru", "mq")
            ),
            capacity,
        ).eviction


def test_a_better_policy_becomes_the_live_one() -> None:
    shadow = shadowed("lru", 16, "mq", requests=400)
    driver = Driver(shadow, 16)
    driver.loop(12)
    assert shadow.live == "lru"
    assert driver.hits == 0
    driver.loop(40)
    assert shadow.live == "mq"
    before = driver.hits
    driver.loop(10)
    assert driver.hits - before == 80


def test_an_advantage_that_does_not_last_is_none() -> None:
    shadow = shadowed("lru", 16, "mq", requests=4000)
    driver = Driver(shadow, 16)
    # One period with it, one without.
    driver.loop(63)
    for number in range(4000):
        driver.use(f"few {number % 4}")
    assert shadow.live == "lru"


def test_a_switch_keeps_the_order() -> None:
    shadow = shadowed("lru", 6, "mq", requests=2)
    chain = [key(f"a{depth}") for depth in range(3)]
    shadow.insert(chain, [Key(b""), *chain[:-1]], 0.0)
    shadow.insert([key("b")], [Key(b"")], 1.0)
    shadow.switch("mq", 2.0)
    shadow.check()
    assert shadow.live == "mq"
    assert shadow.evict(9, (), 3.0) == [*chain[::-1], key("b")]


def test_a_conversation_is_sampled_with_all_its_requests() -> None:
    sample = Sample(0.5)
    trunk = [key("system prompt")]
    verdicts: list[bool] = []
    for talk in range(200):
        turns = [key(f"{talk} {turn}") for turn in range(5)]
        seen = {sample.has(trunk + turns[: turn + 1]) for turn in range(5)}
        assert len(seen) == 1
        verdicts += seen
    assert 60 < sum(verdicts) < 140


def test_a_request_of_the_common_head_alone_decides_nothing() -> None:
    for part in (0.1, 0.9):
        sample = Sample(part)
        trunk = [key("system prompt")]
        sample.has(trunk)
        count = sum(sample.has([*trunk, key(f"talk {number}")]) for number in range(1000))
        assert abs(count / 1000 - part) < 0.05


def test_the_sample_follows_its_part() -> None:
    for part in (0.125, 1.0):
        sample = Sample(part)
        count = sum(sample.has([key(f"talk {number}")]) for number in range(2000))
        assert abs(count / 2000 - part) < 0.03


def test_a_replay_with_shadows_gives_what_the_first_policy_gives_until_a_switch() -> None:
    trace = chain_trace([[number % 7, 10 + number % 11, 30 + number] for number in range(300)])
    plain = replay(trace, PolicyConfig(name="lru"), 20)
    beside = replay(trace, PolicyConfig(name="lru", shadow=True), 20)
    assert (plain.request_hits == beside.request_hits).all()


def test_a_candidate_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere:Policy"):
        make_policy(PolicyConfig(shadow=True, shadow_candidates=("nowhere:Policy",)), 10)
