"""`tieredkv config`: check a file, show what is in force, print the schema."""

from pathlib import Path
from typing import Annotated

import typer

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json

app = typer.Typer(help="Check, show and describe the configuration.", no_args_is_help=True)


@app.command(epilog="Example: tieredkv config check tieredkv.yaml")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")],
    json: settings.JsonFile = None,
) -> None:
    """Say what is wrong in FILE: every problem, one line each. The environment is left out of account."""
    from tieredkv.config import load_config
    from tieredkv.errors import ConfigError

    check_destination(json)
    try:
        load_config(file, environ={})
    except ConfigError as error:
        if json is not None:
            write_json(json, {"ok": False, "problems": str(error).splitlines()})
            raise typer.Exit(2) from None
        raise
    if json is not None:
        write_json(json, {"ok": True, "problems": []})
    if json != STANDARD_OUTPUT:
        typer.echo(f"{file}: ok")


@app.command(epilog="Example: tieredkv config show --config tieredkv.yaml --warm 64Gi")
def show(
    config: settings.ConfigFile = None,
    runtime_dir: settings.RuntimeDir = None,
    socket: settings.Socket = None,
    warm: settings.Warm = None,
    http: settings.Http = None,
    log_level: settings.LogLevel = None,
    set_: settings.Set = None,
    json: settings.JsonFile = None,
) -> None:
    """Print every value in force, as YAML, with where it came from."""
    check_destination(json)
    given = settings.flags(
        runtime_dir=runtime_dir, socket=socket, warm=warm, http=http, log_level=log_level, assignments=set_
    )
    loaded = settings.load(config, given)
    from tieredkv.config.render import as_yaml, dump

    if json is not None:
        write_json(json, {"config": dump(loaded.config), "sources": dict(loaded.sources)})
    if json != STANDARD_OUTPUT:
        typer.echo(as_yaml(dump(loaded.config), loaded.sources), nl=False)


@app.command(epilog="Example: tieredkv config schema > tieredkv.schema.json")
def schema() -> None:
    """Print the JSON schema of the file, for editors."""
    from tieredkv.config.render import json_schema

    write_json(STANDARD_OUTPUT, json_schema())


@app.command(epilog="Example: tieredkv config example > tieredkv.yaml")
def example() -> None:
    """Print an example file: every key with its default and what it means."""
    from tieredkv.config.render import example_yaml

    typer.echo(example_yaml(), nl=False)
