"""Engines, other nodes and the mover do as they like, by chance: the brain never raises, and no slot is lost.

Where the state machines tell right answers from wrong ones, this goes further off the path: chains that repeat a
key or name one of no possible size, parents and positions that contradict each other from call to call.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

import numpy as np
import pytest

from tieredkv.brain.cold import Copies, PageState
from tieredkv.brain.elsewhere import Copy
from tieredkv.brain.intake import Offered
from tieredkv.brain.moves import Job, JobId, Moved, PeerId
from tieredkv.brain.peer_index import fingerprints
from tieredkv.clock import ManualClock
from tieredkv.config import PolicyConfig
from tieredkv.manager import ColdTier, TierManager
from tieredkv.policy import make_policy
from tieredkv.policy.placement import Placement, Rate
from tieredkv.types import KEY_BYTES_MAX, EngineId, Key, RequestId, SlotState

SLOTS, PAGES = 24, 16
QUEUE_MAX = 8
CALLS = 300
CHAINS = [[Key(sha256(f"{chain} {at}".encode()).digest()) for at in range(10)] for chain in range(5)]
KEYS = [key for chain in CHAINS for key in chain]
START = Key(b"")
NO_KEYS = (START, Key(b"short"), Key(b"l" * (KEY_BYTES_MAX + 1)))
ENGINES = (EngineId("a"), EngineId("b"))
PEER = PeerId(0)
HINTS: list[dict[str, str | int | float | bool]] = [
    {}, {"session": "s"}, {"session": "s", "session_closed": True}, {"keep": True}, {"one_shot": True},
]  # fmt: skip


class ChanceMover:
    """Ends jobs in any order, well or badly, and those that nobody wants any more as well."""

    def __init__(self, chance: Random) -> None:
        self.pending: dict[JobId, Job] = {}
        self._chance = chance

    def room(self) -> int:
        return QUEUE_MAX - len(self.pending)

    def offer_room(self) -> int:
        return self.room()

    def submit(self, job: Job) -> bool:
        if len(self.pending) >= QUEUE_MAX:
            return False
        self.pending[job.number] = job
        return True

    def cancel(self, number: JobId) -> None:
        pass

    def poll(self, count_max: int) -> list[Moved]:
        ended = [number for number in self.pending if self._chance.random() < 0.5][:count_max]
        return [self._end(number) for number in ended]

    def _end(self, number: JobId) -> Moved:
        rows = range(len(self.pending.pop(number)))
        failed = frozenset(row for row in rows if self._chance.random() < 0.2)
        return Moved(number, failed, 0.01, frozenset(row for row in failed if self._chance.random() < 0.5))


class ChanceNodes:
    """Other nodes have every other chunk, each time another one."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        assert len(fingerprints(keys, group)) == len(keys)
        return [Copy(PEER, 1, 5) if self._chance.random() < 0.5 else None for _ in keys]

    def keeps(self, group: int, keys: Sequence[Key]) -> list[bool]:
        assert len(fingerprints(keys, group)) == len(keys)
        return [self._chance.random() < 0.2 for _ in keys]

    def distrust(self, copies: Sequence[Copy]) -> None:
        pass

    def home(self, key: Key) -> PeerId | None:
        del key
        return PEER if self._chance.random() < 0.4 else None


