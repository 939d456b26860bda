"""`tieredkv trace`: traces to look at, turn around and make."""

from pathlib import Path
from typing import Annotated

import typer

from tieredkv.cli import settings, trace_record, trace_verify
from tieredkv.errors import ConfigError

app = typer.Typer(help="Record, make, look at and convert traces of requests.", no_args_is_help=True)
app.command("record")(trace_record.record)
app.command("verify")(trace_verify.verify)

Seed = Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")]
BlockTokens = Annotated[
    int | None,
    typer.Option(min=1, max=1 << 20, help="Tokens of a block, where the trace does not say and they are not 512."),
]
SetParameter = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Sets a parameter; tieredkv trace parameters lists them."),
]


@app.command(epilog="Example: tieredkv trace generate agentic --out agentic.jsonl.gz --seed 7 --requests 5000")
def generate(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="chat, agentic, rag, flood, churn or shift.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE[.gz]", help="The file to write, in Mooncake's format.")],
    seed: Seed = 1,
    requests: Annotated[int, typer.Option(min=1, max=100_000_000, help="How many.")] = 10_000,
    block_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens of a block.")] = 512,
    think_time: Annotated[str, typer.Option(metavar="FACTOR", help="Factor on all think times, such as x0.3.")] = "x1",
    assignments: SetParameter = None,
) -> None:
    """Write a workload of KIND, the same for the same seed."""
    from tieredkv.cli.progress import progress_bar
    from tieredkv.sim.generate import generated_records
    from tieredkv.sim.records import write_records
    from tieredkv.sim.workload import make_workload

    workload = make_workload(kind, _assigned(assignments or []))
    factor = _factor(think_time)
    records = generated_records(workload, seed=seed, requests=requests, block_tokens=block_tokens, think_time=factor)
    with progress_bar("generate") as on_progress:
        write_records(out, records, block_tokens, on_progress=lambda done: on_progress(done, requests))
    typer.echo(f"{out}: {requests} requests of {kind}, seed {seed}")


@app.command(epilog="Example: tieredkv trace parameters chat")
def parameters(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="chat, agentic, rag, flood, churn or shift.")] = "chat",
    json: settings.JsonFile = None,
) -> None:
    """List what --set of `trace generate` can change, with the values that KIND has."""
    from rich.console import Console
    from rich.table import Table

    from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
    from tieredkv.sim.workload import KINDS, make_workload

    check_destination(json)
    workload = make_workload(kind, {})
    values = workload.model_dump()
    if json is not None:
        write_json(json, {"kind": kind, "parameters": values})
    if json == STANDARD_OUTPUT:
        return
    table = Table("parameter", "value", "meaning", title=f"{kind}: {KINDS[kind][0]}")
    for name, field in type(workload).model_fields.items():
        table.add_row(name, f"{values[name]:g}", field.description)
    Console().print(table)


@app.command(epilog="Example: tieredkv trace stats conversation.jsonl.gz --plot conversation.png")
def stats(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Trace files in Mooncake's format.")],
    json: settings.JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw a picture of four panels, for one trace.")
    ] = None,
    block_tokens: BlockTokens = None,
) -> None:
    """Sizes, reuse distances and times, one-hit share, sessions and sharing of traces."""
    from rich.console import Console

    from tieredkv.cli.progress import progress_bar
    from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
    from tieredkv.cli.trace_tables import print_stats
    from tieredkv.sim.figure import check_picture
    from tieredkv.sim.stats import study
    from tieredkv.sim.stats_plot import plot_stats
    from tieredkv.sim.traces import read_trace

    check_destination(json)
    if plot is not None:
        if len(traces) > 1:
            raise ConfigError(f"--plot {plot}: one picture cannot show {len(traces)} traces; name one trace")
        check_picture(plot)
    found: list[dict[str, object]] = []
    for path in traces:
        with progress_bar(f"read {path.name}") as on_progress:
            trace = read_trace(path, block_tokens=block_tokens, on_progress=on_progress)
        with progress_bar(f"measure {path.name}") as on_progress:
            studied = study(trace, on_progress=on_progress)
        found.append(studied.stats.to_json())
        if json != STANDARD_OUTPUT:
            print_stats(studied.stats, Console())
        if plot is not None:
            plot_stats(studied, plot)
    if json is not None:
        write_json(json, found)


@app.command(epilog="Example: tieredkv trace convert qwen_traceA_blksz_16.jsonl qwen.jsonl.gz --block-tokens 512")
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file to read, plain or gzip.")],
    out: Annotated[Path, typer.Argument(metavar="OUT[.gz]", help="The file to write, in Mooncake's format.")],
    form: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="auto, mooncake, bailian, csv or vllm-log.")
    ] = "auto",
    block_tokens: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Tokens of a block in OUT. Default: as in IN.")
    ] = None,
    input_block_tokens: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Tokens of a block in IN, where it is not the usual.")
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Sort the requests by time.")] = False,
    split: Annotated[
        float | None, typer.Option(help="Write OUT.train and OUT.test: before and from this part of the time, as 0.6.")
    ] = None,
    first_seconds: Annotated[float | None, typer.Option(help="Keep only the requests of the first seconds.")] = None,
) -> None:
    """Turn a trace into Mooncake's format: other formats, other block sizes, a part of the time."""
    from tieredkv.cli.progress import progress_bar
    from tieredkv.sim.convert import Conversion
    from tieredkv.sim.convert import convert as convert_trace

    if split is not None and not 0 < split < 1:
        raise ConfigError(f"--split {split:g}: not between 0 and 1; write the part of the time to train on, as 0.6")
    if first_seconds is not None and not first_seconds > 0:
        raise ConfigError(f"--first-seconds {first_seconds:g}: must be more than 0")
    how = Conversion(form, input_block_tokens, block_tokens, sort, first_seconds, split)
    with progress_bar(f"read {source.name}") as on_progress:
        converted = convert_trace(source, out, how, on_progress=on_progress)
    for note in converted.notes:
        typer.echo(f"note: {note}", err=True)
    for written in converted.files:
        typer.echo(f"{written.path}: {written.requests} requests")


def _assigned(assignments: list[str]) -> dict[str, object]:
    from tieredkv.config.source import plain_value

    given: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: no value; write --set NAME=VALUE, such as --set trunks=4")
        given[name.strip()] = plain_value(text)
    return given


def _factor(text: str) -> float:
    try:
        factor = float(text.removeprefix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor <= 1000:
        raise ConfigError(f"--think-time {text}: not a factor; write one above 0 and up to 1000, such as x0.3")
    return factor
