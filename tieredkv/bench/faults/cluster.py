"""Three nodes that know each other, through wires that can be spoilt: two for engines, one of memory only."""

import socket
from contextlib import ExitStack, suppress
from random import Random, SystemRandom
from typing import Final, Self

from tieredkv.bench.faults.content import BODY_BYTES
from tieredkv.bench.faults.etcd import EtcdProcess, find_etcd
from tieredkv.bench.faults.node import Node, wait_for
from tieredkv.bench.faults.wire import Wire
from tieredkv.errors import Unreachable
from tieredkv.tiers.slots import slot_bytes
from tieredkv.tiers.vineyard import BLOB_OVERHEAD_BYTES

SLOTS: Final = 256
PAGES: Final = 256
PAGES_OF_MEMORY_NODE: Final = 1024
PAGE_TABLE_BYTES: Final = 1024
"""What the sidecar itself needs to know of a page, at most; cold.size includes it."""

LOAD_DEADLINE_S: Final = 1.0
ENGINE_NODES: Final = ("a", "b")
MEMORY_NODE: Final = "m"
PORTS: Final = (10_000, 32_000)


class Cluster:
    """`control` and `rpc` are the wires in front of each node."""

    def __init__(self, random: Random) -> None:
        """Starts nothing yet."""
        names = (*ENGINE_NODES, MEMORY_NODE)
        ports = _free_ports(2 * len(names))
        listen = dict(zip(names, ports[: len(names)], strict=True))
        rpc = dict(zip(names, ports[len(names) :], strict=True))
        self._opened = ExitStack()
        self.control = {name: self._wire(listen[name], random, frames=True) for name in names}
        self.rpc = {name: self._wire(rpc[name], random, frames=False) for name in names}
        binary = find_etcd()
        self.etcd = EtcdProcess(binary) if binary is not None else None
        if self.etcd is not None:
            self._opened.callback(self.etcd.close)
        self.nodes: dict[str, Node] = {}
        for name in names:
            node = Node(name, self._settings(name, listen[name], rpc[name]))
            self._opened.callback(node.close)
            self.nodes[name] = node

    def __enter__(self) -> Self:
        """Start everything and wait until all know each other. Raises Unreachable."""
        try:
            if self.etcd is not None:
                self.etcd.start()
            for node in self.nodes.values():
                node.start()
            for node in self.nodes.values():
                wait_for(node.ready, f"node {node.name} is ready")
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def wires(self) -> list[Wire]:
        return [*self.control.values(), *self.rpc.values()]

    def isolate(self, name: str) -> None:
        """Nobody hears a node any more, nor it the others."""
        self.control[name].cut()
        self.rpc[name].cut()
        for other, wire in self.control.items():
            if other != name:
                wire.cut(dialler=name)

    def lacking(self) -> str:
        """What keeps the nodes from serving, knowing and asking each other; empty when nothing does."""
        reasons = map(self._lacking, self.nodes.values())
        return next((reason for reason in reasons if reason), "")

    def _lacking(self, node: Node) -> str:
        try:
            if not node.ready():
                return f"node {node.name} is not ready"
            status = node.status()
        except Unreachable as error:
            return str(error)
        if not status["pools"]:
            return f"node {node.name} has no pool"
        peers = [peer["node"] for peer in status["cluster"]["peers"]]
        shared = [pool["sharing"]["peers"] for pool in status["pools"]]
        if len(peers) < len(self.nodes) - 1 or min(shared) < len(peers):
            return f"node {node.name} knows {peers} and shares with {shared} of them"
        return ""

    def _settings(self, name: str, listen: int, rpc: int) -> dict[str, object]:
        pages = PAGES_OF_MEMORY_NODE if name == MEMORY_NODE else PAGES
        place_bytes = slot_bytes(BODY_BYTES) + BLOB_OVERHEAD_BYTES
        cluster: dict[str, object] = {
            "node": name,
            "listen": f"127.0.0.1:{listen}",
            "advertise": f"127.0.0.1:{self.control[name].port}",
            "rpc_port": rpc,
            "rpc_advertise": f"127.0.0.1:{self.rpc[name].port}",
        }
        if self.etcd is not None:
            cluster["etcd"] = [self.etcd.url]
        else:
            cluster["peers"] = [f"127.0.0.1:{wire.port}" for wire in self.control.values()]
        return {
            "warm": {"size": (1 if name == MEMORY_NODE else 4) * SLOTS // 4 * place_bytes},
            "cold": {
                "size": pages * (place_bytes + PAGE_TABLE_BYTES),
                "low_free": 0.2,
                "high_free": 0.4,
                "load_deadline": f"{LOAD_DEADLINE_S:g}s",
            },
            "cluster": cluster,
            # It takes in every chunk: what is stored can be asked for.
            "policy": {"name": "lru"},
        }

    def _wire(self, port: int, random: Random, *, frames: bool) -> Wire:
        wire = Wire(port, Random(random.random()), frames=frames)
        self._opened.callback(wire.close)
        return wire


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to whoever dials: ours are free for a while, when a node is dead."""
    ports: set[int] = set()
    while len(ports) < count:
        port = SystemRandom().randrange(*PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)
