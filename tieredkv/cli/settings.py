"""Options that several commands share, and the configuration that they lead to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from tieredkv.config import Loaded

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file. Default: the one that TIEREDKV_CONFIG names."),
]
RuntimeDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", resolve_path=True, help="Sets runtime_dir: sockets, logs and pool.json."),
]
Socket = Annotated[
    Path | None, typer.Option(metavar="PATH", resolve_path=True, help="Sets socket: the sidecar's Unix socket.")
]
Warm = Annotated[str | None, typer.Option(metavar="SIZE", help="Sets warm.size: 64GiB, 64Gi, auto.")]
Http = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Sets metrics.http: serve /metrics and /healthz there.")
]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="Sets log_level: debug, info, warning, error.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Sets any key of the configuration, such as policy.name=lru."),
]
JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the report as JSON to FILE; - is standard output, and then only it."
    ),
]


def flags(
    *,
    runtime_dir: Path | None = None,
    socket: Path | None = None,
    warm: str | None = None,
    http: str | None = None,
    log_level: str | None = None,
    assignments: list[str] | None = None,
) -> dict[str, object]:
    """Values by dotted key of the options that were given. `assignments` are KEY=VALUE texts."""
    given: dict[str, object] = {
        "runtime_dir": runtime_dir,
        "socket": socket,
        "warm.size": warm,
        "metrics.http": http,
        "log_level": log_level,
    }
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: no value; write --set KEY=VALUE, such as --set policy.name=lru")
        from tieredkv.config.source import plain_value

        given[key.strip()] = plain_value(text)
    return {key: value for key, value in given.items() if value is not None}


def load(config_file: Path | None, given: dict[str, object]) -> "Loaded":
    """The configuration of this process under the flags of its command line."""
    from tieredkv.config import load_config

    return load_config(config_file, flags=given)
