"""What ARC, S3-FIFO and MQ do beyond their papers: chains, and a life time that follows the load."""

from tieredkv.policy import ARC, MQ, S3FIFO
from tieredkv.policy.queues import QueuePolicy
from tieredkv.types import Key

START = Key(b"")


def key(name: str) -> Key:
    return Key(name.encode().ljust(16, b"."))


def store(policy: QueuePolicy, names: list[str], parent: Key = START) -> None:
    keys = [key(name) for name in names]
    policy.insert(keys, [parent, *keys[:-1]], 0.0)


def evict(policy: QueuePolicy, count: int) -> list[str]:
    return [victim.decode().rstrip(".") for victim in policy.evict(count, frozenset(), 0.0)]


def order_after_regular_use(policy: MQ) -> list[str]:
    """In what order all leaves after ten rounds through 200 keys, many new ones, and some more uses of a few."""
    names = [f"n{number}" for number in range(200)]
    for name in names:
        store(policy, [name])
    for _ in range(9):
        for name in names:
            policy.access([key(name)], 0.0)
    for number in range(320):
        store(policy, [f"new {number}"])
    for _ in range(3):
        policy.access([key("new 318"), key("new 319")], 0.0)
    return evict(policy, 520)


def test_the_life_time_of_mq_follows_the_load() -> None:
    # Distances of 200 are counted below the next power of two.
    follows = order_after_regular_use(MQ(520))
    assert follows == order_after_regular_use(MQ(520, life_time=256))
    assert follows != order_after_regular_use(MQ(520, life_time=520))


def test_a_use_takes_what_waits_aside_to_the_main_queue() -> None:
    policy = S3FIFO(100)
    store(policy, [f"a{depth}" for depth in range(10)])
    store(policy, [f"b{depth}" for depth in range(10)])
    # All of a waits for a child that is younger than b.
    store(policy, ["c"], parent=key("a9"))
    assert evict(policy, 1) == ["b9"]
    policy.access([key(f"a{depth}") for depth in range(10)], 0.0)
    store(policy, [f"d{depth}" for depth in range(5)])
    assert evict(policy, 12) == [*(f"b{depth}" for depth in range(8, -1, -1)), "c", "d4", "d3"]


def test_a_protected_chunk_keeps_its_place() -> None:
    for policy in (ARC(8), S3FIFO(8), MQ(8)):
        for name in "abcd":
            store(policy, [name])
        assert [victim.decode()[0] for victim in policy.evict(2, {key("a"), key("b")}, 0.0)] == ["c", "d"]
        assert evict(policy, 2) == ["a", "b"]


def test_a_chain_that_waited_leaves_before_younger_ones() -> None:
    for policy in (ARC(20), S3FIFO(20), MQ(20)):
        store(policy, ["a0", "a1"])
        store(policy, ["b0"])
        store(policy, ["a2"], parent=key("a1"))
        store(policy, ["c0"])
        assert evict(policy, 4) == ["b0", "a2", "a1", "a0"]
