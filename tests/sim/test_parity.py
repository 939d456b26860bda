"""What was recorded replays to the same decisions, whatever was done; and a changed decision is seen."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tieredkv.clock import ManualClock
from tieredkv.config import PolicyConfig
from tieredkv.manager import AdoptedChunk, TierManager
from tieredkv.policy import POLICIES, make_policy
from tieredkv.sidecar.callfile import CallFile
from tieredkv.sidecar.recorded import RecordedManager
from tieredkv.sim.lines import TraceError
from tieredkv.sim.parity import Verdict, verify
from tieredkv.trace import LineFile
from tieredkv.types import EngineId, Generation, Key, RequestId, SlotId

SLOTS = 48
ENGINES = ("scheduler of alice", "bob")


class Forest:
    """Random prefix chains: most go on with one that was there."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._chains: list[list[Key]] = []

    def chain(self) -> list[Key]:
        rng = self._rng
        head: list[Key] = []
        if self._chains and rng.random() < 0.8:
            known = rng.choice(self._chains[-12:])
            head = known[: rng.randint(1, len(known))]
        self._chains.append(head + [Key(os.urandom(32)) for _ in range(rng.randint(0 if head else 1, 6))])
        return self._chains[-1]


class Driver:
    """Random engines on one manager: good ones, forgetful ones, and some that talk nonsense."""

    def __init__(self, manager: TierManager, clock: ManualClock, groups: int, rng: random.Random) -> None:
        self.manager = manager
        self._clock = clock
        self._rng = rng
        self._strides = (1, 2)[:groups]
        self._forest = Forest(rng)
        self._leased: dict[EngineId, list[int]] = {}
        self._asked: list[tuple[EngineId, RequestId, list[Key]]] = []
        self._populated = 0

    def start(self) -> None:
        chain = self._forest.chain()
        adopted = [
            AdoptedChunk(SlotId(at), Generation(at + 1), 0, key, chain[at - 1] if at else Key(b""), at)
            for at, key in enumerate(chain)
        ]
        self.manager.adopt(adopted)
        self.manager.quarantine(np.array([SLOTS - 1], np.int32), np.array([40], np.uint64))
        self.populate()

    def populate(self) -> None:
        count = min(SLOTS - self._populated, self._rng.randint(1, SLOTS))
        if count:
            self.manager.populate(self._populated, count)
            self._populated += count

    def attach(self) -> None:
        engine = EngineId(self._rng.choice(ENGINES))
        if engine not in self._leased:
            self.manager.attach(engine)
            self._leased[engine] = self.manager.resume(engine, np.arange(-1, SLOTS, dtype=np.int32)).tolist()

    def detach(self) -> None:
        if self._leased and self._rng.random() < 0.2:
            engine = self._rng.choice(list(self._leased))
            self.manager.detach(engine)
            del self._leased[engine]
            self._asked = [asked for asked in self._asked if asked[0] != engine]

    def arrive(self) -> None:
        if not self._leased:
            return
        rng = self._rng
        engine, request = rng.choice(list(self._leased)), RequestId(f"request {rng.randrange(30)}")
        hints: dict[str, str | int | float | bool] = {"unknown": "text"}
        if rng.random() < 0.7:
            hints["session"] = f"session {rng.randrange(6)}"
        if rng.random() < 0.3:
            hints[rng.choice(("session_closed", "keep", "one_shot"))] = True
        if rng.random() < 0.2:
            hints["return_within_s"] = rng.choice((-1, 10, 100.5))
        chain = self._forest.chain()
        self.manager.arrive(
            engine,
            request,
            chain,
            strides=self._strides,
            tokens=16 * len(chain),
            tenant=rng.choice(("", "tenant")),
            hints=hints,
            again=rng.random() < 0.1,
        )
        self._asked.append((engine, request, chain))

    def lease(self) -> None:
        for engine, slots in self._leased.items():
            slots.extend(self.manager.lease(engine, self._rng.randint(0, 12)).slots.tolist())

    def publish(self) -> None:
        if not self._asked:
            return
        rng = self._rng
        engine, _, chain = rng.choice(self._asked[-5:])
        group = rng.randrange(len(self._strides))
        at = range(self._strides[group] - 1, len(chain), self._strides[group])
        slots = self._leased[engine]
        count = min(len(slots), len(at))
        taken, slots[:] = slots[:count], slots[count:]
        keys = [chain[place] for place in at][:count]
        parents = [chain[place - 1] if place else Key(b"") for place in at][:count]
        positions = np.array(list(at)[:count], np.int32)
        if rng.random() < 0.1 and keys:
            keys[-1], parents[0] = rng.choice([(Key(b"short"), keys[-1]), (keys[0], Key(b"y" * 80))])
        self.manager.publish(engine, group, keys, parents, positions, np.array(taken, np.int32))

    def give_back(self) -> None:
        for engine, slots in self._leased.items():
            if slots and self._rng.random() < 0.3:
                self.manager.give_back(engine, np.array([slots.pop(), -7], np.int32))

    def release(self) -> None:
        if self._asked:
            engine, request, _ = self._asked.pop(self._rng.randrange(len(self._asked)))
            self.manager.release(engine, request)

    def keep_only(self) -> None:
        if self._leased and self._rng.random() < 0.2:
            self.manager.keep_only(self._rng.choice(list(self._leased)), {self._asked[-1][1]} if self._asked else set())

    def hint(self) -> None:
        self.manager.hint(f"session {self._rng.randrange(8)}", {"keep": True, "junk": 3}, tenant="")

    def settle(self) -> None:
        if self._rng.random() < 0.05:
            self.manager.end_quarantine()

    def reset(self) -> None:
        if self._rng.random() < 0.03:
            self.manager.reset()

    def step(self) -> None:
        self.manager.step(idle=self._rng.random() < 0.5)

    def run(self, calls: int) -> None:
        deeds: list[Callable[[], None]] = [
            *(self.attach, self.detach, self.populate, self.settle, self.reset, self.keep_only, self.hint),
            *(self.arrive, self.lease, self.publish, self.step) * 4,
            *(self.give_back, self.release) * 2,
        ]
        self.start()
        for _ in range(calls):
            self._clock.advance(self._rng.choice((0.0, 0.1, 1 / 3, 7.7)))
            self._rng.choice(deeds)()
        self.manager.check()


