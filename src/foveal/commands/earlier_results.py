"""Results of earlier runs that lie below a folder of images are no images to work on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import beside
from ..text import notice

if TYPE_CHECKING:
    from ..images.palettes import Palette


def leave_out(sources: list[tuple[Path, Path]], out: Path, palette: Palette, overlay: str) -> list[tuple[Path, Path]]:
    """Leave out the results of earlier runs, and say how many there are. Files that are named one by one are kept.

    Results are known by their place (the folder of this run's results, or a folder of ``foveal batch``, inside the
    folder of images) or by the palette of the classes, which no photograph has.

    Args:
        sources: images, each with the folder or the file that the user gave.
        out: folder of the results of this run.
        palette: colours of the classes of this model; empty: its results have none.
        overlay: end of the name of the picture next to a mask, which is a result as well.
    """
    kept = _outside(sources, out)
    if len(kept) < len(sources):
        notice(f"{_count(len(sources) - len(kept), f' in {out}')} left out, as results of earlier runs")
    for found, what in (
        (_results_of_batch(kept), "results of foveal batch"),
        (_masks(kept, palette, overlay), "masks of earlier runs, in the colours of this model's classes"),
    ):
        left_out = [source for source, _ in kept if source in found]
        if left_out:
            more = ", ..." if len(left_out) > 1 else ""
            notice(f"{_count(len(left_out))} left out, as {what}: {left_out[0]}{more}")
        kept = [(source, path) for source, path in kept if source not in found]
    return kept


def _count(count: int, where: str = "") -> str:
    """``"1 image is"``, or ``"3 images are"``; ``where`` follows the noun."""
    return f"{count} image{where} is" if count == 1 else f"{count} images{where} are"


def _outside(sources: list[tuple[Path, Path]], out: Path) -> list[tuple[Path, Path]]:
    """The sources that are not in ``out``, where that is inside the folder of images."""
    folder = out.resolve()
    return [
        (source, path)
        for source, path in sources
        if not (path.resolve() in folder.parents and folder in source.resolve().parents)
    ]


def _results_of_batch(sources: list[tuple[Path, Path]]) -> set[Path]:
    """The sources in a folder with the manifest of a job that is inside the folder of images."""
    from ..batch.stores import has_results

    known: dict[Path, bool] = {}
    found = set[Path]()
    for source, path in sources:
        for folder in (each for each in source.parents if path in each.parents):
            if folder not in known:
                known[folder] = has_results(folder)
            if known[folder]:
                found.add(source)
    return found


def _masks(sources: list[tuple[Path, Path]], palette: Palette, overlay: str) -> set[Path]:
    """The sources from folders that have the palette, and the overlays next to them."""
    from ..images.palettes import has_palette

    masks = {source for source, path in sources if source != path and has_palette(source, palette)} if palette else ()
    overlays = {beside(mask, overlay) for mask in masks}
    return {source for source, path in sources if source in masks or (source != path and source in overlays)}
