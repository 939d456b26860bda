"""`tieredkv sidecar`: the node's brain, in the foreground."""

from typing import Annotated

import typer

from tieredkv.cli import settings


def sidecar(
    config: settings.ConfigFile = None,
    runtime_dir: settings.RuntimeDir = None,
    socket: settings.Socket = None,
    warm: settings.Warm = None,
    http: settings.Http = None,
    log_level: settings.LogLevel = None,
    set_: settings.Set = None,
    private: Annotated[
        bool, typer.Option("--private", help="End when the last engine left, or none came: how vLLM starts its own.")
    ] = False,
) -> None:
    """Run the sidecar of this node until it is told to end (Ctrl-C, SIGTERM or tieredkv stop).

    It starts and watches vineyardd, owns the slots, and hands them to the engines of this node. It needs no GPU.

    Example: tieredkv sidecar --warm 64Gi --http 127.0.0.1:9400
    """
    given = settings.flags(
        runtime_dir=runtime_dir, socket=socket, warm=warm, http=http, log_level=log_level, assignments=set_
    )
    loaded = settings.load(config, given)
    from tieredkv.config import read_memory
    from tieredkv.sidecar.lifecycle import run_sidecar

    read_memory().refuse_oversized(loaded.config.warm.size_bytes)
    run_sidecar(loaded.config, private=private, sources=loaded.sources)
