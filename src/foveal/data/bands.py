"""The bands of a data set's images: which they are, and their mean and standard deviation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import build_config, read_yaml
from ..errors import ConfigError, DataError
from ..files import atomic_write
from ..images.bands import RGB, Bands
from ..images.formats import BandsError
from ..info import PEAKS, Preprocess
from ..progress import Progress
from .labelled import Banded, LabelledTask, open_labelled
from .layout import ALL, FILE, DatasetFile, describe
from .shards import find_shards, is_pattern

D = TypeVar("D", bound=Banded)
_TRIES = 20  # samples of which one must be readable to find the bands
_KEYS = ("dtype", "mean", "std")  # of dataset.yaml


def described_by(data: str | Path) -> DatasetFile:
    """The ``dataset.yaml`` of a folder, or of the folder of a pattern of tar files."""
    return find_shards(data)[1] if is_pattern(data) else describe(Path(data))


def with_its_bands(data: D, described: DatasetFile, in_chans: int = 0) -> D:
    """The same samples, read with all the bands that their images have.

    Images that can be read as RGB are, unless ``dataset.yaml`` or ``in_chans`` says otherwise.

    Args:
        data: samples, whose images are read as RGB.
        described: the ``dataset.yaml``: its ``mean`` and ``dtype`` determine the bands.
        in_chans: number of bands; 0: that of ``dataset.yaml``, or of the first readable image.

    Raises:
        ConfigError: ``in_chans`` is not the number of bands in ``dataset.yaml``.
        DataError: none of the first images can be read.
    """
    count = len(described.mean)
    if count and in_chans not in (0, count):
        raise ConfigError(f"in_chans={in_chans}, but {FILE} has the mean of {count} bands: correct one of them")
    wanted = Bands(in_chans or count, described.dtype)
    if count and wanted.dtype:
        return data.with_bands(wanted)
    if wanted.count in (0, 3) and wanted.dtype in ("", RGB.dtype) and (wanted.count or _reads_rgb(data)):
        return data
    data = data.with_bands(wanted)
    for index in range(min(_TRIES, len(data))):
        try:
            image = data[index][0]
        except DataError as error:
            if index + 1 == min(_TRIES, len(data)):
                raise error
        else:
            return data.with_bands(Bands(image.shape[2], str(image.dtype)))
    raise DataError("no images to find the bands of")


def _reads_rgb(data: Banded) -> bool:
    """Whether the images are RGB, or are converted to it: false if the first one of them has other bands."""
    for index in range(min(_TRIES, len(data))):
        try:
            data[index]
        except DataError as error:
            if isinstance(error.__cause__, BandsError):
                return False
        else:
            return True
    return True  # the errors of the images are reported where they are read


@dataclass
class BandStatistics:
    """Mean, standard deviation and range of each band, in one pass over the images.

    Merges the moments of one image after the other: Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979.

    Attributes:
        bands: number of bands and type of their values.
        images: number of images.
        pixels: their number of pixels.
        mean: of each band, in the units of the images.
        spread: sum of the squared differences from the mean.
        low: smallest value.
        high: largest value.
        bad: images that could not be read, each with the error.
    """

    bands: Bands
    images: int = 0
    pixels: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    spread: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    low: NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.inf))
    high: NDArray[np.float64] = field(default_factory=lambda: np.full(1, -np.inf))
    bad: list[str] = field(default_factory=list)

    def add(self, image: NDArray[Any]) -> None:
        """Add an image ``(H, W, C)``."""
        for row in range(0, len(image), 64):  # few at a time, as they become float64
            values = image[row : row + 64].reshape(-1, image.shape[2]).astype(np.float64)
            mean = values.mean(0)
            shift, total = mean - self.mean, self.pixels + len(values)
            self.spread = self.spread + ((values - mean) ** 2).sum(0) + shift**2 * (self.pixels * len(values) / total)
            self.mean = self.mean + shift * (len(values) / total)
            self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))
            self.pixels = total
        self.images += 1

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each band, in the units of the images."""
        return np.sqrt(self.spread / self.pixels)

    @property
    def constant(self) -> list[int]:
        """Numbers of the bands, from 1, that have the same value in every pixel."""
        return [band + 1 for band in np.flatnonzero(self.low == self.high).tolist()]

    def preprocess(self) -> Preprocess:
        """Mean and standard deviation on the scale of :class:`~foveal.info.Preprocess`; 1 for constant bands."""
        peak = PEAKS[self.bands.dtype]
        std = np.where(self.low == self.high, 1.0, self.std / peak)
        mean, std = ([float(f"{value:.6g}") for value in values] for values in (self.mean / peak, std))
        return Preprocess(tuple(mean), tuple(std), dtype=self.bands.dtype)

    def to_dict(self) -> dict[str, Any]:
        """The statistics for JSON: ``mean`` and ``std`` as in ``dataset.yaml``, the rest in the images' units."""
        values = self.preprocess()
        return {
            "in_chans": self.bands.count,
            "dtype": self.bands.dtype,
            "mean": list(values.mean),
            "std": list(values.std),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "images": self.images,
            "pixels": self.pixels,
            "constant": self.constant,
            "bad": self.bad,
        }


