"""Create and write figures with matplotlib, which is an optional dependency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DependencyError
from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure without a window, and without matplotlib's global state.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("figures need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: str | Path, *, dpi: int = 110) -> None:
    """Write a figure as a PNG; if that fails, no partial file is left.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
