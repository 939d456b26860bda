"""How two nodes prove to each other that they belong to the cluster, before anything else is read.

Mutual TLS 1.3 with a private CA, or a shared secret: challenge and response in both directions, of fixed
size. The secret proves who connects; what follows is neither encrypted nor signed, so it is for networks
in which nobody can change packets on their way. Neither of the two: on the loopback only.

Everything here blocks, until a moment that the caller says, in a thread of its own.
"""

import hmac
import os
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from tieredkv.errors import ConfigError, TieredKVError
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings, TlsFiles

MAGIC: Final = b"TKVPEER1"
NONCE_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 16
SECRET_BYTES_MAX: Final = 4096
_PROOF_BYTES: Final = sha256().digest_size
_PARTING_S: Final = 0.5
_PARTING_READS_MAX: Final = 8
_PARTING_READ_BYTES: Final = 65536
_TLS_RECORD: Final = (b"\x16\x03", b"\x15\x03")
_DIALLER: Final = b"tieredkv dialler"
_LISTENER: Final = b"tieredkv listener"

Stream = socket.socket
"""A connected socket; an ssl.SSLSocket under TLS."""


class NotProven(TieredKVError):
    """The other side did not prove that it belongs to the cluster, or not in time."""


class Security(Protocol):
    """Both methods take the socket over, and close it when they raise NotProven."""

    def accept(self, connected: socket.socket, until_s: float) -> Stream:
        """The listener's part; `until_s` by time.monotonic."""
        ...

    def dial(self, connected: socket.socket, until_s: float) -> Stream:
        """The dialler's part."""
        ...


def make_security(settings: ClusterSettings) -> Security:
    """What the operator chose. Raises ConfigError naming the key, when it cannot be used."""
    if settings.tls is not None and settings.secret_file is not None:
        raise ConfigError("cluster.tls and cluster.secret_file are both set; keep one")
    if settings.tls is not None:
        return _Tls(settings.tls)
    if settings.secret_file is not None:
        return _Secret(_read_secret(settings.secret_file))
    for key, address in (("listen", settings.listen), *(("peers", peer) for peer in settings.peers)):
        if address is not None and not is_loopback(address.host):
            raise ConfigError(
                f"cluster.{key}: {address} can be reached from other machines; "
                "set cluster.tls or cluster.secret_file, or use the loopback only"
            )
    return _Open()


