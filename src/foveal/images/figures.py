"""Figures with matplotlib, which is an optional dependency: one way to make one and to write it whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DependencyError
from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, without a window or a global state.

    Raises:
        DependencyError: matplotlib is missing.
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
    """Write ``figure`` as a PNG, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
