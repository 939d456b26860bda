"""Checks of who can reach the sidecar: directories, the Unix socket, the HTTP port."""

import os
from collections.abc import Collection
from pathlib import Path

from tieredkv.cli.checks.check import Check, Verdict
from tieredkv.config import HttpAddress
from tieredkv.errors import ConfigError, TieredKVError, Unreachable
from tieredkv.sidecar.directory import prepare_directory

_LOOPBACK = ("127.", "::1", "localhost")


def directory(key: str, path: Path, allowed_uids: Collection[int]) -> Check:
    """The directory is ours alone, or can be created so."""
    name = f"{key} rights"
    if path.exists():
        try:
            prepare_directory(path, shared=bool(allowed_uids), key=key)
        except ConfigError as error:
            finding, _, remedy = str(error).partition("; ")
            return Check(name, Verdict.FAIL, finding, remedy or "choose another")
        return Check(name, Verdict.OK, f"{path} belongs to us alone")
    parent = next(folder for folder in path.parents if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        return Check(name, Verdict.FAIL, f"{path} cannot be created", f"set {key} to a folder of your own")
    return Check(name, Verdict.OK, f"{path} will be created")


def metrics_address(address: HttpAddress | None) -> Check:
    """The metrics have no password: they belong on the loopback or a private network."""
    if address is None:
        return Check("metrics", Verdict.OK, "no TCP port")
    if address.host.startswith(_LOOPBACK):
        return Check("metrics", Verdict.OK, f"http://{address}/metrics, from this machine only")
    remedy = "metrics have no password: let only your monitoring reach that port"
    return Check("metrics", Verdict.WARN, f"http://{address}/metrics, from other machines too", remedy)


def sidecar(path: Path, mode: str) -> Check:
    """Somebody answers at the socket, or the engine will start its own."""
    from tieredkv.cli.admin import Admin

    try:
        with Admin(path) as admin:
            admin.status()
    except Unreachable as error:
        if mode == "external":
            return Check(
                "sidecar", Verdict.WARN, str(error), "start it: tieredkv sidecar; until then vLLM serves without"
            )
        return Check("sidecar", Verdict.OK, "none runs: vLLM will start a private one")
    except TieredKVError as error:
        return Check("sidecar", Verdict.FAIL, str(error), "add your uid to security.allowed_uids of the sidecar")
    return Check("sidecar", Verdict.OK, f"answers at {path}")
