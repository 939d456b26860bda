"""What the demo shows while it runs: a line for each step and bars where there are parts to count."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Self

import rich.progress
from rich.console import Console


class Progress:
    """Steps with a spinner and bars for the turns, on the given console."""

    def __init__(self, console: Console) -> None:
        self._bars = rich.progress.Progress(
            rich.progress.SpinnerColumn(finished_text="[green]✓"),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
        )

    @contextmanager
    def step(self, text: str) -> Generator[None]:
        """Show `text` as running until the block ends."""
        with self.bar(text, 1) as advance:
            yield
            advance()

    @contextmanager
    def bar(self, text: str, total: int) -> Generator[Callable[[], None]]:
        """A bar of `total` parts; the function that the block gets advances it by one."""
        task = self._bars.add_task(text, total=total)
        yield lambda: self._bars.advance(task)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
