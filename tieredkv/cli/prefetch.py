"""`tieredkv prefetch`: have the running sidecar load what a session will need."""

from typing import Annotated

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError


def prefetch(
    session: Annotated[
        str, typer.Option(metavar="ID", help="The session, as the requests name it; never logged or recorded as it is.")
    ],
    tenant: Annotated[str, typer.Option(metavar="NAME", help="The tenant that the requests named, if any.")] = "",
    config: settings.ConfigFile = None,
    socket: settings.Socket = None,
) -> None:
    """Load a session's last prompt from cold pages before its next request comes. Exit code 1: it is not known here.

    Example: tieredkv prefetch --session c42
    """
    from tieredkv.policy.hints import SESSION_CHARS_MAX

    for option, text in (("--session", session), ("--tenant", tenant)):
        if len(text) > SESSION_CHARS_MAX:
            raise ConfigError(f"{option}: {len(text)} characters; at most {SESSION_CHARS_MAX}")
    path = settings.load(config, settings.flags(socket=socket)).config.socket
    from tieredkv.cli.admin import Admin

    with Admin(path) as admin:
        answer = admin.prefetch(session, tenant)
    if not answer.pools:
        typer.echo(f"{path}: what this session used is not known here (any more); nothing was done")
        raise typer.Exit(1)
    typer.echo(f"{path}: {answer.chunks} chunks are on their way" if answer.chunks else f"{path}: nothing to load")
