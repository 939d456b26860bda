"""Checks of a node among others: is it safe, can it be reached, and can it work with those that there are?

Every other node is asked, by the same greeting with which sidecars meet; nothing changes there.
"""

import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

from msgspec.structs import replace

from tieredkv import __version__
from tieredkv.cli.checks.check import Check, Verdict
from tieredkv.config import HttpAddress
from tieredkv.errors import ConfigError, TieredKVError
from tieredkv.sidecar.cluster.acquaintance import HANDSHAKE_DEADLINE_S, PeerJoined
from tieredkv.sidecar.cluster.agreement import greeting
from tieredkv.sidecar.cluster.dialer import dial
from tieredkv.sidecar.cluster.etcd import EtcdError
from tieredkv.sidecar.cluster.membership import etcd_members, listed
from tieredkv.sidecar.cluster.peer_protocol import PeerHello
from tieredkv.sidecar.cluster.security import Security, is_loopback, make_security
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings
from tieredkv.tiers.vineyard_frames import VINEYARD_VERSION

CLOCKS_APART_MAX_S: Final = 2.0
_ASKED_AT_A_TIME: Final = 16


def cluster(settings: ClusterSettings, metrics: HttpAddress | None) -> list[Check]:
    """All checks; some seconds when nodes do not answer."""
    checks = [ports(settings, metrics), advertised(settings), rpc(settings)]
    try:
        security = make_security(settings)
    except ConfigError as error:
        finding, _, remedy = str(error).partition("; ")
        return [*checks, Check("cluster security", Verdict.FAIL, finding, remedy or "correct it")]
    checks.append(_safe(settings))
    try:
        members = etcd_members(settings) if settings.etcd else listed(settings).members
    except (ConfigError, EtcdError) as error:
        remedy = "start etcd, or correct cluster.etcd; without it nodes keep those whom they know"
        return [*checks, Check("cluster members", Verdict.FAIL, str(error), remedy)]
    addresses = sorted({member.address for member in members})
    if not addresses:
        remedy = "name the others in cluster.peers, or start them if etcd shall tell"
        return [*checks, Check("cluster members", Verdict.WARN, "no other node is known", remedy)]
    checks.append(Check("cluster members", Verdict.OK, f"{len(addresses)} addresses"))
    with ThreadPoolExecutor(_ASKED_AT_A_TIME) as pool:
        for found in pool.map(partial(peer, settings, security), addresses):
            checks += found
    return checks


def ports(settings: ClusterSettings, metrics: HttpAddress | None) -> Check:
    """No two things of this node want one port."""
    wanted = {
        "cluster.listen": settings.listen.port if settings.listen else 0,
        "cluster.rpc_port": settings.rpc_port or 0,
        "metrics.http": metrics.port if metrics else 0,
    }
    used = {port: [key for key, other in wanted.items() if other == port] for port in wanted.values() if port}
    for port, keys in used.items():
        if len(keys) > 1:
            return Check("cluster ports", Verdict.FAIL, f"{' and '.join(keys)} are both {port}", "give each its own")
    return Check("cluster ports", Verdict.OK, ", ".join(f"{keys[0]} {port}" for port, keys in used.items()) or "none")


def advertised(settings: ClusterSettings) -> Check:
    """What other nodes are told to dial is something that they can dial."""
    name = "cluster address"
    address = settings.reachable
    if address is None:
        return Check(name, Verdict.OK, "this node dials the others, and cannot be dialled")
    if not address.host:
        if settings.etcd and settings.advertise is None:
            remedy = "set cluster.advertise to an address of this node"
            return Check(name, Verdict.FAIL, f"{settings.listen} says nothing to other nodes", remedy)
        return Check(name, Verdict.OK, f"port {address.port} of whatever address the others dial")
    try:
        socket.getaddrinfo(address.host, address.port)
    except OSError as error:
        return Check(name, Verdict.FAIL, f"{address}: {error.strerror}", "advertise a name or address that exists")
    if is_loopback(address.host) and not all(is_loopback(peer.host) for peer in settings.peers):
        remedy = "set cluster.listen or cluster.advertise to an address that other machines can dial"
        return Check(name, Verdict.FAIL, f"{address} is this machine's alone, but there are others", remedy)
    return Check(name, Verdict.OK, f"others dial {address}")


def rpc(settings: ClusterSettings) -> Check:
    """vineyardd's port is open to whoever reaches it."""
    if settings.rpc_port is None:
        return Check("cluster rpc", Verdict.OK, "vineyardd cannot be reached from the network")
    finding = f"vineyardd's port {settings.rpc_port} asks nobody for a proof: who reaches it reads and deletes all KV"
    return Check(
        "cluster rpc", Verdict.WARN, finding, "let only the cluster's nodes reach it: firewall, network policy"
    )


def peer(settings: ClusterSettings, security: Security, address: Address) -> list[Check]:
    """One other node: reached, agreed with, clocks alike, and its memory can be read."""
    name = f"peer {address}"

    def own_hello() -> PeerHello:
        epoch = secrets.randbits(64)
        hello = greeting(settings, epoch=epoch, vineyard=VINEYARD_VERSION, wall_s=time.time())
        return replace(hello, node=f"{settings.node_name} (doctor)", visit=True)

    try:
        met = dial(address, security, own_hello, time.monotonic() + HANDSHAKE_DEADLINE_S)
    except (TieredKVError, OSError) as error:
        remedy = "start it, or let this node reach it; configure cluster.* alike on both"
        return [Check(name, Verdict.FAIL, str(error), remedy)]
    met.stream.close()
    hello = met.hello
    if hello.node == settings.node_name:
        return [Check(name, Verdict.OK, "this node itself")]
    return [_met(name, hello, met.wall_s), _readable(f"{name} rpc", met)]


def _met(name: str, hello: PeerHello, wall_s: float) -> Check:
    apart_s = hello.wall_s - wall_s
    finding = f"{hello.node}, tieredkv {hello.version}, clocks {abs(apart_s):.1f} s apart"
    if hello.version != __version__:
        return Check(name, Verdict.WARN, f"{finding}; here {__version__}", "install the same version on all nodes")
    if abs(apart_s) > CLOCKS_APART_MAX_S:
        return Check(name, Verdict.WARN, finding, "run NTP on both: certificates, leases and logs go by the clock")
    return Check(name, Verdict.OK, finding)


def _readable(name: str, met: PeerJoined) -> Check:
    if not met.hello.rpc_port:
        remedy = "set cluster.rpc_port there, unless it shall only read"
        return Check(name, Verdict.WARN, f"{met.hello.node} does not let others read its memory", remedy)
    address = Address(met.hello.rpc_host or met.host, met.hello.rpc_port)
    try:
        with socket.create_connection(address, HANDSHAKE_DEADLINE_S):
            return Check(name, Verdict.OK, f"{address} can be reached")
    except OSError as error:
        remedy = "let this node reach that port, or set cluster.rpc_advertise there"
        return Check(name, Verdict.FAIL, f"{address}: {error.strerror or error}", remedy)


def _safe(settings: ClusterSettings) -> Check:
    if settings.tls is not None:
        return Check("cluster security", Verdict.OK, "mutual TLS")
    if settings.secret_file is None:
        return Check("cluster security", Verdict.OK, "no proof asked for: the loopback only")
    with suppress(OSError):
        if settings.secret_file.stat().st_mode & 0o004:
            remedy = f"chmod o-r {settings.secret_file}"
            return Check("cluster security", Verdict.WARN, "everybody on this machine can read the secret", remedy)
    finding = "a shared secret, which proves but does not encrypt"
    return Check("cluster security", Verdict.OK, finding)
