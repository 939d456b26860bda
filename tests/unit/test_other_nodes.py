"""The brain among other nodes, by hand: what it reads from them, gives to them, takes from them, and keeps."""

from collections.abc import Sequence

import pytest

from tests.stateful.node import Tag
from tests.stateful.others import PEER, OtherNode
from tests.unit.test_cold_tier import DEADLINE_S, SLOTS, A, Node, Q, R, chain, hybrid_node
from tieredkv.brain.elsewhere import Copy
from tieredkv.brain.intake import FLIGHTS_MAX, Offered
from tieredkv.brain.moves import Demote, Fetch, Moved, Offer, Pull
from tieredkv.brain.peer_index import fingerprints
from tieredkv.types import KEY_BYTES_MAX, KEY_BYTES_MIN, Key, RequestId, SlotState


def among(other: OtherNode, **more: object) -> Node:
    return Node(elsewhere=other, **more)  # type: ignore[arg-type]


def holding(keys: list[Key], *, page: bool = False) -> OtherNode:
    """Another node that has these, its places numbered as it likes."""
    other = OtherNode()
    for key in keys:
        other.hold(0, key, ("kv",), page=page)
    return other


def offered(keys: list[Key], start: int = 0) -> list[Offered]:
    parents = [Key(b""), *keys]
    return [Offered(0, key, parents[at], at, at, at + 1) for at, key in enumerate(keys) if at >= start]


class TestReading:
    def test_a_chain_that_another_node_has_is_fetched(self) -> None:
        keys = chain("x", 3)
        node = among(holding(keys))
        assert node.arrive(keys).coming == 3
        node.step()
        (job,) = node.mover.jobs(Fetch)
        assert isinstance(job, Fetch)
        assert (job.peer, job.keys, job.positions) == (PEER, tuple(keys), (0, 1, 2))
        assert job.parents == (b"", *keys[:2])
        node.mover.end()
        (progress,) = node.step()
        assert progress.over
        assert progress.ready_to == 3
        assert len(node.arrive(keys, Q).slots[0]) == 3, "now it is here"

    def test_own_pages_come_before_other_nodes(self) -> None:
        keys = chain("x", 3)
        other = holding(keys[2:])
        node = among(other)
        node.manager.offered(PEER, 1, offered(keys[:2]))
        node.mover.end()
        node.step()
        assert node.arrive(keys).coming == 3
        node.step()
        assert sorted(type(job).__name__ for job in node.mover.pending.values()) == ["Fetch", "Promote"]

    def test_what_nobody_has_ends_the_wish(self) -> None:
        keys = chain("x", 4)
        node = among(holding([*keys[:2], keys[3]]))
        assert node.arrive(keys).coming == 2

    def test_a_node_that_cannot_be_reached_is_not_waited_for(self) -> None:
        keys = chain("x", 3)
        other = holding(keys)
        other.reachable = False
        assert not among(other).arrive(keys).coming

    def test_what_did_not_prove_itself_is_not_asked_for_again(self) -> None:
        keys = chain("x", 2)
        other = holding(keys)
        node = among(other)
        node.arrive(keys)
        node.step()
        (number,) = node.mover.pending
        node.mover.pending.clear()
        node.mover.results.append(Moved(number, frozenset({0, 1}), 0.1, unproven=frozenset({0})))
        (progress,) = node.step()
        assert progress.over
        assert other.distrusted == 1
        assert node.arrive(keys, Q).coming == 0

    def test_slower_than_computing_is_not_worth_it(self) -> None:
        keys = chain("x", 2)
        node = among(holding(keys))
        node.placement.loaded(PEER, 1, 10.0)
        assert not node.arrive(keys).coming
        node.placement.forget(PEER)
        assert node.arrive(keys, Q).coming == 2

    def test_who_waits_too_long_computes(self) -> None:
        keys = chain("x", 2)
        node = among(holding(keys))
        node.arrive(keys)
        node.step()
        (progress,) = node.step(DEADLINE_S)
        assert progress.over
        assert progress.ready_to == 0
        assert node.count(SlotState.QUARANTINED) == 2, "the mover may still write them"
        node.mover.end()
        node.step()
        assert node.count(SlotState.FREE) == SLOTS


class TestGiving:
    def test_a_victim_goes_to_the_node_where_it_belongs(self) -> None:
        other = OtherNode()
        other.is_home = True
        node = among(other, low=4, high=6)
        keys = chain("x", SLOTS - 2)
        node.store(keys)
        node.step()
        (job,) = node.mover.jobs(Offer)
        assert isinstance(job, Offer)
        assert job.keys == tuple(keys[2:])
        node.mover.end()
        node.step()
        assert len(node.arrive(keys).slots[0]) == SLOTS - 2, "safe, and still found"
        node.manager.release(A, R)
        node.step()
        assert node.mover.jobs(Demote) == []

    def test_what_was_not_taken_is_lost(self) -> None:
        other = OtherNode()
        other.is_home = True
        node = among(other, low=4, high=6)
        node.store(chain("x", SLOTS - 2))
        node.step()
        node.mover.end(failed=frozenset({2, 3}))
        node.step()
        assert node.manager.tallies.evictions == {"room": 2}

    def test_what_a_page_elsewhere_holds_is_not_kept_twice(self) -> None:
        keys = chain("x", SLOTS - 2)
        node = among(holding(keys, page=True), low=4, high=6)
        # The other node's five places hold the last five.
        node.store(keys)
        node.step()
        assert not node.mover.pending
        assert len(node.arrive(keys).slots[0]) == SLOTS - 2

    def test_a_slot_elsewhere_is_no_safe_copy(self) -> None:
        keys = chain("x", SLOTS - 2)
        node = among(holding(keys), low=4, high=6)
        node.store(keys)
        node.step()
        assert node.mover.jobs(Demote)


