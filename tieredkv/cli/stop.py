"""`tieredkv stop`: end the running sidecar cleanly."""

import typer

from tieredkv.cli import settings


def stop(config: settings.ConfigFile = None, socket: settings.Socket = None) -> None:
    """End the sidecar of this node: its engines go on without a warm tier, its memory is freed.

    Example: tieredkv stop --socket /run/tieredkv/tieredkv.sock
    """
    path = settings.load(config, settings.flags(socket=socket)).config.socket
    from tieredkv.cli.admin import Admin

    with Admin(path) as admin:
        admin.stop()
    typer.echo(f"{path}: stopped")
