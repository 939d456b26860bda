"""Figures without a screen: matplotlib's objects, not its global state."""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from tieredkv.errors import ConfigError, TieredKVError

Axes = Any
Figure = Any
# Matplotlib's own types are partly unknown, so that strict checkers refuse them.


# The version of the library, which a picture of equal data should not depend on.
_UNSIGNED: Final = {"Software": None}


class NoMatplotlib(TieredKVError):
    """Pictures were asked for where matplotlib is not installed."""


def check_picture(path: Path) -> None:
    """Raise TieredKVError when a picture could not be written to `path`. Call it before long work."""
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"{path}: not the name of a picture; let it end in .png, .svg or .pdf")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: cannot write there; name a file in a folder that exists")
    _require_matplotlib()


def new_figure(rows: int, columns: int, size_inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with its panels, row by row. Raises NoMatplotlib."""
    _require_matplotlib()
    import matplotlib.figure

    figure: Figure = matplotlib.figure.Figure(figsize=size_inches, layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` in the format that the name's ending says. Raises ConfigError."""
    try:
        figure.savefig(path, metadata=_UNSIGNED if path.suffix == ".png" else None)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file that you may write") from None


def png_bytes(figure: Figure) -> bytes:
    """`figure` as a PNG; equal figures give equal bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata=_UNSIGNED)
    return buffer.getvalue()


def _require_matplotlib() -> None:
    try:
        import_module("matplotlib")
    except ImportError:
        raise NoMatplotlib("pictures need matplotlib; install it with: pip install 'tieredkv[report]'") from None
