"""What a teacher gives for images, stored in files: one per image, named by the image's content."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from ..data.npz import read_npz
from ..errors import CheckpointError, ConfigError
from ..files import atomic_write, ensure_folder
from ..progress import Progress

T = TypeVar("T")

_NOTE = "teacher.json"


class TeacherFolder:
    """A folder with a teacher's float16 arrays, one file per image.

    Files are .npz archives with a checksum inside. A truncated file is computed again; a file with other damage is
    refused when it is read.

    Args:
        path: folder, created if needed.
        teacher: name of the teacher, for messages.
        sha256: digest of the teacher.
        precision: number format in which the teacher computes.
        what: what an array is, for messages.

    Raises:
        ConfigError: the folder holds what another teacher gave, or the same in another precision.
        InputError: the folder cannot be written.
    """

    def __init__(
        self, path: str | Path, teacher: str, sha256: str, precision: str = "fp32", what: str = "embedding"
    ) -> None:
        self.path, self.what = ensure_folder(path), what
        note = self.path / _NOTE
        if note.exists():
            self._check_note(note, teacher, sha256, precision)
        else:
            content = {"teacher": teacher, "sha256": sha256, "precision": precision}
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _check_note(self, note: Path, teacher: str, sha256: str, precision: str) -> None:
        what = self.what
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            noted_teacher, noted_sha256 = content["teacher"], content["sha256"]
            noted_precision = content.get("precision", "fp32")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{note}: cannot be read ({error}): choose another folder with {what}s") from error
        if noted_sha256 != sha256:
            raise ConfigError(
                f"{self.path} holds the {what}s of {noted_teacher} with other weights than {teacher}: choose "
                f"another folder with {what}s"
            )
        if noted_precision != precision:
            raise ConfigError(
                f"{self.path} holds {what}s in {noted_precision}, not in {precision}: choose another folder with "
                f"{what}s, or precision={noted_precision}"
            )

    def file(self, name: str) -> Path:
        """The file of this name, without suffix."""
        return self.path / f"{name}.npz"

    def has(self, file: Path, shape: tuple[int, ...]) -> bool:
        """Whether a file exists in full length."""
        return file.exists() and file.stat().st_size == _length(shape)

    def write(self, file: Path, values: NDArray[np.floating]) -> None:
        """Write an array completely or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_write(file) as temporary:
            temporary.write_bytes(_to_npz(values.astype(np.float16)))


def read_stored(file: Path, shape: tuple[int, ...], what: str = "embedding") -> NDArray[np.float16]:
    """Read an array of a known shape, float16.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    hint = "delete it, and it is computed again"
    try:
        values = read_npz(file, 2 * math.prod(shape))["features"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: damaged {what} ({' '.join(str(error).split())}): {hint}") from error
    if values.shape != shape or values.dtype != np.float16:
        raise CheckpointError(f"{file}: damaged {what}, {values.dtype} {values.shape}: {hint}")
    return values


def compute_missing(
    missing: Sequence[T],
    total: int,
    prepare: Callable[[], Callable[[T], None]],
    name: str,
    precision: str,
    progress: Progress,
) -> None:
    """Compute what a folder does not have yet; several processes share the work and wait for each other.

    Args:
        missing: what is to be computed, the same in every process.
        total: number of files that are needed.
        prepare: makes the function that computes and writes one of them; called where something is missing.
        name: of the work, for the progress display.
        precision: "bf16" for autocast, otherwise "fp32".
        progress: display.
    """
    state = PartialState()
    state.wait_for_everyone()  # until all have listed what is missing
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        compute = prepare()
        autocast = torch.autocast(torch.device(str(state.device)).type, torch.bfloat16, enabled=precision == "bf16")
        with autocast, progress.bar(name, total, total - len(missing)) as bar:
            for number, each in enumerate(mine):
                compute(each)
                for _ in missing[number * state.num_processes : (number + 1) * state.num_processes]:
                    bar.advance()
    state.wait_for_everyone()


def stored_precision(precision: str) -> str:
    """The number format in which a teacher computes what is stored, in a run of this precision.

    float16 may overflow in a network that was not trained in it; bfloat16 has the range of float32.
    """
    return "bf16" if precision == "bf16" else "fp32"


@lru_cache
def _length(shape: tuple[int, ...]) -> int:
    return len(_to_npz(np.zeros(shape, np.float16)))


def _to_npz(values: NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=values)
    return buffer.getvalue()
