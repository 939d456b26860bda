"""Nodes of a list find each other once, however the list spells their addresses."""

import selectors
import threading
import time

import pytest

from tieredkv.clock import ManualClock
from tieredkv.metrics import Totals
from tieredkv.sidecar.cluster.acquaintance import PeerJoined
from tieredkv.sidecar.cluster.neighbours import DIAL_BACKOFF_MAX_S, Neighbours
from tieredkv.sidecar.cluster.settings import Address
from tieredkv.sidecar.inbox import Inbox

from .cluster_nodes import settings
from .test_cluster import free_ports

DEADLINE_S = 10.0


class Node:
    """A node's neighbours, turned by the test."""

    def __init__(self, name: str, epoch: int, port: int, peers: tuple[Address, ...], clock: ManualClock) -> None:
        self.selector = selectors.DefaultSelector()
        self.inbox = Inbox()
        self.clock = clock
        self.greetings = 0
        own = settings(name, listen=Address("127.0.0.1", port), peers=peers)
        self.neighbours = Neighbours(
            own,
            epoch,
            self.inbox,
            clock,
            Totals(),
            self.selector,
            invited=lambda _: None,
            reset=lambda _, __: None,
        )

    def turn(self) -> None:
        for key, mask in self.selector.select(0):
            self.neighbours.exchange(key.fileobj, mask)  # type: ignore[arg-type]
        for event in self.inbox.take():
            self.greetings += isinstance(event, PeerJoined)
            self.neighbours.react(event)  # type: ignore[arg-type]
        self.neighbours.tick(self.clock.now_s())

    def close(self) -> None:
        self.neighbours.close()
        self.selector.close()


def _settle(nodes: list[Node]) -> None:
    """Turn until nobody dials any more."""
    until_s = time.monotonic() + DEADLINE_S
    quiet = 0
    while quiet < 3:
        assert time.monotonic() < until_s
        for node in nodes:
            node.turn()
        busy = any(thread.name in {"tieredkv-dialer", "tieredkv-greeting"} for thread in threading.enumerate())
        quiet = 0 if busy else quiet + 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nodes_that_found_each_other_are_not_dialled_again(host: str) -> None:
    clock = ManualClock(1000.0)
    ports = free_ports(2)
    peers = tuple(Address(host, port) for port in ports)
    nodes = [Node(name, at + 1, ports[at], peers, clock) for at, name in enumerate("ab")]
    try:
        until_s = time.monotonic() + DEADLINE_S
        while not all(list(node.neighbours.peers()) for node in nodes):
            assert time.monotonic() < until_s
            for node in nodes:
                node.turn()
        _settle(nodes)
        clock.advance(2 * DIAL_BACKOFF_MAX_S / 3)
        _settle(nodes)
        found = [node.greetings for node in nodes]
        for _ in range(10):
            clock.advance(2 * DIAL_BACKOFF_MAX_S / 3)
            _settle(nodes)
        assert [node.greetings for node in nodes] == found
        assert all(len(list(node.neighbours.peers())) == 1 for node in nodes)
    finally:
        for node in nodes:
            node.close()
