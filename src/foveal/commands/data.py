"""The verb ``data check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..files import atomic_write, check_overwrites, ensure_folder
from .console import Json, print_json, print_table, say

if TYPE_CHECKING:
    from ..data.check import DataReport, SplitReport
    from ..data.layout import Problem

_OVERVIEW = "overview.png"
_SHOWN_SIZES = 4  # sizes in the table, for each split


def data_check(
    data: Path,
    /,
    *,
    quarantine: Annotated[Path | None, Parameter(help="File to write the paths of bad files to, one per line.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for overview.png: a picture of classes and samples.")] = None,
    json: Json = False,
) -> int:
    """Read a whole data set and print its layout, splits, sizes and classes, and each problem with its file.

    Parameters
    ----------
    data
        Folder of the data set.
    """
    from ..data.check import check_data
    from ..data.overview import draw_overview
    from ..images.writing import save_picture
    from ..progress import Progress

    if out is not None:
        check_overwrites([ensure_folder(out) / _OVERVIEW], [data])  # before the check, which may take hours
    if quarantine is not None:
        _check_quarantine(quarantine, data)
    report = check_data(data, progress=Progress())
    if quarantine is not None:
        with atomic_write(quarantine) as file:
            file.write_text("".join(f"{path}\n" for path in report.bad_files), "utf-8", errors="surrogateescape")
    if out is not None:
        save_picture(draw_overview(report), out / _OVERVIEW)
    if json:
        print_json(report.to_dict())
    else:
        tasks = " or ".join(report.tasks)
        say(f"{data}: {f'{report.layout}, for --task {tasks}' if report.layout else 'no known layout'}")
        say()
        _print_tables(report)
        _print_notes(report)
    return 1 if report.problems else 0


def _check_quarantine(file: Path, data: Path) -> None:
    """Check that the list of bad files can be written and replaces no file of the data set but a list.

    Raises:
        ConfigError, InputError: it cannot, or it would.
    """
    if file.suffix.lower() != ".txt":
        check_overwrites([file], [data])
    ensure_folder(file.parent)


def _print_tables(report: DataReport) -> None:
    from ..data.class_map import MANY_ABSENT

    if report.splits:
        header = ("split", "samples", "readable", "sizes (W x H)", "ignored")
        print_table(header, [_split_row(split) for split in report.splits])
    if any(split.objects for split in report.splits):
        print_table(("split", "objects"), [(split.name, str(split.objects)) for split in report.splits])
    counted = [split for split in report.splits if len(split.images)]
    if counted:
        header = ("class", *(f"{split.name} {kind}" for split in counted for kind in ("pixels", "images")))
        occurs = [any(split.images[i] for split in counted) for i in range(len(report.labels.names))]
        absent = occurs.count(False)
        shown = [i for i, there in enumerate(occurs) if there or absent <= MANY_ABSENT]
        print_table(header, [_class_row(report.labels.names[i], i, counted) for i in shown])
        if len(shown) < len(occurs):
            say(f"not in the table: {absent} of {len(occurs)} classes, which are in no image")


def _print_notes(report: DataReport) -> None:
    for text in report.notes:
        say(f"note: {text}")
    for problem in report.problems:
        say(f"problem: {_describe(problem)}")
    say(f"{len(report.problems)} problems" if report.problems else "no problems")


def _describe(problem: Problem) -> str:
    """The error with its file, which some errors already contain."""
    return problem.error if str(problem.file) in problem.error else f"{problem.file}: {problem.error}"


def _split_row(split: SplitReport) -> list[str]:
    sizes = [f"{width}x{height} ({count})" for (height, width), count in split.sizes.most_common(_SHOWN_SIZES)]
    more = f", {len(split.sizes) - _SHOWN_SIZES} more" if len(split.sizes) > _SHOWN_SIZES else ""
    ignored = f"{split.ignored_share:.1%}" if split.ignored else ""
    return [split.name, str(split.items), str(split.readable), ", ".join(sizes) + more, ignored]


def _class_row(name: str, index: int, splits: list[SplitReport]) -> list[str]:
    """Share of a class in the labelled pixels of each split, and in its images."""
    cells = [name]
    for split in splits:
        pixels = f"{split.shares[index]:.2%}" if split.pixels.any() else ""
        cells += [pixels, f"{split.images[index]} ({split.images[index] / max(1, split.readable):.0%})"]
    return cells
