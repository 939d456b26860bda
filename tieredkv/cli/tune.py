"""`tieredkv tune`: which memory is worth it for a trace, and a configuration that uses it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from tieredkv.sim.tune import Budget


def tune(
    trace: Annotated[Path | None, typer.Argument(metavar="TRACE", help="A trace file in Mooncake's format.")] = None,
    hardware: Annotated[Path | None, typer.Option(metavar="FILE", help="Speeds, KV size, prices: YAML.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="The most host memory to use: 256GiB.")] = None,
    cold_budget: Annotated[str | None, typer.Option(metavar="SIZE", help="The largest cold tier behind it.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The configuration to write.")] = Path("tieredkv.yaml"),
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report too: .html, or .png for the picture alone.")
    ] = None,
    json: settings.JsonFile = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")] = 1,
    split: Annotated[float, typer.Option(help="Part of the time to choose by; the rest is reported on.")] = 0.6,
    sizes: Annotated[int, typer.Option(min=2, max=24, help="Sizes to try, each half of the next.")] = 8,
    trials: Annotated[int, typer.Option(min=0, max=1000, help="Random settings of gix to try.")] = 6,
    policies: Annotated[str, typer.Option(metavar="NAMES", help="Policies to try, with commas.")] = "gix,lru",
    enough: Annotated[float, typer.Option(help="Part of the largest gain that the chosen size must bring.")] = 0.95,
    gain_min: Annotated[float, typer.Option(help="A tier that lowers mean TTFT by less is not worth it.")] = 0.02,
    block_tokens: Annotated[int | None, typer.Option(min=1, max=1 << 20, help="Tokens of a block of TRACE.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes to replay in. Default: one per core.")] = None,
    example_hardware: Annotated[
        bool, typer.Option("--example-hardware", help="Print an example of the hardware file and end.")
    ] = False,
) -> None:
    """Search tier sizes and policies by replay; write tieredkv.yaml, a report, and what is not worth it."""
    from tieredkv.sim.hardware import EXAMPLE, read_hardware

    if example_hardware:
        typer.echo(EXAMPLE, nl=False)
        return
    if trace is None or hardware is None or budget is None:
        raise ConfigError("tune needs TRACE, --hardware FILE and --budget SIZE; see tieredkv tune --help")
    from rich.console import Console

    from tieredkv.cli.progress import phases
    from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
    from tieredkv.cli.tune_tables import print_tuning
    from tieredkv.sim.figure import check_picture
    from tieredkv.sim.replays import cores
    from tieredkv.sim.traces import read_trace
    from tieredkv.sim.tune import Budget
    from tieredkv.sim.tune import tune as search
    from tieredkv.sim.tune_report import write_report
    from tieredkv.sim.tune_yaml import tuned_yaml

    check_destination(json)
    _check_new(out)
    if report is not None:
        if report.suffix not in {".html", ".png"}:
            raise ConfigError(f"--report {report}: not a report; let its name end in .html or .png")
        check_picture(report.with_suffix(".png"))
    limits = Budget(
        warm_bytes=_size("--budget", budget),
        cold_bytes=0 if cold_budget is None else _size("--cold-budget", cold_budget),
        split=_share("--split", split),
        sizes=sizes,
        trials=trials,
        policies=_names(policies),
        enough=_share("--enough", enough),
        gain_min=_share("--gain-min", gain_min),
        seed=seed,
        jobs=cores() if jobs is None else jobs,
    )
    machine = read_hardware(hardware)
    if limits.cold_bytes and machine.cold_bytes_per_s is None:
        raise ConfigError(f"--cold-budget {cold_budget}: {hardware} has no section cold; say how fast it is")
    with phases() as on_phase:
        requests = read_trace(
            trace, block_tokens=block_tokens, on_progress=lambda done, total: on_phase("read", done, total)
        )
        tuning = search(requests, machine, limits, on_phase=on_phase)
    recipe = _recipe(trace, hardware, budget, cold_budget, limits)
    text = tuned_yaml(tuning, recipe)
    try:
        out.write_text(text)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a file that you may write") from None
    if report is not None:
        write_report(tuning, recipe, text, report)
    if json is not None:
        write_json(json, {"recipe": recipe} | tuning.to_json())
    if json != STANDARD_OUTPUT:
        print_tuning(tuning, Console())
        for path in (out, report):
            if path is not None:
                typer.echo(f"written: {path}")


def _check_new(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"--out {path}: is there already; name a new file, or move that one away")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: cannot write there; name a file in a folder that exists")


def _size(option: str, text: str) -> int:
    from tieredkv.config.units import parse_size

    try:
        size_bytes = parse_size(int(text) if text.isascii() and text.isdecimal() else text)
    except ValueError as error:
        raise ConfigError(f"{option} {text}: {error}") from None
    if not 1 << 20 <= size_bytes <= 1 << 60:
        raise ConfigError(f"{option} {text}: must be from 1MiB to 1EiB (1048576TiB)")
    return size_bytes


def _share(option: str, share: float) -> float:
    if not 0 < share < 1:
        raise ConfigError(f"{option} {share:g}: must be between 0 and 1")
    return share


def _names(text: str) -> tuple[str, ...]:
    from pydantic import ValidationError

    from tieredkv.config import PolicyConfig
    from tieredkv.config.remedy import remedy

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        try:
            PolicyConfig(name=name)
        except ValidationError as error:
            raise ConfigError(f"--policies {name}: {remedy(error.errors()[0])}") from None
    return names


def _recipe(trace: Path, hardware: Path, budget: str, cold_budget: str | None, limits: "Budget") -> str:
    words = ["tieredkv", "tune", trace.name, "--hardware", hardware.name, "--budget", budget]
    words += [] if cold_budget is None else ["--cold-budget", cold_budget]
    words += ["--seed", str(limits.seed), "--split", f"{limits.split:g}", "--sizes", str(limits.sizes)]
    words += ["--trials", str(limits.trials), "--policies", ",".join(limits.policies)]
    words += ["--enough", f"{limits.enough:g}", "--gain-min", f"{limits.gain_min:g}"]
    return shlex.join(words)
