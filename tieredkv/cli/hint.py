"""`tieredkv hint`: tell the running sidecar what becomes of a session."""

from typing import Annotated

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError


def hint(
    session: Annotated[
        str, typer.Option(metavar="ID", help="The session, as the requests name it; never logged or recorded as it is.")
    ],
    closed: Annotated[bool, typer.Option("--closed", help="It will not come back.")] = False,
    return_within: Annotated[
        str | None, typer.Option(metavar="DURATION", help="It comes back within this time: 60s, 5min.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="It is worth more than it looks.")] = False,
    one_shot: Annotated[bool, typer.Option("--one-shot", help="What it added will not be used again.")] = False,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="The tenant that the requests named, if any.")] = "",
    config: settings.ConfigFile = None,
    socket: settings.Socket = None,
) -> None:
    """Say between requests what becomes of a session (docs/hints.md). Exit code 1: no pool knows the session.

    Example: tieredkv hint --session c42 --closed
    """
    hints: dict[str, str | int | float | bool] = {}
    if closed:
        hints["session_closed"] = True
    if return_within is not None:
        hints["return_within_s"] = _seconds(return_within)
    if keep:
        hints["keep"] = True
    if one_shot:
        hints["one_shot"] = True
    if not hints:
        raise ConfigError("hint: nothing is said; give --closed, --return-within, --keep or --one-shot")
    from tieredkv.policy.hints import SESSION_CHARS_MAX

    for option, text in (("--session", session), ("--tenant", tenant)):
        if len(text) > SESSION_CHARS_MAX:
            raise ConfigError(f"{option}: {len(text)} characters; at most {SESSION_CHARS_MAX}")
    path = settings.load(config, settings.flags(socket=socket)).config.socket
    from tieredkv.cli.admin import Admin

    with Admin(path) as admin:
        pools = admin.hint(session, hints, tenant)
    if not pools:
        typer.echo(f"{path}: no request of this session was seen; nothing was done")
        raise typer.Exit(1)
    typer.echo(f"{path}: taken")


def _seconds(text: str) -> float:
    from tieredkv.config.units import parse_duration
    from tieredkv.policy.hints import RETURN_S_MAX

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--return-within {text}: {error}") from None
    if not 0 < seconds <= RETURN_S_MAX:
        raise ConfigError(f"--return-within {text}: more than nothing and at most {RETURN_S_MAX / 3600:g}h")
    return seconds
