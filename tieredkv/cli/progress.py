"""A progress bar on standard error, where standard error is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str) -> Generator[Callable[[int, int], None]]:
    """A function to call with what is done and what there is in all, until the block ends."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield on_progress


@contextmanager
def phases() -> Generator[Callable[[str, int, int], None]]:
    """A function to call with a phase's name, what is done of it and what there is; a bar for each phase."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_phase(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield on_phase
