"""Tables of results: options and files with the class shares, or the best classes, of many images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import ConfigError
from ..files import check_overwrites, ensure_folder
from .outputs import Job, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..prediction.areas import CocoFile

Csv = Annotated[
    Path | None,
    Parameter(help="Also write a table to this .csv file: for each image the share of each class, or its classes."),
]


@dataclass(frozen=True)
class AreaOptions:
    """The options of ``segment`` about the areas of masks."""

    coco: Annotated[
        Path | None, Parameter(help="Also write the areas of all images as COCO annotations to this .json file.")
    ] = None
    encoding: Annotated[
        Literal["rle", "coco_rle", "polygons"],
        Parameter(
            help="With --coco: run lengths, COCO's compressed strings (foveal[coco]), or outlines (foveal[geo]); areas "
            "with holes stay run lengths."
        ),
    ] = "rle"
    min_area: Annotated[int, Parameter(help="With --coco: leave out areas of fewer pixels.")] = 1


NO_AREAS = AreaOptions()


def check_table(path: Path | None, suffix: str, option: str, request: Request) -> None:
    """Check the name of a table before any work is done.

    Raises:
        ConfigError: another suffix, or a file that would replace an image.
        InputError: its folder cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path}: the table is a {suffix} file")
    check_overwrites([path], request.images, "image")
    ensure_folder(path.parent)


@dataclass
class MaskTable:
    """What is collected of masks: the share of each class, and COCO annotations.

    Attributes:
        names: of the classes.
        coco: the open COCO file; ``None``: none is written.
        rows: by image, what ``--json`` prints of it.
    """

    names: Sequence[str]
    coco: CocoFile | None = None
    rows: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(self.names)  # classes of one name would share a column
        self.names = [name if counts[name] == 1 else f"{name} (class {i})" for i, name in enumerate(self.names)]

    def add(self, job: Job, mask: NDArray[Any]) -> None:
        """Add the mask of an image."""
        import numpy as np

        counts = np.bincount(mask.ravel(), minlength=len(self.names))[: len(self.names)]
        shares = {name: round(float(count / mask.size), 6) for name, count in zip(self.names, counts, strict=True)}
        about = {"image": str(job.source), "mask": str(job.target), "size": list(mask.shape)}
        self.rows[job.source] = {**about, "shares": shares}
        if self.coco is not None:
            self.coco.add(str(job.source), mask)

    def add_written(self, jobs: Sequence[Job]) -> None:
        """Add the masks of images that an earlier run completed, read from their files."""
        from ..images.reading import read_mask

        for job in jobs:
            self.add(job, read_mask(job.target))

    def write(self, path: Path, jobs: Sequence[Job]) -> None:
        """Write the table, with a row for each image that has a mask."""
        from ..evaluation.report import write_csv

        rows = [self.rows[job.source] for job in jobs if job.source in self.rows]
        header = ["image", "mask", "height", "width", *self.names]
        write_csv(path, header, [[row["image"], row["mask"], *row["size"], *row["shares"].values()] for row in rows])


@contextmanager
def open_table(names: Sequence[str], options: AreaOptions) -> Iterator[MaskTable]:
    """A table, and its COCO file if one is asked for, which is complete at the end of the context."""
    if options.coco is None:
        yield MaskTable(names)
        return
    from ..prediction.areas import coco_file

    with coco_file(options.coco, names, options.encoding, options.min_area) as coco:
        yield MaskTable(names, coco)


def write_classes(path: Path, images: Sequence[dict[str, Any]], top: int) -> None:
    """Write the best classes of each image, as :func:`.classify.run` reports them, best first."""
    from ..evaluation.report import write_csv

    header = ["image", *(f"{what}_{place + 1}" for place in range(top) for what in ("class", "score"))]
    rows = ([each["image"], *(cell for best in each["classes"] for cell in best.values())] for each in images)
    write_csv(path, header, rows)
