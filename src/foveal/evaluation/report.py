"""What the evaluations of all tasks share: the loop that scores every sample of a data set, and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ..errors import DataError, InputError
from ..files import atomic_write
from ..progress import Progress

REPORT = "report.json"  #: name of the file that holds a whole report
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  #: header and rows, as text
Score = TypeVar("Score")


class Report(Protocol):
    """The result of an evaluation. The report of each task has these members, and its own scores in addition.

    Attributes:
        files: names of the files that ``foveal.evaluate(..., out=FOLDER)`` writes.
    """

    files: ClassVar[tuple[str, ...]]

    @property
    def split(self) -> str:
        """Name of the split that was scored."""
        ...

    @property
    def images(self) -> int:
        """Number of images that were scored."""
        ...

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be scored, each with the reason."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Scores of the whole data set, without those of single images, ready for JSON."""
        ...

    def save(self, folder: str | Path, **about: str) -> None:
        """Write the report with the scores of single images; ``about`` comes first in it.

        Raises:
            InputError: the folder cannot be written.
        """
        ...

    def table(self) -> Table | None:
        """Scores as a table to print; ``None`` if :meth:`summary` says everything."""
        ...

    def summary(self) -> list[str]:
        """Lines of text to print below the table."""
        ...


class Samples(Protocol):
    """A data set whose samples have file names."""

    def __len__(self) -> int: ...
    def name(self, index: int, /) -> Path:
        """File of a sample."""
        ...


@dataclass(frozen=True)
class Part(Generic[Score]):
    """Samples whose scores are summed up together: a split, or one of several sets.

    Attributes:
        name: of the split or set.
        samples: the samples, by index.
        score: reads and scores the sample of an index; its second argument is the name of the image in reports.
            Returns ``None`` if the sample has nothing to score. DataError and InputError skip the sample.
    """

    name: str
    samples: Samples
    score: Callable[[int, str], Score | None]


def score_parts(
    parts: Sequence[Part[Score]], root: Path, progress: Progress
) -> tuple[list[list[Score]], dict[str, str]]:
    """Score every sample of a data set.

    Args:
        parts: what to score.
        root: folder of the data set; images are named by their path below it, with forward slashes.
        progress: where to show progress and the samples that are skipped.

    Returns:
        The scores of each part, in the order of the samples, and the skipped images, each with the reason.

    Raises:
        DataError: samples were skipped and none was scored.
    """
    scores: list[list[Score]] = []
    skipped: dict[str, str] = {}
    for part in parts:
        scores.append([])
        with progress.bar(f"evaluate {part.name}", len(part.samples)) as bar:
            for index in range(len(part.samples)):
                name = _name_below(root, part.samples.name(index))
                try:
                    score = part.score(index, name)
                except (DataError, InputError) as error:
                    skipped[name] = str(error)
                    progress.note(f"skipped: {error}")
                else:
                    scores[-1] += [] if score is None else [score]
                bar.advance()
    if skipped and not any(scores):
        split, reason = join_names(parts), next(iter(skipped.values()))
        raise DataError(f"{root}: none of the {len(skipped)} images of {split!r} can be scored; the first: {reason}")
    return scores, skipped


def join_names(parts: Iterable[Part[Any]]) -> str:
    """Names of several splits or sets as one text."""
    return ", ".join(part.name for part in parts)


def skipped_rows(skipped: Mapping[str, str]) -> list[dict[str, str]]:
    """Skipped images as they stand in ``report.json``."""
    return [{"image": image, "error": error} for image, error in skipped.items()]


def write_json(folder: str | Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json``.

    Raises:
        InputError: the folder cannot be written.
    """
    with atomic_write(Path(folder) / REPORT) as temporary:
        temporary.write_text(json.dumps(report), encoding="utf-8")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table for spreadsheets; ``None`` gives an empty cell.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def _name_below(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
