"""The `tieredkv` command: wires the subcommands and turns errors into one line and an exit code.

Exit codes: 0 ok, 1 a problem was found, 2 usage or configuration, 3 unreachable.
"""

import sys
from typing import Final, NoReturn

import typer

from tieredkv.cli import (
    bench,
    config,
    demo,
    doctor,
    hint,
    prefetch,
    serve,
    sidecar,
    simulate,
    status,
    stop,
    trace,
    tune,
)
from tieredkv.errors import TieredKVError, Unreachable

PROBLEM: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

app = typer.Typer(
    name="tieredkv",
    help="A tiered KV cache for vLLM: what the GPU's cache loses comes back from shared memory held by Vineyard.",
    epilog="Start with: tieredkv doctor, then tieredkv serve --warm 64Gi -- vllm serve MODEL",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes 0.3 s of imports
)
app.command("serve", context_settings={"allow_interspersed_args": False})(serve.serve)
app.command("sidecar")(sidecar.sidecar)
app.command("status")(status.status)
app.command("stop")(stop.stop)
app.command("hint")(hint.hint)
app.command("prefetch")(prefetch.prefetch)
app.command("simulate", epilog="Example: tieredkv simulate trace.jsonl.gz --policies lru,gix,min --plot rates.png")(
    simulate.simulate
)
app.command(
    "tune", epilog="Example: tieredkv tune trace.jsonl.gz --hardware hw.yaml --budget 256GiB --report tune.html"
)(tune.tune)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.add_typer(trace.app, name="trace")


def _version(wanted: bool) -> None:
    if wanted:
        from tieredkv import __version__

        typer.echo(f"tieredkv {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """A tiered KV cache for vLLM."""


def complain(text: str) -> None:
    """Print each line of `text` as an error of ours, to standard error."""
    for line in text.splitlines() or ["failed without a message"]:
        print(f"tieredkv: error: {line}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        code = app(arguments, prog_name="tieredkv", standalone_mode=False)
    except typer.TyperException as error:
        complain(_usage(error))
        code = USAGE
    except Unreachable as error:
        complain(str(error))
        code = UNREACHABLE
    except TieredKVError as error:
        complain(str(error))
        code = USAGE
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} See: {context.command_path} --help" if context is not None else message
