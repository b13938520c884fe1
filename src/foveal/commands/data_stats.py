"""The verb ``data stats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .console import Json, print_json, print_table

if TYPE_CHECKING:
    from ..data.bands import BandStatistics


def data_stats(
    data: str,
    /,
    *,
    in_chans: Annotated[int, Parameter(help="Number of bands; default: that of the images.")] = 0,
    split: Annotated[str | None, Parameter(help="Split; default: train, or all where there are no splits.")] = None,
    write: Annotated[bool, Parameter(help="Write dtype, mean and std into dataset.yaml.", negative="")] = False,
    json: Json = False,
) -> int:
    """Compute mean and standard deviation of each band over the training images; training normalises by them.

    Parameters
    ----------
    data
        Folder of the data set, or a pattern of tar files.
    """
    from ..data.bands import band_statistics, write_statistics
    from ..errors import ConfigError
    from ..progress import Progress

    if in_chans < 0:
        raise ConfigError(f"--in-chans {in_chans} is out of range: give 1 or more, or leave it out")
    statistics = band_statistics(data, in_chans=in_chans, split=split, progress=Progress())
    file = write_statistics(data, statistics) if write else None
    if json:
        print_json({**statistics.to_dict(), "file": None if file is None else str(file)})
    else:
        _print(statistics, file)
    return 1 if statistics.bad else 0


def _print(statistics: BandStatistics, file: Path | None) -> None:
    from ..data.bands import yaml_lines

    columns = (statistics.mean, statistics.std, statistics.low, statistics.high)
    rows = [
        (str(band + 1), *(f"{value:.6g}" for value in values))
        for band, values in enumerate(zip(*(column.tolist() for column in columns), strict=True))
    ]
    print(f"{statistics.bands}, {statistics.images} images, {statistics.pixels} pixels\n")
    print_table(("band", "mean", "std", "lowest", "highest"), rows)
    for band in statistics.constant:
        print(f"note: band {band} has the same value everywhere; its std is written as 1")
    for error in statistics.bad:
        print(f"left out: {error}")
    print(f"written to {file}:" if file else "for dataset.yaml (--write puts them there):")
    print(*yaml_lines(statistics), sep="\n")
