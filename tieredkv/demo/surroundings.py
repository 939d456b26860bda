"""Where a demo works, and how it is interrupted."""

import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.processes import Guard


@contextmanager
def work_dir(keep: Path | None, guard: Guard, console: Console) -> Generator[Path]:
    """Where model and logs go; when the demo fails the logs stay, and it says where."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    path = Path(tempfile.mkdtemp(prefix="tieredkv-demo-"))
    guard.remove(path)
    try:
        yield path
    except DemoFailed:
        guard.forget(path)
        shutil.rmtree(path / "model", ignore_errors=True)
        console.print(f"The logs were kept in {path}")
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def ended_by_signals() -> Generator[None]:
    """SIGTERM and SIGHUP unwind like an interrupt from the keyboard, so that what was started is ended."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
