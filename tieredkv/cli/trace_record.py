"""`tieredkv trace record`: the arrivals of a running sidecar, into a file."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tieredkv.cli import settings
from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from tieredkv.trace import LineFile


def record(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The file to write; one that is there becomes FILE.old.")
    ],
    duration: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long: 10min, 2h. Default: until Ctrl-C.")
    ] = None,
    config: settings.ConfigFile = None,
    socket: settings.Socket = None,
) -> None:
    """Record what a running sidecar is asked, for `simulate`, `trace stats` and `tune`.

    The file is in Mooncake's format. It holds numbers and keyed hashes only, never tokens or text: ids of
    prefixes count up, session ids and tenants are hashes under a key that is never stored. The engines
    are not slowed down: what this command cannot take in is lost, and counted.

    Example: tieredkv trace record --out today.jsonl --for 10min
    """
    for_s = None if duration is None else _seconds(duration)
    path = settings.load(config, settings.flags(socket=socket)).config.socket
    from tieredkv.cli.admin import Admin

    with Admin(path) as admin, _opened(out) as file, _interruptible() as interrupted, _shown(for_s) as show:
        start_s = monotonic()
        requests = lost = 0

        def wanted() -> bool:
            elapsed_s = monotonic() - start_s
            show(elapsed_s, requests)
            return not (interrupted() or file.closed or (for_s is not None and elapsed_s >= for_s))

        for recorded in admin.record(wanted):
            file.add(recorded.lines, monotonic())
            requests += recorded.requests
            lost += recorded.lost
        full = file.closed
    if full:
        raise ConfigError(f"--out {out}: cannot be written any more; {requests} requests came")
    typer.echo(f"{out}: {requests} requests" + (f"; {lost} more were lost, because they came too fast" if lost else ""))


def _seconds(text: str) -> float:
    from tieredkv.config.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--for {text}: {error}") from None
    if not seconds:
        raise ConfigError(f"--for {text}: nothing would be recorded; give some time, such as 10min")
    return seconds


@contextmanager
def _opened(path: Path) -> "Generator[LineFile]":
    from tieredkv.trace import LineFile

    try:
        file = LineFile(path)
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}; name a file that you may write") from None
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _interruptible() -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came: they end the recording, not this program."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _shown(for_s: float | None) -> Generator[Callable[[float, int], None]]:
    """Progress on the terminal: time, and requests so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("recording"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[requests]} requests"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("recording", total=for_s, requests=0)
        yield lambda elapsed_s, requests: progress.update(task, completed=elapsed_s, requests=requests)
