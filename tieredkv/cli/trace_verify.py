"""`tieredkv trace verify`: does a recording replay to the same decisions?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from tieredkv.sim.parity import Verdict


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.events.jsonl", help="What trace.events wrote.")],
    foreign_code: Annotated[
        bool, typer.Option("--foreign-code", help="Run the policy that the file names by import path.")
    ] = False,
    json: settings.JsonFile = None,
) -> None:
    """Make every recorded call again, in the simulator, and compare every outcome. Exit code 1: one differs.

    Example: tieredkv trace verify today.jsonl.events.jsonl
    """
    check_destination(json)
    from dataclasses import asdict

    from tieredkv.cli.progress import progress_bar
    from tieredkv.sim.parity import verify as verify_file

    with progress_bar("verify") as on_progress:
        verdict = verify_file(file, foreign_code=foreign_code, on_progress=on_progress)
    if json is not None:
        write_json(json, {"file": str(file), **asdict(verdict)})
    if json != STANDARD_OUTPUT:
        from rich.console import Console

        console = Console()
        console.print(_table(verdict, str(file)))
        for difference in verdict.differences:
            console.print(f"{file}:{difference.line}: {difference.call} gave {difference.recorded}", markup=False)
            console.print(f"  and gives {difference.replayed} now", markup=False)
        if verdict.cut:
            console.print("The last line is unfinished; all before it were compared.")
    if verdict.differences:
        raise typer.Exit(1)


def _table(verdict: "Verdict", title: str) -> "Table":
    from rich.table import Table

    table = Table("", "", title=title, show_header=False)
    table.add_row("calls compared", f"{sum(verdict.compared.values())}")
    table.add_row("differences", f"{len(verdict.differences)}")
    if verdict.skipped:
        table.add_row("calls after a difference", f"{verdict.skipped}")
    for name in ("hits", "stores", "refusals", "evictions"):
        table.add_row(f"chunks: {name}", f"{getattr(verdict, name)}")
    for call, count in sorted(verdict.compared.items()):
        table.add_row(f"calls: {call}", f"{count}")
    return table
