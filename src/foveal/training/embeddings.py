"""Embeddings of a teacher, kept in files and read as a data set."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.unlabelled import UnlabelledData
from ..errors import CheckpointError, ConfigError, DataError
from ..files import atomic_write, ensure_folder
from ..info import Labels
from ..tasks.prompt import EMBED_DIM, GRID


class EmbeddingFolder:
    """A teacher's embeddings of images, a file each, named by the SHA-256 of the image's file.

    Files are .npz archives, float16 ``(256, 64, 64)``, with a checksum inside. One that is cut off is computed again;
    one that was changed otherwise is refused when it is read.

    Args:
        path: folder, made if needed.
        teacher: its name, for people.
        sha256: of its weights.
        precision: in which it looks at images.

    Raises:
        ConfigError: the folder holds another teacher's embeddings, or embeddings of another precision.
        InputError: it cannot be written.
    """

    def __init__(self, path: str | Path, teacher: str, sha256: str, precision: str = "fp32") -> None:
        self.path = ensure_folder(path)
        note = self.path / _NOTE
        if note.exists():
            try:
                found = json.loads(note.read_text(encoding="utf-8"))
                name, known, seen_in = found["teacher"], found["sha256"], found.get("precision", "fp32")
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{note}: cannot be read ({error}): choose another folder with embeddings") from error
            if known != sha256:
                raise ConfigError(
                    f"{self.path} holds the embeddings of {name} with other weights than {teacher}: choose another "
                    "folder with embeddings"
                )
            if seen_in != precision:
                raise ConfigError(
                    f"{self.path} holds embeddings in {seen_in}, not in {precision}: choose another folder with "
                    f"embeddings, or precision={seen_in}"
                )
        else:
            content = {"teacher": teacher, "sha256": sha256, "precision": precision}
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        self.bytes = len(_packed(np.zeros(_SHAPE, np.float16)))

    def file(self, image: Path, flipped: bool) -> Path:
        """Where the embedding of an image, or of it seen in a mirror, is kept.

        Raises:
            DataError: the image cannot be read.
        """
        try:
            found = hashlib.sha256(image.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{image}: {error.strerror}") from error
        return self.path / f"{found[:32]}{'-flipped' if flipped else ''}.npz"

    def has(self, file: Path) -> bool:
        """Whether a file is there, whole."""
        return file.exists() and file.stat().st_size == self.bytes

    def write(self, file: Path, embedding: NDArray[np.floating]) -> None:
        """Keep an embedding, whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_write(file) as temporary:
            temporary.write_bytes(_packed(embedding.astype(np.float16)))

    @staticmethod
    def read(file: Path) -> NDArray[np.float16]:
        """An embedding, float16 ``(256, 64, 64)``.

        Raises:
            CheckpointError: missing or damaged.
        """
        try:
            with np.load(file, allow_pickle=False) as archive:
                found = archive["features"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{file}: damaged embedding ({reason}): delete it, and it is computed again"
            ) from error
        if found.shape != _SHAPE or found.dtype != np.float16:
            raise CheckpointError(f"{file}: damaged embedding, {found.dtype} {found.shape}: delete it")
        return found


def _packed(embedding: NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=embedding)
    return buffer.getvalue()


@dataclass(frozen=True)
class EmbeddedData:
    """Images with a teacher's embeddings: ``data[i] -> ((H, W, 3) uint8, (1 or 2, 256, 64, 64) float16)``.

    Attributes:
        images: what was seen.
        files: of each image's embedding and, where there are two, of that of its mirror image.
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
            CheckpointError: an embedding cannot.
        """
        image, _ = self.images[index]
        return image, np.stack([EmbeddingFolder.read(file) for file in self.files[index]])


_NOTE = "teacher.json"


_SHAPE = (EMBED_DIM, GRID, GRID)
