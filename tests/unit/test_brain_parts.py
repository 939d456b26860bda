"""The parts of the brain that have a subtle rule of their own."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.brain.forest import Forest
from tieredkv.brain.ghosts import Ghosts
from tieredkv.brain.holder import Holder
from tieredkv.brain.residents import Residents
from tieredkv.brain.slots import SlotTable
from tieredkv.types import Key, RequestId

KEYS = [Key(sha256(bytes([number])).digest()) for number in range(12)]


class TestResidents:
    @given(
        st.lists(st.lists(st.sampled_from(range(12)), unique=True, min_size=1, max_size=6), max_size=6),
        st.lists(st.sampled_from(range(12)), max_size=8),
        st.lists(st.sampled_from(range(12)), max_size=14),
    )
    def test_finds_what_a_dict_would(self, batches: list[list[int]], removed: list[int], asked: list[int]) -> None:
        residents = Residents(36)
        plain: dict[Key, int] = {}
        slot = 0
        for batch in batches:
            fresh = [number for number in batch if KEYS[number] not in plain]
            keys = [KEYS[number] for number in fresh]
            slots = list(range(slot, slot + len(keys)))
            slot += len(keys)
            if keys:
                residents.add(keys, [KEYS[number - 1] for number in fresh], fresh, slots)
            plain.update(zip(keys, slots, strict=True))
            residents.check()
        for number in removed:
            was = plain.pop(KEYS[number], None)
            assert residents.remove([KEYS[number]]) == (([], []) if was is None else ([KEYS[number]], [was]))
            residents.check()
        wanted = [plain.get(KEYS[number], -1) for number in asked]
        while wanted and wanted[-1] < 0:
            wanted.pop()
        assert residents.find([KEYS[number] for number in asked], closed=False).tolist() == wanted
        assert dict(residents.items()) == plain


class TestForest:
    def test_an_absent_parent_must_fit_when_it_comes(self) -> None:
        forest = Forest()
        assert forest.add_one(KEYS[1], KEYS[0], 3)
        assert not forest.closed
        assert not forest.add_one(KEYS[0], Key(b""), 3)
        assert forest.add_one(KEYS[0], KEYS[2], 2)
        forest.check()
        assert not forest.add_one(KEYS[2], KEYS[1], 4)
        assert forest.add_one(KEYS[2], Key(b""), 0)
        assert forest.closed
        forest.check()

    @given(
        st.lists(
            st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 9), st.integers(-1, 6)), min_size=1, max_size=5),
            max_size=5,
        )
    )
    def test_a_batch_is_its_rows_one_by_one(self, batches: list[list[tuple[int, int, int]]]) -> None:
        batch, single = Forest(), Forest()
        for rows in batches:
            # Half of each batch is a path, as the usual ones are.
            path = [(rows[0][0] + step, rows[0][0] + step - 1, rows[0][2] + step) for step in range(3)]
            for part in (rows, path):
                keys = [KEYS[key] for key, _, _ in part]
                parents = [KEYS[parent] if parent >= 0 else Key(b"") for _, parent, _ in part]
                positions = [position for _, _, position in part]
                one_by_one = list(map(single.add_one, keys, parents, positions))
                assert batch.add(keys, parents, positions) == one_by_one
                batch.check()
                assert [key in batch for key in KEYS] == [key in single for key in KEYS]

    def test_children_that_left_expect_nothing(self) -> None:
        forest = Forest()
        for child in (1, 2):
            assert forest.add_one(KEYS[child], KEYS[0], 3)
        for child in (1, 2):
            forest.remove([KEYS[child]])
            forest.check()
        assert forest.closed
        assert forest.add_one(KEYS[0], KEYS[3], 7)


class TestGhosts:
    def test_the_longest_gone_is_forgotten_first(self) -> None:
        ghosts = Ghosts(3)
        ghosts.add(KEYS[4::-1])
        assert len(ghosts) == 3
        assert ghosts.known(KEYS, 0, 1) == 3
        assert ghosts.known(KEYS, 1, 1) == 2

    def test_positions_between_chunks_count_with_them(self) -> None:
        ghosts = Ghosts(9)
        ghosts.add((KEYS[5], KEYS[3], KEYS[1]))
        assert ghosts.known(KEYS[:6], 0, 2) == 6
        assert ghosts.known(KEYS, 2, 2) == 4

    def test_none_may_be_kept(self) -> None:
        ghosts = Ghosts(0)
        ghosts.add(KEYS[:1])
        assert not len(ghosts)


class TestHolder:
    def test_requests_that_pin_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tieredkv.brain.holder.REQUESTS_MAX", 1)
        table = SlotTable(4, 1)
        table.populate(0, 4)
        slots, _ = table.lease(2, 0)
        table.publish(slots.tolist())
        holder = Holder(0, table, 4)
        assert len(holder.pin(RequestId("r"), [slots], (1,))[0]) == 2
        assert not len(holder.pin(RequestId("q"), [slots], (1,))[0])
        assert holder.unpin(RequestId("r")).tolist() == slots.tolist()
        assert len(holder.pin(RequestId("q"), [slots], (1,))[0]) == 2

    def test_a_slot_named_twice_is_pinned_once(self) -> None:
        table = SlotTable(4, 1)
        table.populate(0, 4)
        slots, _ = table.lease(1, 0)
        table.publish(slots.tolist())
        holder = Holder(0, table, 4)
        twice = np.concatenate((slots, slots))
        assert len(holder.pin(RequestId("r"), [twice], (1,))[0]) == 2
        assert holder.held == 1
        holder.unpin(RequestId("r"))
        assert not table.pins.any()
