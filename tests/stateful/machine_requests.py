"""Requests arrive, are released, or are never heard of again."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from tests.stateful.machine_node import NodeMachine
from tests.stateful.node import Hope, Tag
from tests.stateful.space import (
    ALLOWANCE,
    MARKS,
    chain_of,
    chains,
    engines,
    requests,
)
from tieredkv.manager import Found
from tieredkv.types import KEY_BYTES_MAX, EngineId, Key, RequestId


class RequestMachine(NodeMachine):
    """What is found is right, whole and pinned."""

    @rule(name=engines, request=requests, path=chains)
    def arrive(self, name: EngineId, request: RequestId, path: str) -> None:
        self._arrive(name, request, chain_of(path), ())

    @rule(
        name=engines,
        request=requests,
        path=chains,
        end=st.integers(0, 3),
        kind=st.sampled_from(["twice", "long", "short"]),
    )
    def arrive_with_nonsense(self, name: EngineId, request: RequestId, path: str, end: int, kind: str) -> None:
        """A chain counts up to the first key that cannot be."""
        chain = chain_of(path)
        end = min(end, len(chain))
        first = chain[0] if end else Key(b"")
        key = {"twice": first, "long": Key(b"l" * (KEY_BYTES_MAX + 1)), "short": Key(b"short")}[kind]
        self._arrive(name, request, chain[:end], (key, *chain[end:]))

    def _arrive(self, name: EngineId, request: RequestId, chain: list[Key], nonsense: tuple[Key, ...]) -> None:
        if not self._here(name) or request in self.engines[name].ended:
            return
        engine = self.engines[name]
        held = self.manager.held(name)
        said = [*chain, *nonsense]
        found = self.manager.arrive(name, request, said, strides=self.strides, tokens=len(said), tenant="", hints={})
        reads = dict(engine.reads.get(request, {}))
        wanted: list[tuple[int, int]] = []
        got: list[tuple[int, int]] = []
        for group, stride in enumerate(self.strides):
            for number, key in enumerate(chain[stride - 1 :: stride]):
                end = (number + 1) * stride
                slot = self.arena.visible.get((group, key))
                if slot is not None:
                    wanted.append((end, slot))
                answer = self._answer(found, group, number)
                if answer is not None:
                    assert answer[0] == slot, "answered another slot than the chunk's"
                    reads[answer[0]] = self.arena.read(answer[0], answer[1], group, key)
                    got.append((end, answer[0]))
        self._judge_share(engine.held(), held, wanted, got)
        if found.coming:
            MARKS["something is coming"] += 1
            assert found.coming <= len(chain)
            if request not in engine.hopes:
                self._judge_hope(chain, found.coming)
                somewhere = frozenset(self._somewhere())
                engine.hopes[request] = Hope(tuple(chain), found.coming, self.arena.weights, somewhere)
            if nonsense:
                MARKS["something is coming before nonsense"] += 1
        if found.evicted:
            MARKS["told of evicted"] += 1
            assert len(chain) - found.evicted >= max([end for end, _ in wanted] + [found.coming])
        self._mark_sharing(name, request, reads, [slot for _, slot in got])
        if reads:
            engine.reads[request] = reads

    def _judge_hope(self, chain: list[Key], coming: int) -> None:
        """What is on its way may have been given up: only the manager knows."""
        somewhere = self._somewhere()
        assert self._reach(chain, somewhere) <= coming, "promised too little"
        assert coming <= self._reach(chain, somewhere | self.mover.loading()), "promised what nobody has"

    def _reach(self, chain: list[Key], there: set[tuple[int, Key]]) -> int:
        """How far every position is in some group's chunk, if these are there."""
        held: set[int] = set()
        for group, stride in enumerate(self.strides):
            for end in range(stride, len(chain) + 1, stride):
                if (group, chain[end - 1]) in there:
                    held.update(range(end - stride, end))
        return next(position for position in range(len(chain) + 1) if position not in held)

    def _answer(self, found: Found, group: int, number: int) -> tuple[int, int] | None:
        """Slot and generation that were found for one chunk."""
        slots, generations = found.slots[group].tolist(), found.generations[group].tolist()
        assert len(slots) == len(generations)
        assert not slots or slots[-1] >= 0, "trailing holes"
        if number >= len(slots):
            return None
        if slots[number] < 0:
            MARKS["found past a hole"] += 1
            assert generations[number] == 0
            return None
        return slots[number], generations[number]

    def _mark_sharing(self, name: EngineId, request: RequestId, reads: dict[int, Tag], got: list[int]) -> None:
        before = self.engines[name].reads.get(request)
        if before and len(reads) > len(before):
            MARKS["second arrival added pins"] += 1
        others = [other for other_name, other in self.engines.items() if other_name != name]
        if any(slot in pinned for other in others for pinned in other.reads.values() for slot in got):
            MARKS["pinned by two engines"] += 1
        if any(self.writer_of.get(slot) not in {None, name} for slot in got):
            MARKS["found by another engine"] += 1

    def _judge_share(
        self, before: set[int], held: int, wanted: list[tuple[int, int]], got: list[tuple[int, int]]
    ) -> None:
        """All that is visible, or the longest head of it that the share has room for."""
        room = max(0, ALLOWANCE - held)
        # What is pinned for a request that was not told of it yet costs nothing more.
        untold = held - len(before)
        assert len({slot for _, slot in got} - before) <= room + untold, "more than the share"
        if sorted(wanted) == sorted(got):
            MARKS["found whole" if got else "found nothing"] += 1
            return
        MARKS["cut by the share"] += 1
        cut = min(end for end, slot in wanted if (end, slot) not in got)
        assert sorted(got) == sorted((end, slot) for end, slot in wanted if end < cut)
        assert len({slot for end, slot in wanted if end <= cut} - before) > room, "cut more than needed"

    @rule(name=engines, request=requests)
    def release(self, name: EngineId, request: RequestId) -> None:
        if not self._here(name):
            return
        engine = self.engines[name]
        engine.reads.pop(request, None)
        engine.ended.discard(request)
        engine.hopes.pop(request, None)
        self.manager.release(name, request)

    @rule(name=engines, request=requests)
    def lose_a_release(self, name: EngineId, request: RequestId) -> None:
        """The request is over, and the sidecar did not hear of it."""
        if not self._here(name):
            return
        if request not in self.engines[name].reads and request not in self.engines[name].hopes:
            return
        self.engines[name].ended.add(request)

    @rule(name=engines)
    def keep_only(self, name: EngineId) -> None:
        if not self._here(name):
            return
        engine = self.engines[name]
        if engine.ended:
            MARKS["lost release repaired"] += 1
        for request in engine.ended:
            engine.reads.pop(request, None)
            engine.hopes.pop(request, None)
        engine.ended.clear()
        self.manager.keep_only(name, engine.reads.keys() | engine.hopes.keys())
