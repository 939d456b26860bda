"""A few calls of etcd's JSON gateway, and the lease under which this node says that it is there.

Blocking, each call with a deadline; one thread uses it. Any endpoint will do: after a failure the next
call asks the next one.
"""

import ssl
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from tieredkv.errors import ConfigError, TieredKVError

CALL_DEADLINE_S: Final = 1.0
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
KEYS_MAX: Final = 4096

_Answer = TypeVar("_Answer")


class EtcdError(TieredKVError):
    """etcd does not answer, or not as expected."""


class _Lease(msgspec.Struct):
    # Numbers of 64 bits are strings in this JSON; what is zero is left out.
    ID: str = "0"
    TTL: str = "0"


class _Renewal(msgspec.Struct):
    result: _Lease


class _Entry(msgspec.Struct):
    key: str
    value: str = ""


class _Nothing(msgspec.Struct):
    """An answer of which nothing is wanted."""


class _Range(msgspec.Struct):
    kvs: list[_Entry] = []


@dataclass(frozen=True, slots=True)
class _Endpoint:
    host: str
    port: int
    secure: bool


class Etcd:
    """Raises EtcdError whenever a call does not work."""

    def __init__(self, endpoints: Sequence[str], tls: ssl.SSLContext | None) -> None:
        """`endpoints` are URLs. Raises ConfigError."""
        self._endpoints = [_endpoint(url) for url in endpoints]
        self._tls = tls
        self._next = 0
        self._connection: HTTPConnection | None = None

    def grant(self, ttl_s: int) -> str:
        """A lease; its name."""
        lease = self._call("/v3/lease/grant", {"TTL": str(ttl_s)}, _Lease)
        if lease.ID == "0":
            raise EtcdError("etcd gives no lease")
        return lease.ID

    def renew(self, lease: str) -> bool:
        """False when the lease has ended."""
        return self._call("/v3/lease/keepalive", {"ID": lease}, _Renewal).result.TTL != "0"

    def revoke(self, lease: str) -> None:
        """End the lease: what was put under it is gone."""
        self._call("/v3/lease/revoke", {"ID": lease}, _Nothing)

    def put(self, key: bytes, value: bytes, lease: str) -> None:
        """Write a key that ends with the lease."""
        self._call("/v3/kv/put", {"key": _encoded(key), "value": _encoded(value), "lease": lease}, _Nothing)

    def under(self, prefix: bytes) -> dict[bytes, bytes]:
        """All keys that begin so."""
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        asked = {"key": _encoded(prefix), "range_end": _encoded(end), "limit": str(KEYS_MAX)}
        try:
            return {b64decode(kv.key): b64decode(kv.value) for kv in self._call("/v3/kv/range", asked, _Range).kvs}
        except ValueError as error:
            raise EtcdError(f"etcd: {error}") from None

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, path: str, asked: dict[str, str], kind: type[_Answer]) -> _Answer:
        endpoint = self._endpoints[self._next]
        try:
            status, body = self._exchange(path, msgspec.json.encode(asked))
        except (OSError, HTTPException) as error:
            raise self._failed(f"etcd at {endpoint.host}:{endpoint.port}: {error!r}") from None
        if status != HTTPStatus.OK or len(body) > ANSWER_BYTES_MAX:
            raise self._failed(f"etcd answers {status}: {body[:200].decode(errors='replace').strip()}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed(f"etcd: {error}") from None

    def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read(ANSWER_BYTES_MAX + 1)

    def _failed(self, reason: str) -> EtcdError:
        """Hang up, and ask another endpoint next time."""
        self.close()
        self._next = (self._next + 1) % len(self._endpoints)
        return EtcdError(reason)

    def _connect(self) -> HTTPConnection:
        endpoint = self._endpoints[self._next]
        if endpoint.secure:
            return HTTPSConnection(endpoint.host, endpoint.port, timeout=CALL_DEADLINE_S, context=self._tls)
        return HTTPConnection(endpoint.host, endpoint.port, timeout=CALL_DEADLINE_S)


def _endpoint(url: str) -> _Endpoint:
    try:
        parts = urlsplit(url)
        port = parts.port or 2379
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
        raise ConfigError(f"cluster.etcd: {url!r} is no endpoint; write http://HOST:2379 or https://HOST:2379")
    return _Endpoint(parts.hostname, port, parts.scheme == "https")


def _encoded(data: bytes) -> str:
    return b64encode(data).decode()