def is_loopback(host: str) -> bool:
    """Whether this names the machine itself; names other than localhost are taken for other machines."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def receive_exactly(stream: Stream, size: int, until_s: float) -> bytes:
    """`size` bytes. Raises NotProven when they do not come in time."""
    received = bytearray()
    try:
        while len(received) < size:
            stream.settimeout(remaining_s(until_s))
            part = stream.recv(size - len(received))
            if not part:
                raise NotProven("the connection was closed during the greeting")
            received += part
    except OSError as error:
        raise NotProven(f"greeting: {_reason(error)}") from None
    return bytes(received)


def send_all(stream: Stream, data: bytes, until_s: float) -> None:
    """Send everything. Raises NotProven when it cannot be sent in time."""
    try:
        stream.settimeout(remaining_s(until_s))
        stream.sendall(data)
    except OSError as error:
        raise NotProven(f"greeting: {_reason(error)}") from None


def remaining_s(until_s: float) -> float:
    """Seconds until then. Raises NotProven when there are none."""
    left_s = until_s - monotonic()
    if left_s <= 0:
        raise NotProven("the greeting took too long")
    return left_s


class _Open:
    """No proof at all, and so only this machine."""

    def accept(self, connected: socket.socket, until_s: float) -> Stream:
        return self.dial(connected, until_s)

    def dial(self, connected: socket.socket, until_s: float) -> Stream:
        del until_s
        if not is_loopback(plain_address(connected).host):
            connected.close()
            raise NotProven("neither cluster.tls nor cluster.secret_file is set: the loopback only")
        return connected


class _Tls:
    """Certificates of one private CA on both sides. Names in them are not compared: see TlsFiles."""

    def __init__(self, files: TlsFiles) -> None:
        self._listener = _context(ssl.PROTOCOL_TLS_SERVER, files)
        self._dialler = _context(ssl.PROTOCOL_TLS_CLIENT, files)

    def accept(self, connected: socket.socket, until_s: float) -> Stream:
        return self._wrap(self._listener, connected, until_s, server_side=True)

    def dial(self, connected: socket.socket, until_s: float) -> Stream:
        return self._wrap(self._dialler, connected, until_s, server_side=False)

    def _wrap(
        self, context: ssl.SSLContext, connected: socket.socket, until_s: float, *, server_side: bool
    ) -> ssl.SSLSocket:
        with _closed_on_failure(connected):
            stream = context.wrap_socket(connected, server_side=server_side, do_handshake_on_connect=False)
        with _closed_on_failure(stream):
            stream.settimeout(remaining_s(until_s))
            try:
                stream.do_handshake()
            except OSError as error:
                _part(stream, until_s)
                raise NotProven(f"TLS: {_reason(error)}") from None
        return stream


class _Secret:
    """Each side proves that it knows the secret, over nonces of both and its role, so nothing can be replayed."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def accept(self, connected: socket.socket, until_s: float) -> Stream:
        with _closed_on_failure(connected):
            ours = os.urandom(NONCE_BYTES)
            send_all(connected, MAGIC + ours, until_s)
            theirs = self._nonce(connected, until_s)
            self._expect(connected, _DIALLER, theirs + ours, until_s)
            send_all(connected, self._proof(_LISTENER, theirs + ours), until_s)
        return connected

    def dial(self, connected: socket.socket, until_s: float) -> Stream:
        with _closed_on_failure(connected):
            ours = os.urandom(NONCE_BYTES)
            send_all(connected, MAGIC + ours, until_s)
            theirs = self._nonce(connected, until_s)
            send_all(connected, self._proof(_DIALLER, ours + theirs), until_s)
            self._expect(connected, _LISTENER, ours + theirs, until_s)
        return connected

    def _nonce(self, connected: socket.socket, until_s: float) -> bytes:
        magic = receive_exactly(connected, len(MAGIC), until_s)
        if magic.startswith(_TLS_RECORD):
            raise NotProven("the other side speaks TLS, here cluster.secret_file is set; configure both alike")
        if magic != MAGIC:
            raise NotProven("the other side does not ask for the shared secret; configure both alike")
        return receive_exactly(connected, NONCE_BYTES, until_s)

    def _expect(self, connected: socket.socket, role: bytes, nonces: bytes, until_s: float) -> None:
        proof = receive_exactly(connected, _PROOF_BYTES, until_s)
        if not hmac.compare_digest(proof, self._proof(role, nonces)):
            raise NotProven("the other side does not know our shared secret (cluster.secret_file)")

    def _proof(self, role: bytes, nonces: bytes) -> bytes:
        return hmac.digest(self._secret, role + nonces, "sha256")


def _part(stream: Stream, until_s: float) -> None:
    """Let the alert that says why arrive: closed with something unread, it would not."""
    with suppress(OSError, NotProven):
        stream.shutdown(socket.SHUT_WR)
        for _ in range(_PARTING_READS_MAX):
            stream.settimeout(min(_PARTING_S, remaining_s(until_s)))
            # Not through TLS, which is over.
            if not socket.socket.recv(stream, _PARTING_READ_BYTES):
                return


@contextmanager
def _closed_on_failure(stream: Stream) -> Generator[None]:
    try:
        yield
    except BaseException:
        stream.close()
        raise


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_verify_locations(cafile=files.ca)
    except OSError as error:
        raise ConfigError(f"cluster.tls.ca: {files.ca}: {_reason(error)}; name a PEM file of certificates") from None
    try:
        context.load_cert_chain(files.cert, files.key)
    except OSError as error:
        raise ConfigError(
            f"cluster.tls.cert, cluster.tls.key: {files.cert}, {files.key}: {_reason(error)}; name the PEM files of "
            "a certificate and its key, without password"
        ) from None


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1).strip()
    except OSError as error:
        raise ConfigError(f"cluster.secret_file: {path}: {_reason(error)}; name a file that can be read") from None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ConfigError(
            f"cluster.secret_file: {path} has {len(secret)} bytes; write {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, "
            "such as: openssl rand -hex 32"
        )
    return secret


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the other side did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or error.strerror or "not TLS").replace("_", " ").lower()
    return error.strerror or str(error)


def plain_address(stream: Stream) -> Address:
    """Whom a connected socket is connected with; an empty host when that is not known any more."""
    try:
        host, port = stream.getpeername()[:2]
    except OSError:
        return Address("", 0)
    return Address(str(host), int(port))


def etcd_context(files: TlsFiles | None) -> ssl.SSLContext:
    """For https endpoints of etcd: the cluster's files where there are some, else the machine's authorities.

    Here names are compared. Raises ConfigError.
    """
    context = ssl.create_default_context()
    if files is not None:
        _load(context, files)
    return context