class TestTaking:
    def test_an_offer_is_pulled_and_found(self) -> None:
        keys = chain("x", 3)
        node = Node()
        node.manager.offered(PEER, 7, offered(keys))
        (job,) = node.mover.jobs(Pull)
        assert isinstance(job, Pull)
        assert job.keys == tuple(keys)
        node.mover.end()
        (pulled,) = node.manager.step().pulled
        assert (pulled.ticket, pulled.stored) == (7, (0, 1, 2))
        assert node.arrive(keys).coming == 3
        node.manager.check()

    def test_what_is_here_is_not_pulled_again(self) -> None:
        keys = chain("x", 2)
        node = Node()
        node.manager.offered(PEER, 1, offered(keys))
        node.mover.end()
        node.manager.step()
        node.manager.offered(PEER, 2, offered(keys))
        assert not node.mover.pending
        assert [(each.ticket, each.stored) for each in node.manager.step().pulled] == [(2, (0, 1))]

    def test_what_does_not_fit_or_arrive_is_refused(self) -> None:
        keys = chain("x", 4)
        node = Node(pages=2)
        node.manager.offered(PEER, 1, offered(keys))
        node.mover.end(failed=frozenset({1}))
        assert [each.stored for each in node.manager.step().pulled] == [(0,)]
        node.manager.check()

    def test_offers_beyond_the_bound_are_refused(self) -> None:
        node = Node(pages=2 * FLIGHTS_MAX)
        for number in range(FLIGHTS_MAX + 1):
            node.manager.offered(PEER, number, offered(chain(str(number), 1)))
        assert [each.stored for each in node.manager.step().pulled] == [()]

    def test_a_reset_forgets_what_is_being_pulled(self) -> None:
        keys = chain("x", 2)
        node = Node()
        node.manager.offered(PEER, 1, offered(keys))
        node.manager.reset()
        node.mover.end()
        assert [each.stored for each in node.manager.step().pulled] == [()]
        assert not node.arrive(keys).coming
        node.manager.check()


def test_pages_that_nobody_uses_leave_after_a_while() -> None:
    node = Node(ttl_s=60.0)
    used, unused = chain("x", 2), chain("y", 2)
    for ticket, keys in enumerate((used, unused)):
        node.manager.offered(PEER, ticket, offered(keys))
    node.mover.end()
    node.step()
    node.clock.advance(40.0)
    node.arrive(used)
    node.manager.release(A, R)
    node.step()
    node.step(40.0)
    assert node.arrive(used, RequestId("later")).coming == 2
    assert not node.arrive(unused, RequestId("last")).coming


class Fingerprinting(OtherNode):
    """Looks its keys up by their fingerprints, as what is told by real nodes is."""

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        assert len(fingerprints(keys, group)) == len(keys)
        return super().find(group, keys)


@pytest.mark.parametrize("size", [KEY_BYTES_MAX + 1, KEY_BYTES_MIN - 1, 0])
def test_a_key_of_no_possible_size_ends_the_chain(size: int) -> None:
    keys = chain("x", 3)
    other = Fingerprinting()
    for key in keys:
        other.hold(0, key, ("kv",), page=False)
    assert among(other).arrive([*keys[:2], Key(b"z" * size), keys[2]]).coming == 2


class TestSeveralGroups:
    def test_a_window_that_slides_is_fetched_past_its_holes(self) -> None:
        keys = chain("x", 300)
        other = EndlessNode()
        for at, key in enumerate(keys):
            other.hold(0, key, ("kv",), page=False)
            if at >= 298:
                other.hold(1, key, ("kv",), page=False)
        node = among(other, groups=2)
        assert node.arrive([*keys, *chain("y", 300)]).coming == 300

    def test_what_only_another_node_has_completes_what_is_cold(self) -> None:
        keys = chain("x", 3)
        other = OtherNode()
        node = hybrid_node(keys, window=1, elsewhere=other)
        other.hold(1, keys[1], ("kv",), page=False)
        assert node.arrive(keys).coming == 3
        node.step()
        (fetch,) = node.mover.jobs(Fetch)
        assert list(zip(fetch.groups, fetch.positions, strict=True)) == [(1, 1)]


class EndlessNode(OtherNode):
    """It has places for all that it is given."""

    def hold(self, group: int, key: Key, tag: Tag, *, page: bool) -> None:
        del tag, page
        self.told[group, key] = Copy(PEER, len(self.told), 1)
