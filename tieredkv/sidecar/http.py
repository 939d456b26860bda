"""/metrics, /healthz and /readyz over HTTP, where the configuration asks for it.

Ownership: the server's threads read one frozen Snapshot, which the loop replaces by assignment. Health is
the loop's own: a snapshot that is not renewed means that the loop hangs.
"""

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Final

from tieredkv.clock import Clock
from tieredkv.config import HttpAddress
from tieredkv.errors import ConfigError
from tieredkv.sidecar.status import Snapshot

logger = logging.getLogger("tieredkv.sidecar")

STALE_AFTER_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 5.0


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT_S
    server: "_Server"  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        snapshot = self.server.snapshot
        alive = self.server.clock.now_s() - snapshot.at_s < STALE_AFTER_S
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", snapshot.metrics)
            case "/healthz":
                self._answer(200 if alive else 503, "text/plain", "ok\n" if alive else "the loop hangs\n")
            case "/readyz":
                good = alive and snapshot.ready
                self._answer(200 if good else 503, "text/plain", "ok\n" if good else "not ready\n")
            case _:
                self._answer(404, "text/plain", "there are /metrics, /healthz and /readyz\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it)
        """Requests are not events of ours."""

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: HttpAddress, clock: Clock) -> None:
        if ":" in address.host:
            self.address_family = AF_INET6
        self.snapshot = Snapshot("", False, clock.now_s())
        self.clock = clock
        super().__init__((address.host, address.port), _Handler)


class HttpServer:
    """Listens as long as it is not closed."""

    def __init__(self, address: HttpAddress, clock: Clock) -> None:
        """Raises ConfigError when the address cannot be bound."""
        try:
            self._server = _Server(address, clock)
        except OSError as error:
            raise ConfigError(f"metrics.http: {address}: {error.strerror or error}; choose another address") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="tieredkv-http", daemon=True)
        self._thread.start()
        logger.info("metrics at http://%s:%d/metrics", *self._server.server_address[:2])

    def publish(self, snapshot: Snapshot) -> None:
        """Serve `snapshot` from now on."""
        self._server.snapshot = snapshot

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
