"""Images without labels, to distil the embeddings of a teacher.

A split is a folder below the data set, with images anywhere inside: "train", "camvid/train". "all" is the whole data
set. If there are no folders "train" and "val" and ``dataset.yaml`` has a ``val_share``, these two splits are drawn at
random from the whole data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..info import Labels
from .layout import ALL, DatasetFile, describe, draw_splits, images_in, resolve_split, subfolders


@dataclass(frozen=True)
class UnlabelledData:
    """Image files. Indexing reads: ``data[i] -> ((H, W, 3) uint8 RGB, None)``.

    Attributes:
        paths: image files, each once.
    """

    paths: tuple[Path, ...]

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> UnlabelledData:
        """Find the images of ``splits``.

        Raises:
            DataError: a split does not exist, or has no images.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        described = describe(root)
        excluded = described.excluded(root)
        paths: dict[Path, None] = {}
        for split in splits:
            images = [path for path in _images_of(root, split, described) if path not in excluded]
            if not images:
                raise DataError(f"{root}: no images in {split}")
            paths |= dict.fromkeys(images)
        return cls(tuple(paths))

    @property
    def labels(self) -> Labels:
        """Empty: there are no classes."""
        return Labels()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> Path:
        """The file of an image."""
        return self.paths[index]

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All indices in random order; ``buffer`` is not used for single files."""
        return rng.permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], None]:
        """Read one image.

        Raises:
            DataError: the image is unreadable.
        """
        try:
            return read_image(self.paths[index]), None
        except InputError as error:
            raise DataError(str(error)) from error


def _images_of(root: Path, split: str, described: DatasetFile) -> list[Path]:
    """Images of the folder of a split; without such a folder, of a split that is drawn from all images."""
    if split != ALL and (root / split).is_dir():
        return images_in(root / split, deep=True)
    images = {path.relative_to(root).as_posix(): path for path in images_in(root, deep=True)}
    drawn = draw_splits(images, described)
    name = resolve_split(split, [*drawn, *(folder.name for folder in subfolders(root))], root)
    return [images[key] for key in sorted(drawn[name])] if name in drawn else images_in(root / name, deep=True)
