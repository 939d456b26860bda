"""What the operator says about the cluster."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredkv.config import ClusterConfig, HttpAddress
from tieredkv.errors import ConfigError

Address = HttpAddress
"""Host and port."""

_TLS_KEYS: Final = ("tls_cert", "tls_key", "tls_ca")
_EVERYWHERE: Final = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this node's certificate and key, and the private CA that signed those of all nodes.

    Whoever has a certificate of that CA is a node of the cluster, so the CA must sign for nothing else.
    """

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One node's part in a cluster. `listen` None: it dials others and cannot be dialled.

    `advertise` and `rpc_advertise` are what other nodes dial, when that is not what is listened at;
    `rpc_port` is vineyardd's, None if other nodes shall not read here.
    """

    name: str
    node_name: str
    listen: Address | None = None
    advertise: Address | None = None
    rpc_port: int | None = None
    rpc_advertise: Address | None = None
    peers: tuple[Address, ...] = ()
    etcd: tuple[str, ...] = ()
    etcd_prefix: str = "/tieredkv/"
    tls: TlsFiles | None = None
    secret_file: Path | None = None

    @property
    def reachable(self) -> Address | None:
        """Where other nodes dial this one; an empty host is whatever they find it at."""
        address = self.advertise or self.listen
        return Address("", address.port) if address is not None and address.host in _EVERYWHERE else address

    @property
    def rpc(self) -> Address | None:
        """Where other nodes read this one's places; an empty host is whatever they find it at."""
        if self.rpc_advertise is not None or self.rpc_port is None:
            return self.rpc_advertise
        return Address(self.reachable.host if self.reachable else "", self.rpc_port)


def cluster_settings(config: ClusterConfig) -> ClusterSettings:
    """The configuration's section. Raises ConfigError for a TLS of which a part is missing."""
    tls = None
    if config.tls_cert is not None and config.tls_key is not None and config.tls_ca is not None:
        tls = TlsFiles(config.tls_cert, config.tls_key, config.tls_ca)
    else:
        missing = [key for key in _TLS_KEYS if getattr(config, key) is None]
        if len(missing) < len(_TLS_KEYS):
            raise ConfigError(f"cluster.{missing[0]}: not set, and TLS needs cluster.{', cluster.'.join(_TLS_KEYS)}")
    return ClusterSettings(
        name=config.name,
        node_name=socket.gethostname() if config.node == "auto" else config.node,
        listen=config.listen,
        advertise=config.advertise,
        rpc_port=config.rpc_port,
        rpc_advertise=config.rpc_advertise,
        peers=config.peers,
        etcd=config.etcd,
        etcd_prefix=config.etcd_prefix,
        tls=tls,
        secret_file=config.secret_file,
    )