def count_bands(data: Banded, progress: Progress) -> BandStatistics:
    """Compute the statistics of all images; unreadable ones are left out and listed.

    Raises:
        DataError: no image can be read.
    """
    statistics = BandStatistics(data.bands)
    with progress.bar("statistics", len(data)) as bar:
        for index in range(len(data)):
            try:
                statistics.add(data[index][0])
            except DataError as error:
                statistics.bad.append(str(error))
                progress.note(f"left out: {error}")
            bar.advance()
    if not statistics.images:
        raise DataError(f"none of the {len(data)} images can be read; the first: {statistics.bad[0]}")
    return statistics


def band_statistics(
    root: str | Path, *, in_chans: int = 0, split: str | None = None, progress: Progress | None = None
) -> BandStatistics:
    """Mean and standard deviation of the bands of a data set's training images.

    Args:
        root: folder of a data set for segmentation or classification, or a pattern of tar files.
        in_chans: number of bands; 0: that of the images.
        split: name of the split; default: "train", or "all" where there are no splits.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: ``dataset.yaml`` has unknown keys or values.
        DataError: the data set cannot be used.
    """
    described = described_by(root)
    data = _open_any(root, ["train", ALL] if split is None else [split])
    described = dataclasses.replace(described, mean=(), std=())  # they are what is computed
    return count_bands(with_its_bands(data, described, in_chans), progress or Progress(enabled=False))


def _open_any(root: str | Path, splits: Sequence[str]) -> Banded:
    """The samples of the first split that there is, with any labels; else the error of the first attempt."""
    first: DataError | None = None
    tasks: tuple[LabelledTask, ...] = ("segment", "classify", "regress")
    for split in splits:
        for task in tasks:
            try:
                return open_labelled(root, [split], task)
            except DataError as error:
                first = first or error
    assert first is not None
    raise first


def read_preprocess(data: Banded, described: DatasetFile, progress: Progress) -> Preprocess:
    """How the images of a training set are normalised: by ``dataset.yaml``, else by their own statistics.

    RGB images without an entry in ``dataset.yaml`` are normalised by the statistics of ImageNet.

    Raises:
        DataError: no image can be read.
    """
    if described.mean:
        return Preprocess(described.mean, described.std, dtype=data.bands.dtype)
    if data.bands == RGB:
        return Preprocess()
    statistics = count_bands(data, progress)
    progress.note(
        f"{data.bands}: mean and standard deviation from {statistics.images} training images "
        f"('foveal data stats DATA --write' keeps them in {FILE})"
    )
    return statistics.preprocess()


def write_statistics(root: str | Path, statistics: BandStatistics) -> Path:
    """Write ``dtype``, ``mean`` and ``std`` into ``dataset.yaml``; its other lines stay as they are.

    Returns:
        The file.

    Raises:
        ConfigError: the file could not be read with these lines; it is unchanged then.
        InputError: it cannot be written.
    """
    file = (find_shards(root)[0] if is_pattern(root) else Path(root)) / FILE
    text = file.read_text("utf-8") if file.exists() else ""
    lines = [*_without_keys(text.splitlines()), *yaml_lines(statistics)]
    with atomic_write(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
        written = build_config(DatasetFile, read_yaml(temporary), str(file))
    values = statistics.preprocess()
    assert (written.mean, written.std) == (values.mean, values.std)
    return file


def _without_keys(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a YAML file without the entries of :data:`_KEYS`, which may have several lines."""
    dropped = False
    for line in lines:
        dropped = line.partition(":")[0] in _KEYS or (dropped and line[:1] in (" ", "-"))
        if not dropped:
            yield line


def yaml_lines(statistics: BandStatistics) -> list[str]:
    """The lines for ``dataset.yaml``."""
    values = statistics.preprocess()
    rows = {"dtype": values.dtype, "mean": list(values.mean), "std": list(values.std)}
    return [f"{key}: {value}" for key, value in rows.items()]
