"""The faults. Each is a function of a `Bench` that injects, lets the load run, and heals."""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from time import monotonic, sleep
from typing import Final

from tieredkv.bench.faults.cluster import ENGINE_NODES, Cluster
from tieredkv.bench.faults.content import Chain, Chains
from tieredkv.bench.faults.engine import Engine
from tieredkv.bench.faults.hiccups import Hiccups
from tieredkv.bench.faults.load import Load
from tieredkv.bench.faults.memory import NodeMemory, torn
from tieredkv.bench.faults.node import PARTS, Node, wait_for
from tieredkv.bench.faults.tally import Tally
from tieredkv.errors import Unreachable

FAULT_S: Final = (0.3, 2.0)
"""How long most faults last."""

LONG_FAULT_S: Final = 6.5
"""Beyond the time after which a silent node is gone."""

FLIPS_PER_PLACE: Final = (4, 32)
HOARD_S: Final = 1.0
ASKED_AT_ONCE: Final = 16


class Bench:
    """What faults work on. `probes` are engines of the caller's thread, one at each of ENGINE_NODES."""

    def __init__(
        self, cluster: Cluster, load: Load, chains: Chains, tally: Tally, hiccups: Hiccups, random: Random
    ) -> None:
        self.cluster = cluster
        self.hiccups = hiccups
        self.load = load
        self.chains = chains
        self.tally = tally
        self.random = random
        self.probes: dict[str, Engine] = {}
        self.flips = 0
        self.repeated = 0

    def any_node(self) -> Node:
        node = self.random.choice(list(self.cluster.nodes.values()))
        node.status()
        return node

    def a_while(self, *, long: bool = False) -> None:
        """Let the load run, as long as a fault lasts."""
        self.a_while_of(LONG_FAULT_S if long else self.random.uniform(*FAULT_S))

    def a_while_of(self, seconds: float) -> None:
        """Let the load run. The probes only keep their connections."""
        sleep(seconds)

    def ask(self, node: str, chains: list[Chain]) -> int:
        """Look these up at a node; how many chunks came."""
        return sum(
            sum(self.probes[node].load(chains[at : at + ASKED_AT_ONCE])) for at in range(0, len(chains), ASKED_AT_ONCE)
        )

    def ask_elsewhere(self, name: str, chains: list[Chain]) -> None:
        """Look these up at all engines' nodes but one."""
        for node in ENGINE_NODES:
            if node != name:
                self.ask(node, chains)


Fault = Callable[[Bench], None]


# --- processes ----------------------------------------------------------------------------------------


def kill(part: str) -> Fault:
    """kill -9 of one process of a node; its sidecar is started again at once."""

    def fault(bench: Bench) -> None:
        node = bench.any_node()
        node.kill(part)
        if part == "sidecar":
            bench.a_while()
            node.start()

    return fault


def kill_node(bench: Bench) -> None:
    """kill -9 of a whole node, which comes back empty."""
    node = bench.any_node()
    node.kill_all()
    bench.a_while(long=bench.random.random() < 0.3)
    node.start()


def stop(part: str) -> Fault:
    """SIGSTOP of one process, and SIGCONT."""

    def fault(bench: Bench) -> None:
        node = bench.any_node()
        node.signal(part, signal.SIGSTOP)
        try:
            bench.a_while(long=bench.random.random() < 0.3)
        finally:
            node.signal(part, signal.SIGCONT)

    return fault


def kill_etcd(bench: Bench) -> None:
    """kill -9 of etcd, which sometimes comes back empty, and a node that comes back meanwhile."""
    etcd = bench.cluster.etcd
    if etcd is None:
        raise Unreachable("there is no etcd")
    etcd.kill()
    node = bench.any_node() if bench.random.random() < 0.5 else None
    if node is not None:
        node.kill("sidecar")
        node.start()
    bench.a_while(long=True)
    if bench.random.random() < 0.5:
        etcd.forget()
    etcd.start()


# --- the network --------------------------------------------------------------------------------------


def cut_node(bench: Bench) -> None:
    """One node is alone."""
    bench.cluster.isolate(bench.any_node().name)
    bench.a_while(long=bench.random.random() < 0.3)


def cut_network(bench: Bench) -> None:
    """Every node is alone."""
    for wire in bench.cluster.wires:
        wire.cut()
    bench.a_while(long=bench.random.random() < 0.3)


def hold_network(bench: Bench) -> None:
    """All that is said arrives late, at once."""
    for wire in bench.cluster.wires:
        wire.hold()
    bench.a_while(long=bench.random.random() < 0.3)


