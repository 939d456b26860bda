"""Several real sidecars with their vineyardds and movers: what one node stored serves the others."""

import os
import signal
import socket
from collections.abc import Sequence
from itertools import count

import pytest

from tieredkv.sidecar.warmtier import PAGE_METADATA_BYTES

from .conftest import Start
from .engine import Engine, chain
from .process import SidecarProcess, listening_ports, suspend, wait_until

CHUNK_BYTES = 4096 + 256 + 64 + 64
SLOTS = 256
PAGES = 1024


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Nodes:
    """Nodes that know each other by a list."""

    def __init__(self, start: Start, names: Sequence[str]) -> None:
        self._start = start
        ports = free_ports(2 * len(names))
        self._ports = dict(zip(names, zip(ports[::2], ports[1::2], strict=True), strict=True))

    def start(self, name: str, *, slots: int = SLOTS, pages: int = 0, **more: object) -> SidecarProcess:
        listen, rpc = self._ports[name]
        cluster = {
            "node": name,
            "listen": f"127.0.0.1:{listen}",
            "rpc_port": rpc,
            "peers": [f"127.0.0.1:{other}" for other, _ in self._ports.values()],
        }
        cold = {"size": pages * (CHUNK_BYTES + PAGE_METADATA_BYTES), "low_free": 0.2, "high_free": 0.4}
        warm = {"size": str(max(slots * CHUNK_BYTES, 1 << 20))}
        return self._start(
            warm_more=warm, cluster=cluster | dict(more.pop("cluster", {})), cold=cold, policy={"name": "lru"}, **more
        )


def joined(*sidecars: SidecarProcess) -> None:
    """All of them know all others."""
    for sidecar in sidecars:
        wait_until(lambda one=sidecar: len(one.status()["cluster"]["peers"]) >= len(sidecars) - 1, "the others")


def told(of: SidecarProcess, entries: int) -> None:
    """Its index has so many chunks of other nodes, and it can read them."""
    wait_until(lambda: of.status()["mover"]["ready"], "a mover")
    wait_until(lambda: sharing(of)["index_entries"] >= entries, f"{entries} entries")


def sharing(of: SidecarProcess) -> dict:
    return next((pool["sharing"] for pool in of.status()["pools"]), {"index_entries": 0, "held": 0, "peers": 0})


def read(engine: Engine, keys: list[bytes], name: str) -> None:
    """All of the chain can be read. What a busy machine brings too late is a miss, and asked for again."""
    numbers = count()
    wait_until(lambda: engine.load(keys, f"{name}-{next(numbers)}") == len(keys), f"all of {name}")


def test_a_node_reads_what_another_stored(start: Start) -> None:
    nodes = Nodes(start, ["a", "b"])
    a, b = nodes.start("a"), nodes.start("b")
    joined(a, b)
    first, second = Engine(a.socket), Engine(b.socket)
    keys = chain(1, 64)
    first.store(keys)
    told(b, 64)
    read(second, keys, "first")
    moved = b.status()["counters"]["tieredkv_moved_bytes_total"]
    assert moved["fetch"] >= 64 * 4096
    assert second.load(keys, "again") == 64
    assert b.status()["counters"]["tieredkv_moved_bytes_total"] == moved, "the second time it is here"


def test_a_node_that_joins_with_chunks_is_used_from_its_snapshot_on(start: Start) -> None:
    nodes = Nodes(start, ["a", "b"])
    b = nodes.start("b")
    second = Engine(b.socket)
    keys = chain(1, 64)
    second.store(keys)
    a = nodes.start("a")
    first = Engine(a.socket)
    joined(a, b)
    told(a, 64)
    read(first, keys, "what it had before")


def test_a_memory_only_node_serves_what_a_dead_node_demoted(start: Start) -> None:
    nodes = Nodes(start, ["a", "b", "m"])
    a, b, m = nodes.start("a"), nodes.start("b"), nodes.start("m", slots=1, pages=PAGES)
    joined(a, b, m)
    first, second = Engine(a.socket), Engine(b.socket)
    wait_until(lambda: m.status()["pools"], "a pool of the memory-only node")
    wait_until(lambda: sharing(a)["peers"] == 2, "shared")
    for sidecar in (a, m):
        wait_until(lambda one=sidecar: one.status()["mover"]["ready"], "a mover")
    stored = [chain(seed, 32) for seed in range(16)]
    for keys in stored:
        assert first.store(keys) == 32
        wait_until(lambda: not a.status()["slots"]["demoting"], "demoted")
    held = m.status()["pages"]["held"]
    assert held >= SLOTS / 2
    told(b, held)
    first.close()
    a.kill_all()
    wait_until(lambda: len(b.status()["cluster"]["peers"]) == 1, "the dead node is out", 8)
    told(b, held)  # before, the dead node's were among them
    numbers = count()

    def loaded() -> int:
        # A late read is a miss, and costs what comes right after it: then all are asked for again.
        return sum(second.load(keys, f"r{next(numbers)}") for keys in stored)

    # Of the last chain only a part had left, and its head died.
    found = wait_until(lambda: (chunks := loaded()) >= held - 31 and chunks, "what was demoted")
    assert found <= m.status()["pages"]["held"]


def test_a_reset_on_one_node_is_a_reset_on_all(start: Start) -> None:
    nodes = Nodes(start, ["a", "b"])
    a, b = nodes.start("a"), nodes.start("b")
    joined(a, b)
    first, second = Engine(a.socket), Engine(b.socket)
    keys = chain(1, 32)
    first.store(keys)
    second.store(chain(2, 32))
    told(b, 32)
    first.reset()
    assert second.load(keys) == 0
    wait_until(lambda: b.status()["pools"][0]["resets"] == 1, "the news")
    assert second.load(chain(2, 32)) == 0
    first.store(keys)
    told(b, 32)
    read(second, keys, "new")


