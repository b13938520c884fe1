"""The embeddings of a teacher, stored in files and read as a data set."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.npz import read_npz
from ..data.unlabelled import UnlabelledData
from ..errors import CheckpointError, ConfigError, DataError
from ..files import atomic_write, ensure_folder
from ..info import Labels
from ..tasks.prompt import EMBED_DIM, GRID

_NOTE = "teacher.json"
_SHAPE = (EMBED_DIM, GRID, GRID)
_BYTES = 2 * EMBED_DIM * GRID * GRID  # of an embedding in float16


class EmbeddingFolder:
    """A folder with a teacher's embeddings of images, one file per image, named by the SHA-256 of the image's file.

    Files are .npz archives, float16 ``(256, 64, 64)``, with a checksum inside. A truncated file is computed again; a
    file with other damage is refused when it is read.

    Args:
        path: folder, created if needed.
        teacher: name of the teacher, for messages.
        sha256: digest of the teacher's weights.
        precision: number format in which the teacher encodes images.

    Raises:
        ConfigError: the folder holds the embeddings of another teacher, or embeddings in another precision.
        InputError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, teacher: str, sha256: str, precision: str = "fp32") -> None:
        self.path = ensure_folder(path)
        note = self.path / _NOTE
        if note.exists():
            self._check_note(note, teacher, sha256, precision)
        else:
            content = {"teacher": teacher, "sha256": sha256, "precision": precision}
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        self.bytes = len(_to_npz(np.zeros(_SHAPE, np.float16)))

    def _check_note(self, note: Path, teacher: str, sha256: str, precision: str) -> None:
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            noted_teacher, noted_sha256 = content["teacher"], content["sha256"]
            noted_precision = content.get("precision", "fp32")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{note}: cannot be read ({error}): choose another folder with embeddings") from error
        if noted_sha256 != sha256:
            raise ConfigError(
                f"{self.path} holds the embeddings of {noted_teacher} with other weights than {teacher}: choose "
                "another folder with embeddings"
            )
        if noted_precision != precision:
            raise ConfigError(
                f"{self.path} holds embeddings in {noted_precision}, not in {precision}: choose another folder with "
                f"embeddings, or precision={noted_precision}"
            )

    def file(self, image: Path, flipped: bool) -> Path:
        """Return the file for the embedding of an image, or of its mirror image.

        Raises:
            DataError: the image cannot be read.
        """
        try:
            name = hashlib.sha256(image.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{image}: {error.strerror}") from error
        return self.path / f"{name[:32]}{'-flipped' if flipped else ''}.npz"

    def has(self, file: Path) -> bool:
        """Whether a file exists in full length."""
        return file.exists() and file.stat().st_size == self.bytes

    def write(self, file: Path, embedding: NDArray[np.floating]) -> None:
        """Write an embedding completely or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_write(file) as temporary:
            temporary.write_bytes(_to_npz(embedding.astype(np.float16)))

    @staticmethod
    def read(file: Path) -> NDArray[np.float16]:
        """Read an embedding, float16 ``(256, 64, 64)``.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            embedding = read_npz(file, _BYTES)["features"]
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{file}: damaged embedding ({reason}): delete it, and it is computed again"
            ) from error
        if embedding.shape != _SHAPE or embedding.dtype != np.float16:
            raise CheckpointError(
                f"{file}: damaged embedding, {embedding.dtype} {embedding.shape}: delete it, and it is computed again"
            )
        return embedding


def _to_npz(embedding: NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=embedding)
    return buffer.getvalue()


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
        return image, np.stack([EmbeddingFolder.read(file) for file in self.files[index]])