def record(path: Path, policy: str, seed: int, *, groups: int = 1, calls: int = 600) -> RecordedManager:
    rng = random.Random(seed)
    clock = ManualClock(rng.random() * 1e6)
    config = PolicyConfig(name=policy)
    chosen = make_policy(config, SLOTS)
    with closing(CallFile(LineFile(path), clock)) as file:
        manager = RecordedManager(
            file,
            slots=SLOTS,
            groups=groups,
            policy=chosen.eviction,
            admission=chosen.admission,
            policy_config=config.model_dump(mode="json", by_alias=True),
            engine_share_max=0.7,
            ghosts_max=20,
            next_generation=50,
        )
        Driver(manager, clock, groups, rng).run(calls)
    return manager


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_all_that_was_decided_is_decided_again(tmp_path: Path, policy: str, groups: int, seed: int) -> None:
    path = tmp_path / "calls.jsonl"
    manager = record(path, policy, seed, groups=groups)
    verdict = verify(path)
    assert verdict.differences == [], f"seed {seed}"
    assert sum(verdict.compared.values()) == len(path.read_bytes().splitlines())
    assert verdict.hits, f"seed {seed}"
    assert verdict.evictions == manager.tallies.evictions.get("room", 0) > 0, f"seed {seed}"
    assert verdict.stores == manager.tallies.publications["stored"] > 0
    assert not verdict.cut


def test_no_name_of_anybody_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1)
    text = path.read_text()
    for name in (*ENGINES, "session 1", "request 1", '"tenant":"tenant"', "unknown", 'text"', "junk"):
        assert name not in text
    assert "no token and no text is in this file" in text.splitlines()[0]


def changed(path: Path, call: str, name: str, value: object) -> Iterator[Verdict]:
    """Verdicts on copies of the file in each of which one call has another outcome."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines):
        fields = json.loads(line)
        if fields["call"] == call and fields.get(name) != value:
            fields[name] = value
            other = path.with_name("changed")
            other.write_bytes(b"".join(each + b"\n" for each in [*lines[:number], json.dumps(fields).encode()]))
            yield verify(other)


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        ("arrive", "found", [99]),
        ("arrive", "evicted", 99),
        ("arrive", "digest", "0"),
        ("lease", "slots", 99),
        ("lease", "evicted", {"0": [99]}),
        ("lease", "digest", "0"),
        ("publish", "rows", 99),
        ("publish", "digest", "0"),
        ("hint", "known", True),
        ("hint", "known", False),
    ],
)
def test_every_changed_outcome_is_seen(tmp_path: Path, call: str, name: str, value: object) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1, calls=200)
    verdicts = list(changed(path, call, name, value))
    assert verdicts
    assert all([difference.call for difference in verdict.differences] == [call] for verdict in verdicts)


def test_another_policy_decides_differently(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1)
    first, rest = path.read_bytes().split(b"\n", 1)
    fields = json.loads(first)
    fields["policy"]["name"] = "gix"
    path.write_bytes(json.dumps(fields).encode() + b"\n" + rest)
    verdict = verify(path)
    assert len(verdict.differences) == 1
    assert verdict.skipped


def test_an_unfinished_line_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1)
    path.write_bytes(path.read_bytes()[:-5])
    verdict = verify(path)
    assert verdict.cut
    assert not verdict.differences


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", ":2: not a recorded call"),
        ("nonsense\n", ":2: not a recorded call"),
        ('{"call":"attach","pool":7,"now_s":1e9,"engine":"a"}\n', ":2: nobody can have made this call"),
        ('{"call":"step","pool":0,"now_s":-1}\n', ":2: nobody can have made this call"),
        ('{"call":"detach","pool":0,"now_s":1e9,"engine":"a"}\n', ":2: nobody can have made this call"),
        ('{"call":"populate","pool":0,"now_s":1e9,"first":0,"count":1000}\n', ":2: nobody can have made this call"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1, calls=1)
    path.write_text(path.read_text().splitlines()[0] + "\n" + text)
    with pytest.raises(TraceError, match=message) as raised:
        verify(path)
    assert "\n" not in str(raised.value)


def test_a_file_does_not_choose_what_code_runs(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, "lru", 1, calls=1)
    path.write_text(path.read_text().replace('"name":"lru"', '"name":"tieredkv.policy.lru:LRU"'))
    with pytest.raises(TraceError, match="--foreign-code runs it, if you trust the file"):
        verify(path)
    assert not verify(path, foreign_code=True).differences


def test_every_call_that_decides_is_recorded() -> None:
    plain = {"check", "counts", "describe", "held", "leased", "next_generation", "chain", "place_generations"}
    plain |= {"counts_pages", "free_pages", "watch_changes", "take_changes"}
    # A manager with a cold tier is not recorded.
    cold = {"adopt_pages", "offered", "used"}
    public = {name for name in vars(TierManager) if not name.startswith("_")}
    assert public - plain - cold == {name for name in vars(RecordedManager) if not name.startswith("_")}