def test_a_node_that_comes_back_empty_is_not_believed_to_be_full(start: Start) -> None:
    nodes = Nodes(start, ["a", "b"])
    a, b = nodes.start("a"), nodes.start("b")
    joined(a, b)
    first, second = Engine(a.socket), Engine(b.socket)
    keys = chain(1, 32)
    first.store(keys)
    told(b, 32)
    first.close()
    a.kill_all()
    a.start()
    joined(a, b)
    wait_until(lambda: sharing(b)["peers"] == 0 or sharing(b)["index_entries"] == 0, "forgotten")
    assert second.load(keys) == 0
    again = Engine(a.socket)
    again.store(keys)
    told(b, 32)
    read(second, keys, "again")


@pytest.mark.parametrize("what", ["vineyardd", "sidecar"])
def test_a_stopped_node_costs_one_deadline_for_all(start: Start, what: str) -> None:
    nodes = Nodes(start, ["a", "b"])
    a, b = nodes.start("a"), nodes.start("b")
    joined(a, b)
    first, second = Engine(a.socket), Engine(b.socket)
    stored = [chain(seed, 8) for seed in range(8)]
    for keys in stored:
        first.store(keys)
    told(b, 64)
    status = a.status()
    pid = status["vineyardd"]["pid"] if what == "vineyardd" else status["pid"]
    suspend(pid)
    try:
        if what == "vineyardd":
            loaded = [second.load(keys, f"r{number}") for number, keys in enumerate(stored)]
            assert loaded == [0] * 8
            assert b.status()["counters"]["tieredkv_failures_total"]["fetch_unreachable"] <= 32, (
                "not each request waits"
            )
            assert b.status()["cluster"]["peers"][0]["breaker"] in {"open", "half_open"}
        else:
            for number, keys in enumerate(stored):
                read(second, keys, f"its memory, without it, r{number}")
            wait_until(lambda: not b.status()["cluster"]["peers"], "out after its silence", 9)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: sharing(b)["index_entries"] >= 64, "back")
    fresh = [chain(seed, 8) for seed in range(100, 104)]
    for keys in fresh:
        first.store(keys)
    told(b, 96)

    def served() -> bool:
        return [second.load(keys, f"s{number}") for number, keys in enumerate(fresh)] == [8] * 4

    wait_until(served, "served again")


def test_nodes_of_another_secret_or_cluster_share_nothing(start: Start, tmp_path) -> None:
    (tmp_path / "right").write_text("the right secret of all\n")
    (tmp_path / "wrong").write_text("another secret entirely\n")
    nodes = Nodes(start, ["a", "b"])
    a = nodes.start("a", cluster={"secret_file": str(tmp_path / "right")})
    b = nodes.start("b", cluster={"secret_file": str(tmp_path / "wrong")})
    wait_until(lambda: a.status()["cluster"]["refused"] > 0, "a refusal")
    assert not a.status()["cluster"]["peers"]
    assert not b.status()["cluster"]["peers"]


def moved(of: SidecarProcess, movement: str) -> int:
    """Chunks that were moved so."""
    return int(of.status()["counters"]["tieredkv_moved_bytes_total"].get(movement, 0)) // (4096 + 256 + 64)


def test_what_many_nodes_ask_for_is_on_each_of_them_and_what_one_uses_is_kept_once(start: Start) -> None:
    nodes = Nodes(start, ["a", "b", "c", "m"])
    a, b, c = (nodes.start(name) for name in "abc")
    m = nodes.start("m", slots=1, pages=PAGES)
    joined(a, b, c, m)
    engines = {name: Engine(node.socket) for name, node in zip("abc", (a, b, c), strict=True)}
    wait_until(lambda: m.status()["pools"], "a pool of the memory-only node")
    for node in (a, m):
        wait_until(lambda one=node: sharing(one)["peers"] == 3, "shared")
        wait_until(lambda one=node: one.status()["mover"]["ready"], "a mover")
    popular, own = chain(1, 32), chain(2, 32)
    engines["a"].store(popular)
    engines["a"].store(own)
    for name, node in (("b", b), ("c", c)):
        told(node, 64)
        for turn in range(3):
            read(engines[name], popular, f"{name}{turn}")
        assert moved(node, "fetch") == 32, "once, then it is here"
    # What only one node uses leaves its slots, and comes back when it is asked for.
    for turn in range(2):
        for seed in range(8):
            engines["a"].store(chain(100 * turn + seed + 10, 32))
            wait_until(lambda: not a.status()["slots"]["demoting"], "demoted")
        told(a, m.status()["pages"]["held"])
        read(engines["a"], own, f"own{turn}")
        wait_until(lambda: not a.status()["slots"]["demoting"], "demoted")
        status = m.status()
        assert not status["pages"]["filling"]
        assert moved(m, "pull") == status["pages"]["held"], "each chunk was taken once, and is in one page"


def test_what_listens_is_what_the_operator_said(start: Start) -> None:
    listen, rpc = free_ports(2)
    cluster = {"node": "a", "listen": f"127.0.0.1:{listen}", "rpc_port": rpc}
    node = start(cluster=cluster, cold={"size": "4MiB"})
    engine = Engine(node.socket)
    engine.store(chain(1, 4))
    # vineyardd listens on every interface, whatever one would like: that is in the documents, and in doctor.
    assert listening_ports(node) == {listen: "0100007F", rpc: "00000000"}
