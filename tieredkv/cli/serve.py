"""`tieredkv serve`: check the machine, then become the given vLLM command with tiering switched on."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError

KV_TRANSFER_CONFIG: Final = '{"kv_connector":"TieredKVConnector","kv_role":"kv_both"}'
_CONFLICTS: Final = ("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend")


def serve(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The vLLM command, as without us.")],
    config: settings.ConfigFile = None,
    runtime_dir: settings.RuntimeDir = None,
    socket: settings.Socket = None,
    warm: settings.Warm = None,
    log_level: settings.LogLevel = None,
    set_: settings.Set = None,
    checks: Annotated[bool, typer.Option(help="Check this machine first, as doctor does.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Run a vLLM command with a warm tier: checks, prints the exact command, becomes it.

    Settings travel in TIEREDKV_* variables, which the printed command shows; nothing else is changed.

    Example: tieredkv serve --warm 64Gi -- vllm serve MODEL --port 8000
    """
    given = settings.flags(runtime_dir=runtime_dir, socket=socket, warm=warm, log_level=log_level, assignments=set_)
    refuse_conflicts(command)
    settings.load(config, given)
    variables = environment_of(config, given)
    arguments = [*command, "--kv-transfer-config", KV_TRANSFER_CONFIG]
    if checks:
        _check(config, given, command)
    # A quoted word is no assignment to a shell, so only the value may be quoted.
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    typer.echo(" ".join([*assignments, shlex.join(arguments)]))
    if dry_run:
        return
    try:
        os.execvpe(arguments[0], arguments, {**os.environ, **variables})
    except OSError as error:
        raise ConfigError(
            f"{arguments[0]}: cannot run it: {error.strerror}; write the vLLM command behind --"
        ) from None


def refuse_conflicts(command: list[str]) -> None:
    """Raise ConfigError when the command already says where KV goes: one of the two would be lost."""
    for word in command:
        option = word.partition("=")[0].partition(".")[0].replace("_", "-")
        if option in _CONFLICTS:
            raise ConfigError(
                f"{word}: serve sets --kv-transfer-config by itself; leave {option} out, or run the command "
                "without tieredkv serve"
            )


def environment_of(config_file: Path | None, given: Mapping[str, object]) -> dict[str, str]:
    """TIEREDKV_* variables that carry the flags of this command line to the engine's processes."""
    from tieredkv.config.source import ENV_FILE, env_variable

    variables = {ENV_FILE: str(config_file.absolute())} if config_file is not None else {}
    return variables | {env_variable(key): _as_text(value) for key, value in given.items()}


def _as_text(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    from tieredkv.config.render import inline_yaml

    return inline_yaml(value)


def _check(config_file: Path | None, given: Mapping[str, object], command: list[str]) -> None:
    """Print what doctor would warn of; raise Exit when a check fails."""
    from tieredkv.cli.checks import Verdict, run_checks

    found = run_checks(config_file, given, command=command)
    for check in found:
        if check.verdict is not Verdict.OK:
            typer.echo(f"tieredkv: {check.line()}", err=True)
    if any(check.verdict is Verdict.FAIL for check in found):
        typer.echo("tieredkv: not started; mend the above, or skip the checks with --no-checks", err=True)
        raise typer.Exit(1)
