"""Certificates, secrets and greeted pairs of sockets, for the tests of the cluster."""

import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tieredkv.sidecar.cluster.acquaintance import OwnHello
from tieredkv.sidecar.cluster.agreement import greeting
from tieredkv.sidecar.cluster.settings import Address, ClusterSettings, TlsFiles
from tieredkv.sidecar.inbox import Inbox

DEADLINE_S = 10.0
HERE = Address("127.0.0.1", 0)

Event = TypeVar("Event")


def settings(name: str = "a", **changes: object) -> ClusterSettings:
    """A node that listens on some port of the loopback."""
    return replace(ClusterSettings("test", name, listen=HERE), **changes)  # type: ignore[arg-type]


def hello_of(own: ClusterSettings, *, epoch: int = 7, vineyard: str = "0.24.2") -> OwnHello:
    """What this node says of itself."""
    return lambda: greeting(own, epoch=epoch, vineyard=vineyard, wall_s=time.time())


class Post:
    """An inbox and the events that were taken out of it."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self._events: list[object] = []

    def next(self, kind: type[Event], accepted: Callable[[Event], bool] = lambda _: True) -> Event:
        """The next event of that kind, which must come."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            for event in self._events:
                if isinstance(event, kind) and accepted(event):
                    self._events.remove(event)
                    return event
            left_s = until_s - time.monotonic()
            assert left_s > 0, f"no {kind.__name__}, but {self._events}"
            select.select([self.inbox], [], [], left_s)
            self._events += self.inbox.take()


class Authority:
    """A private CA, by the openssl command."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self.ca = self._folder / "ca.pem"
        self._openssl("req", "-x509", *self._new_key("ca"), "-out", self.ca, "-subj", f"/CN={name}", "-days", "2")

    def files(self, name: str, *, ca: Path | None = None, days: int = 2) -> TlsFiles:
        """A node's certificate; it trusts `ca`, this one by default."""
        key, asked, cert = (self._folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        self._openssl("req", *self._new_key(name), "-out", asked, "-subj", f"/CN={name}")
        signer = ("-CA", self.ca, "-CAkey", self._folder / "ca.key", "-CAcreateserial")
        self._openssl("x509", "-req", "-in", asked, *signer, "-out", cert, "-days", str(days))
        return TlsFiles(cert, key, ca or self.ca)

    def _new_key(self, name: str) -> tuple[str | Path, ...]:
        key = self._folder / f"{name}.key"
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)

    @staticmethod
    def _openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=DEADLINE_S)
