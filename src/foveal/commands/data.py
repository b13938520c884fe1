"""The verb ``data check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .console import Json, print_json, print_table

if TYPE_CHECKING:
    from ..data.check import SplitReport


def data_check(
    data: Path,
    /,
    *,
    quarantine: Annotated[Path | None, Parameter(help="File to write the bad files' paths to, one per line.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for overview.png: classes and samples as a picture.")] = None,
    json: Json = False,
) -> int:
    """Read a whole data set: its layout, splits, sizes and classes, and everything that is wrong with it, by file.

    Parameters
    ----------
    data
        Folder of the data set.
    """
    from ..data.check import check_data
    from ..data.overview import draw_overview
    from ..files import atomic_write, ensure_folder
    from ..images.writing import save_picture
    from ..progress import Progress

    if out is not None:
        ensure_folder(out)  # now, not after hours
    report = check_data(data, progress=Progress())
    if quarantine is not None:
        with atomic_write(quarantine) as file:
            file.write_text("".join(f"{path}\n" for path in report.bad_files), "utf-8", errors="surrogateescape")
    if out is not None:
        save_picture(draw_overview(report), out / "overview.png")
    if json:
        print_json(report.to_dict())
        return 1 if report.problems else 0
    print(f"{data}: {report.layout or 'no known layout'}\n")
    if report.splits:
        header = ("split", "samples", "readable", "sizes (W x H)", "ignored")
        print_table(header, [_split_row(split) for split in report.splits])
    if any(split.objects for split in report.splits):
        print_table(("split", "objects"), [(split.name, str(split.objects)) for split in report.splits])
    counted = [split for split in report.splits if len(split.images)]
    if counted:
        header = ("class", *(f"{split.name} {kind}" for split in counted for kind in ("pixels", "images")))
        print_table(header, [_class_row(name, i, counted) for i, name in enumerate(report.labels.names)])
    for text in report.notes:
        print(f"note: {text}")
    for problem in report.problems:
        named = str(problem.file) in problem.error
        print(f"problem: {problem.error}" if named else f"problem: {problem.file}: {problem.error}")
    print(f"{len(report.problems)} problems" if report.problems else "no problems")
    return 1 if report.problems else 0


def _split_row(split: SplitReport) -> list[str]:
    sizes = [f"{width}x{height} ({count})" for (height, width), count in split.sizes.most_common(4)]
    more = f", {len(split.sizes) - 4} more" if len(split.sizes) > 4 else ""
    ignored = f"{split.ignored_share:.1%}" if split.ignored else ""
    return [split.name, str(split.items), str(split.readable), ", ".join(sizes) + more, ignored]


def _class_row(name: str, index: int, splits: list[SplitReport]) -> list[str]:
    """Shares of a class in the labelled pixels and in the images of each split."""
    cells = [name]
    for split in splits:
        pixels = f"{split.shares[index]:.2%}" if split.pixels.any() else ""
        cells += [pixels, f"{split.images[index]} ({split.images[index] / max(1, split.readable):.0%})"]
    return cells
