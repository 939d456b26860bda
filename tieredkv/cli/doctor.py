"""`tieredkv doctor`: would tiering work on this machine? One line per check, each with its remedy."""

from typing import Annotated

import typer

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json


def doctor(
    config: settings.ConfigFile = None,
    runtime_dir: settings.RuntimeDir = None,
    socket: settings.Socket = None,
    warm: settings.Warm = None,
    set_: settings.Set = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Ask the other nodes too: reachable, clocks, versions, ports, addresses.")
    ] = False,
    json: settings.JsonFile = None,
) -> None:
    """Check this machine: versions, vineyardd, shared memory, limits, hashes, socket rights; and its cluster.

    Exit code 1: a check failed. Warnings do not change it.

    Example: tieredkv doctor --warm 64Gi
    Example: tieredkv doctor --config tieredkv.yaml --cluster
    """
    check_destination(json)
    from tieredkv.cli.checks import Verdict, run_checks

    given = settings.flags(runtime_dir=runtime_dir, socket=socket, warm=warm, assignments=set_)
    checks = run_checks(config, given, with_cluster=cluster)
    failed = any(check.verdict is Verdict.FAIL for check in checks)
    if json is not None:
        write_json(json, {"ok": not failed, "checks": [check.as_document() for check in checks]})
    if json != STANDARD_OUTPUT:
        colours = {Verdict.OK: typer.colors.GREEN, Verdict.WARN: typer.colors.YELLOW, Verdict.FAIL: typer.colors.RED}
        for check in checks:
            typer.secho(f"{check.verdict.value:<5}", fg=colours[check.verdict], nl=False)
            typer.echo(check.text())
    if failed:
        raise typer.Exit(1)
