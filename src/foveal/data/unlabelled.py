"""Images alone, as samples: what a teacher's embeddings are learnt on.

A split is a folder below the data set, with images anywhere inside: "train", "camvid/train". "all" is the data set
itself, and so are "train" and "val" where there are no such folders and ``dataset.yaml`` has a ``val_share``: they are
drawn from it then.
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
from .layout import ALL, describe, drawn_splits, images_in, resolve_split, subfolders


@dataclass(frozen=True)
class UnlabelledData:
    """Image files. Indexing reads: ``data[i] -> ((H, W, 3) uint8 RGB, None)``.

    Attributes:
        paths: the files, each once.
    """

    paths: tuple[Path, ...]

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> UnlabelledData:
        """Find the images of ``splits``.

        Raises:
            DataError: no such folder, or no images in it.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        described = describe(root)
        excluded = described.excluded(root)
        paths: dict[Path, None] = {}
        for split in splits:
            if split != ALL and (root / split).is_dir():
                found = images_in(root / split, deep=True)
            else:
                everything = {path.relative_to(root).as_posix(): path for path in images_in(root, deep=True)}
                drawn = drawn_splits(everything, described)
                have = [*drawn, *(folder.name for folder in subfolders(root))]
                name = resolve_split(split, have, root)
                found = (
                    [everything[key] for key in sorted(drawn[name])]
                    if name in drawn
                    else images_in(root / name, deep=True)
                )
            found = [path for path in found if path not in excluded]
            if not found:
                raise DataError(f"{root}: no images in {split}")
            paths |= dict.fromkeys(found)
        return cls(tuple(paths))

    @property
    def labels(self) -> Labels:
        """None."""
        return Labels()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> Path:
        """The image's file."""
        return self.paths[index]

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All images in random order."""
        return rng.permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], None]:
        """Read one image.

        Raises:
            DataError: unreadable.
        """
        try:
            return read_image(self.paths[index]), None
        except InputError as error:
            raise DataError(str(error)) from error
