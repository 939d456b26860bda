"""Which sidecar an engine talks to; every process of the engine comes to the same choice."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tieredkv.clock import Clock
from tieredkv.config import Config
from tieredkv.vllm_client.private import PrivateSidecar


@dataclass(frozen=True, slots=True)
class SidecarChoice:
    """Where to connect, and how to bring it back when it is gone (None: not ours to start)."""

    socket_path: Path
    revive: Callable[[], None] | None


def choose_sidecar(config: Config, engine_id: str, clock: Clock) -> SidecarChoice:
    """The configured sidecar, or a private one when the mode says so or none answers."""
    mode = config.engine.sidecar
    private = PrivateSidecar(engine_id, config.warm.size_bytes, clock)
    # Another process of this engine may have found none a moment ago, and gone private.
    gone_private = private.runtime_dir.exists()
    if mode == "external" or (mode == "auto" and not gone_private and _answers(config.socket)):
        return SidecarChoice(config.socket, None)
    private.start()
    return SidecarChoice(private.socket_path, private.start)


def _answers(path: Path) -> bool:
    """Whether a process listens there. Connecting to a Unix socket never waits for the other side."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(str(path))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        probe.close()
    return True
