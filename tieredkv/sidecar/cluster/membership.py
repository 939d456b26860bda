"""Who else is in the cluster: a list that the operator wrote, or what the nodes themselves write into etcd.

A node writes its name and address under a lease of `LEASE_TTL_S`; who dies is out when it ends. Without
etcd the nodes known last stay known: whether one lives, its connection tells.

Ownership: the membership's thread does all the waiting, and posts `Members` to the inbox whenever
something has changed.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Final

import msgspec

from tieredkv.errors import ConfigError
from tieredkv.sidecar.cluster.etcd import Etcd, EtcdError
from tieredkv.sidecar.cluster.security import etcd_context
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings
from tieredkv.sidecar.inbox import Inbox

logger = logging.getLogger("tieredkv.sidecar")

LEASE_TTL_S: Final = 5
RENEW_EVERY_S: Final = LEASE_TTL_S / 3
LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Member:
    """Another node and where to dial it. `name` is empty where a list tells addresses only."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class Members:
    """Posted to the loop: all other nodes, as far as is known. `trouble`: why that may not be so; or empty."""

    members: frozenset[Member]
    trouble: str = ""


class _Entry(msgspec.Struct):
    """What a node writes. An empty host makes no sense here."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    epoch: Annotated[int, msgspec.Meta(ge=0)]


def listed(settings: ClusterSettings) -> Members:
    """The operator's list, in which this node itself may be, too."""
    return Members(frozenset(Member("", address) for address in settings.peers))


def etcd_members(settings: ClusterSettings) -> frozenset[Member]:
    """Who is there now, this node included, and whom the operator listed. Raises ConfigError and EtcdError."""
    etcd = Etcd(settings.etcd, etcd_context(settings.tls))
    try:
        prefix = _prefix(settings)
        return listed(settings).members | _members(etcd.under(prefix), prefix)
    finally:
        etcd.close()


def _prefix(settings: ClusterSettings) -> bytes:
    return f"{settings.etcd_prefix.rstrip('/')}/{settings.name}/".encode()


def _members(entries: Mapping[bytes, bytes], prefix: bytes) -> frozenset[Member]:
    """The nodes among what is in etcd."""
    found: set[Member] = set()
    for key, value in entries.items():
        name = key[len(prefix) :].decode(errors="replace")
        try:
            entry = msgspec.json.decode(value, type=_Entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.debug("etcd: %s is not a node's entry", name)
            continue
        found.add(Member(name, Address(entry.host, entry.port)))
    return frozenset(found)


class EtcdMembership:
    """Keeps this node known, and knows the others. Posts `Members`."""

    def __init__(self, settings: ClusterSettings, epoch: int, inbox: Inbox) -> None:
        """`epoch` is that of this run of the sidecar. Raises ConfigError."""
        address = settings.reachable
        if address is not None and not address.host:
            raise ConfigError(f"cluster.listen: {settings.listen} is no address for others; set cluster.advertise")
        self._etcd = Etcd(settings.etcd, etcd_context(settings.tls))
        self._prefix = _prefix(settings)
        self._own_key = self._prefix + settings.node_name.encode()
        self._own_name = settings.node_name
        self._own = None if address is None else msgspec.json.encode(_Entry(address.host, address.port, epoch))
        self._inbox = inbox
        self._lease = ""
        self._renew_s = 0.0
        self._told: Members | None = None
        self._listed = listed(settings).members
        self._members = self._listed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tieredkv-membership", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the cluster, as far as etcd can be told within its deadline."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            trouble = ""
            try:
                self._stay()
                trouble = self._look()
            except EtcdError as error:
                trouble = str(error)
            self._tell(Members(self._members, trouble))
            self._closing.wait(LOOK_EVERY_S)
        try:
            if self._lease:
                self._etcd.revoke(self._lease)
        except EtcdError as error:
            logger.warning("this node stays known for %d s: %s", LEASE_TTL_S, error)
        self._etcd.close()

    def _stay(self) -> None:
        """Keep the lease; get another when it was lost."""
        if self._own is None or monotonic() < self._renew_s:
            return
        if self._lease and not self._etcd.renew(self._lease):
            logger.warning("the lease in etcd has ended; taking another")
            self._lease = ""
        if not self._lease:
            lease = self._etcd.grant(LEASE_TTL_S)
            self._etcd.put(self._own_key, self._own, lease)
            self._lease = lease
        self._renew_s = monotonic() + RENEW_EVERY_S

    def _look(self) -> str:
        """Read who is there; what is wrong with it, or nothing."""
        entries = self._etcd.under(self._prefix)
        others = {member for member in _members(entries, self._prefix) if member.name != self._own_name}
        self._members = self._listed | others
        if self._own is None or entries.get(self._own_key) == self._own:
            return ""
        # Ended by others, or by an etcd that came back empty: written anew with the next look.
        self._lease = ""
        self._renew_s = 0.0
        return f"another node is named {self._own_name!r} too (cluster.node_name)" if self._own_key in entries else ""

    def _tell(self, members: Members) -> None:
        if members == self._told:
            return
        if members.trouble and (self._told is None or members.trouble != self._told.trouble):
            logger.warning("membership: %s", members.trouble)
        self._told = members
        self._inbox.post(members)