def delay_network(bench: Bench) -> None:
    """Everything takes longer."""
    delay_s = bench.random.choice((0.02, 0.2, 0.7))
    for wire in bench.cluster.wires:
        wire.delay(delay_s)
    bench.a_while()


def corrupt_bodies(bench: Bench) -> None:
    """Bits of what is read from other nodes change on the way."""
    for wire in bench.cluster.rpc.values():
        wire.corrupt(bench.random.choice((0.02, 0.2, 1.0)))
    bench.a_while()


def corrupt_messages(bench: Bench) -> None:
    """Bits of what nodes say to each other change on the way."""
    for wire in bench.cluster.control.values():
        wire.corrupt(bench.random.choice((0.02, 0.2, 1.0)))
    bench.a_while()


def late_messages(bench: Bench) -> None:
    """Messages come twice, long after, also those of connections that are gone."""
    for _ in range(4):
        for wire in bench.cluster.control.values():
            bench.repeated += wire.repeat(bench.random.randint(1, 4))
        sleep(0.2)


# --- memory -------------------------------------------------------------------------------------------


def full_pools(bench: Bench) -> None:
    """Other engines hold as many slots as they may."""
    with ExitStack() as opened:
        for node in ENGINE_NODES:
            for number in range(2):
                socket = bench.cluster.nodes[node].socket
                name = f"hoarder-{number}-{node}"
                hoarder = Engine(name, node, socket, bench.chains, bench.tally, reserve=1024)
                opened.callback(hoarder.close)
                hoarder.attach().rest(HOARD_S)


def corrupt(*, pages: bool) -> Fault:
    """Bits of a node's pages (or slots) change; then others ask for what was there."""

    def fault(bench: Bench) -> None:
        with bench.load.paused():
            choice = [node for node in bench.cluster.nodes.values() if pages or node.name in ENGINE_NODES]
            node = bench.random.choice(choice)
            memory = NodeMemory(node)
            held = memory.held(pages=pages)
            hurt = bench.chains.damage(node.name, {one.key for one in held}, slots=not pages)
            for one in held:
                bench.flips += memory.flip(one, bench.random.randint(*FLIPS_PER_PLACE), bench.random)
            bench.ask_elsewhere(node.name, hurt)
            if pages and node.name in ENGINE_NODES:
                bench.ask(node.name, hurt)

    return fault


def torn_writes(bench: Bench) -> None:
    """Slots are rewritten while other nodes read them."""
    with bench.load.paused():
        name = bench.random.choice(ENGINE_NODES)
        memory = NodeMemory(bench.cluster.nodes[name])
        held = memory.held(pages=False)
        hurt = bench.chains.damage(name, {one.key for one in held}, slots=False)
        with torn(memory, held, bench.random):
            bench.ask_elsewhere(name, hurt)


def stale_index(bench: Bench) -> None:
    """A node does not hear what another one has lost meanwhile, and asks for it."""
    name = bench.random.choice(ENGINE_NODES)
    known = bench.chains.lately(name, ASKED_AT_ONCE * 2)
    for wire in bench.cluster.control.values():
        wire.hold()
    until_s = monotonic() + FAULT_S[1]
    while monotonic() < until_s:
        bench.probes[name].store(bench.chains.make(name, 24))
        bench.probes[name].rest(0.01)
    bench.ask_elsewhere(name, known)


def old_epoch(bench: Bench) -> None:
    """A node comes back empty while the others still hear of its former life only."""
    node = bench.any_node()
    known = bench.chains.lately("", ASKED_AT_ONCE * 2)
    for wire in bench.cluster.control.values():
        wire.hold()
    node.kill_all()
    node.start()
    wait_for(node.ready, f"node {node.name} is ready")
    bench.ask_elsewhere(node.name, known)
    for wire in bench.cluster.control.values():
        wire.heal()
        bench.repeated += wire.repeat(4)


FAULTS: Final[dict[str, Fault]] = {
    **{f"kill_{part}": kill(part) for part in PARTS},
    "kill_node": kill_node,
    **{f"stop_{part}": stop(part) for part in PARTS},
    "kill_etcd": kill_etcd,
    "cut_node": cut_node,
    "cut_network": cut_network,
    "hold_network": hold_network,
    "delay_network": delay_network,
    "corrupt_bodies": corrupt_bodies,
    "corrupt_messages": corrupt_messages,
    "late_messages": late_messages,
    "full_pools": full_pools,
    "corrupt_pages": corrupt(pages=True),
    "corrupt_slots": corrupt(pages=False),
    "torn_writes": torn_writes,
    "stale_index": stale_index,
    "old_epoch": old_epoch,
}
