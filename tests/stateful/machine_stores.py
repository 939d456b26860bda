"""Engines lease, write, publish, give back; some of it is nonsense."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from tests.stateful.machine_requests import RequestMachine
from tests.stateful.node import int32
from tests.stateful.space import (
    ALLOWANCE,
    CHAINS,
    ENGINES,
    MARKS,
    SLOTS,
    chain_of,
    chains,
    engines,
    key_of,
)
from tieredkv.types import EngineId, Key, SlotState

NONSENSE = ("slot", "self", "position", "short key", "group", "columns")


class StoreMachine(RequestMachine):
    """What is published is what must be, and nobody is given what somebody needs."""

    @rule(name=engines, count=st.integers(-1, 4))
    def lease(self, name: EngineId, count: int) -> None:
        if not self._here(name):
            return
        engine = self.engines[name]
        held = self.manager.held(name)
        usable = SLOTS - len(self._untouchable())
        leased = self.manager.lease(name, count)
        slots = self.arena.apply_lease(name, leased)
        assert not set(slots) & self._untouchable(), "leased what somebody needs"
        for slot, generation in zip(slots, leased.generations.tolist(), strict=True):
            engine.leases[slot] = generation
            self.writer_of[slot] = name
        wanted = max(0, min(count, ALLOWANCE - held))
        assert len(slots) <= wanted
        if leased.evicted:
            MARKS["evicted"] += 1
            self._assert_no_orphans(leased.evicted)
        if len(slots) < wanted:
            # Every slot that is left is in use, or shields nothing but used ones.
            MARKS["lease cut by pins"] += 1
            assert self.manager.counts()[SlotState.FREE] == 0
            assert len(slots) <= usable

    def _untouchable(self) -> set[int]:
        """Slots that nobody may be given: being read, being written, or not there yet."""
        held = {slot for engine in (*self.engines.values(), *self.absent.values()) for slot in engine.held()}
        moved = {slot for job in (*self.mover.promotions(), *self.mover.demotions()) for slot in job.slots}
        return held | moved | set(range(self.populated, SLOTS))

    def _assert_no_orphans(self, evicted: dict[int, list[Key]]) -> None:
        gone = {key for keys in evicted.values() for key in keys}
        left = {key for _, key in self.arena.visible}
        assert not gone & left, "chunks of one position left apart"
        for path in CHAINS:
            chain = chain_of(path)
            for parent, child in pairwise(chain):
                assert parent not in gone or child not in left, "evicted under a resident child"

    @rule(name=engines, path=chains, start=st.integers(0, 2), group=st.integers(0, 1), count=st.integers(1, 4))
    def publish(self, name: EngineId, path: str, start: int, group: int, count: int) -> None:
        """An engine wrote chunks of a chain, perhaps not from its head, into some of its leases."""
        if not self._here(name) or group >= len(self.strides):
            return
        if not self.engines[name].leases:
            self.lease(name, count)
        stride = self.strides[group]
        ends = range(stride - 1, len(path), stride)
        rows: list[tuple[Key, Key, int, int]] = []
        for end, slot in zip(ends[start : start + count], self.engines[name].leases, strict=False):
            key = key_of(path[: end + 1])
            self.arena.write(slot, self.arena.content(group, key))
            rows.append((key, key_of(path[:end]), end, slot))
        if not rows:
            return
        if start:
            MARKS["published over a hole"] += 1
        self._publish(name, group, rows, self._verdicts(name, group, rows))

    def _verdicts(self, name: EngineId, group: int, rows: list[tuple[Key, Key, int, int]]) -> list[str]:
        """What must become of each row."""
        engine = self.engines[name]
        refusals = self.admission.refusals
        verdicts: list[str] = []
        for key, _, _, slot in rows:
            if slot in engine.stale:
                verdicts.append("stale")
            elif (group, key) in self.arena.visible:
                verdicts.append("present")
            elif refusals and not any((other, key) in self.arena.visible for other in range(len(self.strides))):
                # A position that is there is completed, whatever admission thinks.
                refusals -= 1
                verdicts.append("refused by admission")
            else:
                verdicts.append("stored")
        return verdicts

    def _publish(self, name: EngineId, group: int, rows: list[tuple[Key, Key, int, int]], verdicts: list[str]) -> None:
        engine = self.engines[name]
        keys, parents, positions, slots = (list(column) for column in zip(*rows, strict=True))
        published = self.manager.publish(name, group, keys, parents, int32(positions), int32(slots))
        loading = self.mover.loading()
        for row, key in enumerate(keys):
            # Whether it still is, only the manager knows: a cancelled one is not.
            if verdicts[row] == "stored" and (group, key) in loading and row not in published.rows:
                verdicts[row] = "present"
                MARKS["published while it was loading"] += 1
            if self.copies is not None and verdicts[row] == "refused by admission" and row in published.rows:
                verdicts[row] = "stored"
                MARKS["worth a page"] += 1
        expected = [row for row, verdict in enumerate(verdicts) if verdict == "stored"]
        assert published.rows.tolist() == expected
        self.arena.apply_published(published, group, rows)
        for slot in slots:
            engine.leases.pop(slot, None)
            engine.stale.discard(slot)
        for verdict in verdicts:
            MARKS[verdict] += 1

    @rule(
        name=engines, path=chains, kind=st.sampled_from(["slot", "self", "position", "short key", "group", "columns"])
    )
    def publish_nonsense(self, name: EngineId, path: str, kind: str) -> None:
        """A publication that cannot be ends the leases that it names, and nothing else happens."""
        if not self._here(name):
            return
        for writer in (ENGINES[ENGINES.index(name) - 1], name):
            if self._here(writer):
                self.lease(writer, 1)
        engine = self.engines[name]
        key = key_of(path)
        others = [slot for slot in range(-1, SLOTS + 1) if slot not in engine.leases]
        if kind == "slot":
            rows = [(key, key_of(path[:-1]), len(path) - 1, slot) for slot in others]
            self._publish(name, 0, rows, ["foreign"] * len(rows))
            return
        if not engine.leases.keys() - engine.stale:
            return
        slot = min(engine.leases.keys() - engine.stale)
        row = (Key(b"nobody published this key"), key, len(path), slot)
        parent, at, group = row[1], row[2], 0
        if kind == "self":
            parent = row[0]
        elif kind == "position":
            at = -1
        elif kind == "short key":
            row = (Key(b"short"), parent, at, slot)
        elif kind == "group":
            group = len(self.strides)
        self.admission.refusals = 0
        columns = [at, at] if kind == "columns" else [at]
        MARKS["columns of unequal length" if kind == "columns" else "nonsense"] += 1
        published = self.manager.publish(name, group, [row[0]], [parent], int32(columns), int32([slot]))
        assert not len(published.rows)
        del engine.leases[slot]

    @rule(name=engines, path=chains)
    def publish_twice(self, name: EngineId, path: str) -> None:
        """The same slot for two keys, the same key for two slots."""
        if not self._here(name):
            return
        engine = self.engines[name]
        own = sorted(engine.leases.keys() - engine.stale)
        if len(own) < 2 or len(path) < 2:
            return
        first, second = key_of(path[:1]), key_of(path[:2])
        rows = [
            (first, Key(b""), 0, own[0]),
            (second, first, 1, own[0]),
            (first, Key(b""), 0, own[1]),
        ]
        self.admission.refusals = 0
        self.arena.write(own[0], self.arena.content(0, first))
        verdict = "present" if (0, first) in self.arena.visible else "stored"
        self._publish(name, 0, rows, [verdict, "foreign", "present"])

    @rule(name=engines, data=st.data())
    def give_back(self, name: EngineId, data: st.DataObject) -> None:
        if not self._here(name) or not self.engines[name].leases:
            return
        engine = self.engines[name]
        self._give_back(name, data.draw(st.lists(st.sampled_from(list(engine.leases)), min_size=1, max_size=3)))

    def _give_back(self, name: EngineId, slots: Iterable[int]) -> None:
        engine = self.engines[name]
        slots = [*slots, -1, SLOTS]
        self.manager.give_back(name, int32(slots))
        for slot in slots:
            if engine.leases.pop(slot, None) is not None:
                MARKS["given back"] += 1
            engine.stale.discard(slot)

    def store(self, name: EngineId, path: str, window: int = SLOTS) -> None:
        """What engines mostly do: lease, write and publish what a chain lacks, head first.

        Of groups past the first only what ends in the last `window` positions.
        """
        if not self._here(name):
            return
        lacking = [
            (group, end)
            for group, stride in enumerate(self.strides)
            for end in range(stride - 1, len(path), stride)
            if (group, key_of(path[: end + 1])) not in self.arena.visible and (not group or end >= len(path) - window)
        ]
        self.lease(name, len(lacking) - len(self.engines[name].leases))
        for group in range(len(self.strides)):
            rows: list[tuple[Key, Key, int, int]] = []
            for (_, end), slot in zip(
                [one for one in lacking if one[0] == group], self.engines[name].leases, strict=False
            ):
                key = key_of(path[: end + 1])
                self.arena.write(slot, self.arena.content(group, key))
                rows.append((key, key_of(path[:end]), end, slot))
            if rows:
                self._publish(name, group, rows, self._verdicts(name, group, rows))
