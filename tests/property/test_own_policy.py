"""The conformance suite and the configuration take policies of others, by import path."""

import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from random import Random

import pytest

from tieredkv.config import PolicyConfig
from tieredkv.policy import LRU, NO_HINTS, EvictionPolicy, PlainPolicy, UseHints, make_policy
from tieredkv.policy.conformance import PolicySuite
from tieredkv.types import Key

EXAMPLES = Path(__file__).parents[2] / "examples"


class AnyLeaf(PlainPolicy):
    """Evicts leaves by chance, the same ones in every run."""

    def __init__(self, capacity: int) -> None:
        self._random = Random(capacity)
        self._parent: dict[Key, Key] = {}

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        pass

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        self._parent.update({key: p for key, p in zip(keys, parents, strict=True) if key not in self._parent})

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        victims: list[Key] = []
        shielding = list(self._parent.values())
        free = [key for key in self._parent if key not in shielding and key not in protected]
        while free and len(victims) < count:
            victim = free.pop(self._random.randrange(len(free)))
            victims.append(victim)
            parent = self._parent.pop(victim)
            shielding.remove(parent)
            if parent in self._parent and parent not in shielding and parent not in protected:
                free.append(parent)
        return victims

    def remove(self, key: Key) -> None:
        del self._parent[key]

    def clear(self) -> None:
        self._parent.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._parent

    def __len__(self) -> int:
        return len(self._parent)

    def check(self) -> None:
        pass


class TestTheExample(PolicySuite):
    @pytest.fixture(autouse=True)
    def _on_the_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(EXAMPLES)

    def make(self, capacity: int) -> EvictionPolicy:
        return make_policy(PolicyConfig(name="fifo_policy:Fifo"), capacity).eviction


class TestAPolicyByChance(PolicySuite):
    def make(self, capacity: int) -> EvictionPolicy:
        return AnyLeaf(capacity)


class NeverEvicts(LRU):
    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        return []


class SeesNoPins(LRU):
    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        return super().evict(count, (), now_s)


class EvictsTooMuch(LRU):
    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        return super().evict(count + 1, protected, now_s)


class RemembersAll(LRU):
    def clear(self) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (NeverEvicts, "kept what might leave"),
        (SeesNoPins, "evicted what is protected"),
        (EvictsTooMuch, "more victims than wanted"),
        (RemembersAll, "tracks other keys than those that are resident"),
    ],
)
def test_the_suite_is_no_formality(broken: type[LRU], complaint: str) -> None:
    class Suite(PolicySuite):
        def make(self, capacity: int) -> EvictionPolicy:
            return broken(capacity)

    assert any(complaint in each for each in complaints_of(Suite()))


def complaints_of(suite: PolicySuite) -> list[str]:
    """What a developer reads who runs the whole suite: chance finds most bugs, the plain tests the rarest."""
    complaints: list[str] = []
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite, name)()
            except AssertionError as error:
                complaints.append(str(error))
    return complaints


def test_the_suite_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-c", "import tieredkv.policy.conformance"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: tieredkv.policy.conformance needs hypothesis" in done.stderr.splitlines()[-1]