class Chaos:
    """A node, and all that may happen to it."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.groups = self.chance.choice([1, 2, 2, 3])
        self.clock = ManualClock()
        self.mover = ChanceMover(self.chance)
        name = self.chance.choice(["gix", "lru", "arc", "s3fifo", "mq"])
        warm, cold = (make_policy(PolicyConfig(name=name), capacity) for capacity in (SLOTS, PAGES))
        self.manager = TierManager(
            slots=SLOTS,
            groups=self.groups,
            policy=warm.eviction,
            admission=warm.admission,
            clock=self.clock,
            engine_share_max=0.7,
            cold=ColdTier(
                pages=PAGES,
                policy=cold.eviction,
                admission=cold.admission,
                mover=self.mover,
                placement=Placement(Rate(1.0)),
                low_free=3,
                high_free=8,
                deadline_s=2.0,
                elsewhere=ChanceNodes(self.chance),
                copies=self.chance.choice(list(Copies)),
                job_rows=4,
                ttl_s=self.chance.choice([None, 5.0]),
            ),
        )
        self.manager.populate(0, SLOTS)
        self.leases: dict[EngineId, list[int]] = {}

    def call(self) -> None:
        """Something happens."""
        self.clock.advance(self.chance.random() * 0.3)
        engine = self.chance.choice(ENGINES)
        if engine not in self.leases:
            self.manager.attach(engine)
            self.leases[engine] = []
        calls: list[Callable[[EngineId], None]] = [
            self.arrive, self.release, self.lease, self.publish, self.used, self.offered, self.reset, self.session,
            self.detach, self.step,
        ]  # fmt: skip
        (call,) = self.chance.choices(calls, weights=(30, 15, 10, 20, 4, 7, 1, 3, 1, 9))
        call(engine)
        self.manager.check()

    def arrive(self, engine: EngineId) -> None:
        self.manager.arrive(
            engine,
            self._request(),
            self._chain(),
            strides=(1, 2, 1)[: self.groups],
            tokens=9,
            tenant="",
            hints=self.chance.choice(HINTS),
            again=self.chance.random() < 0.2,
        )

    def release(self, engine: EngineId) -> None:
        self.manager.release(engine, self._request())

    def lease(self, engine: EngineId) -> None:
        self.leases[engine] += self.manager.lease(engine, self.chance.randrange(5)).slots.tolist()

    def publish(self, engine: EngineId) -> None:
        keys = self._chain()
        slots, self.leases[engine] = self.leases[engine][: len(keys)], self.leases[engine][len(keys) :]
        keys = keys[: len(slots)]
        parents, positions = [START, *keys][: len(keys)], list(range(len(keys)))
        if self.chance.random() < 0.2:
            positions = [self.chance.randrange(-2, 12) for _ in keys]
        wrong = self.chance.random()
        if wrong < 0.1:
            parents = [self.chance.choice([*KEYS, START]) for _ in keys]
        elif wrong < 0.4:
            # Where they belong, but for their chain.
            parents = ([START, *self.chance.choice(CHAINS)] * 2)[: len(keys)]
        group = self.chance.randrange(self.groups)
        self.manager.publish(engine, group, keys, parents, np.array(positions, np.int32), np.array(slots, np.int32))

    def used(self, engine: EngineId) -> None:
        del engine
        self.manager.used(self.chance.sample(KEYS, 5))

    def offered(self, engine: EngineId) -> None:
        del engine
        rows: list[Offered] = []
        parent = START
        for at, key in enumerate(self._chain()):
            wrong = self.chance.random() < 0.3
            above, position = (self.chance.choice(KEYS), self.chance.randrange(12)) if wrong else (parent, at)
            rows.append(Offered(self.chance.randrange(self.groups), key, above, position, 1, 5))
            parent = key
        self.manager.offered(PEER, 1, rows)

    def reset(self, engine: EngineId) -> None:
        del engine
        self.manager.reset()

    def session(self, engine: EngineId) -> None:
        """What a prefetch asks for, of any position."""
        for key in self.chance.sample(KEYS, 5):
            said: dict[str, str | int | float | bool] = {"session": "s"}
            self.manager.arrive(
                engine, self._request(), [key], strides=(1,) * self.groups, tokens=1, tenant="", hints=said
            )
            chain = self.manager.chain("s")
            assert len(set(chain)) == len(chain)
        self.manager.hint("s", {"session_closed": True})

    def detach(self, engine: EngineId) -> None:
        self.manager.detach(engine)
        del self.leases[engine]

    def step(self, engine: EngineId) -> None:
        del engine
        self.manager.step(idle=self.chance.random() < 0.5)

    def drain(self) -> None:
        """Everybody leaves, and the mover ends what it has: what is left can be had by the next."""
        for engine in list(self.leases):
            self.detach(engine)
        while self.mover.pending:
            self.manager.step()
        self.manager.check()
        counts = self.manager.counts()
        assert counts[SlotState.FREE] + counts[SlotState.READY] == SLOTS
        assert not self.manager.counts_pages()[PageState.FILLING]

    def _request(self) -> RequestId:
        return RequestId(str(self.chance.randrange(8)))

    def _chain(self) -> list[Key]:
        """As an honest engine has it, backwards, shuffled, of two chains, with a key twice, with one that is none."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.5:
            keys = chance.choice(CHAINS)[: chance.randrange(1, 11)]
        elif kind < 0.6:
            keys = chance.choice(CHAINS)[::-1]
        elif kind < 0.8:
            keys = chance.sample(KEYS, chance.randrange(1, 12))
        else:
            keys = chance.choice(CHAINS)[:4] + chance.choice(CHAINS)[4:]
        if chance.random() < 0.2:
            keys = [*keys, chance.choice([*keys, *NO_KEYS]), chance.choice(KEYS)]
        return keys


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_said_and_moved_the_brain_stays_sound(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(CALLS):
        chaos.call()
    chaos.drain()
