"""Images with the embeddings that a teacher has of them, stored in files and read as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.unlabelled import UnlabelledData
from ..errors import DataError
from ..info import Labels
from ..tasks.prompt import EMBED_DIM, GRID
from .teacher_folder import read_stored

SHAPE = (EMBED_DIM, GRID, GRID)  #: of an embedding


def embedding_name(image: Path, flipped: bool) -> str:
    """The name for the embedding of an image, or of its mirror image: the SHA-256 of the image's file.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        name = hashlib.sha256(image.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{image}: {error.strerror}") from error
    return f"{name[:32]}{'-flipped' if flipped else ''}"


@dataclass(frozen=True)
class EmbeddedData:
    """Images with a teacher's embeddings: ``data[i] -> ((H, W, 3) uint8, (1 or 2, 256, 64, 64) float16)``.

    Attributes:
        images: the images.
        files: for each image the file of its embedding and, where there are two, of that of its mirror image.
    """

    images: UnlabelledData
    files: tuple[tuple[Path, ...], ...]
    labels: Labels = Labels()  # noqa: RUF009  (frozen)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> Path:
        """The image's file."""
        return self.images.name(index)

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All images in random order."""
        return self.images.order(rng, buffer)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Read one image and its embeddings.

        Raises:
            DataError: the image cannot be read.
            CheckpointError: an embedding cannot be read.
        """
        image, _ = self.images[index]
        return image, np.stack([read_stored(file, SHAPE) for file in self.files[index]])
