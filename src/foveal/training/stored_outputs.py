"""A teacher's outputs for whole images, computed once, and read wherever the pixels of a sample come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, DataError, InputError
from ..images.preparing import network_size, prepare
from ..info import ModelInfo
from ..prediction.tiles import MIN_SIZE
from ..progress import Progress
from .cache import Cached
from .distil_losses import sample_maps
from .pixel_origins import TargetsWithOrigins
from .teacher import Teacher
from .teacher_folder import TeacherFolder, compute_missing, read_stored, stored_precision

_LARGEST = 6e4  # logit that is stored as it is; float16 ends at 65504


class Grid(NamedTuple):
    """The positions of a teacher's output for one image.

    Attributes:
        shape: of the output, (C, h, w).
        ratio: positions per pixel of the image, (vertical, horizontal).
    """

    shape: tuple[int, int, int]
    ratio: tuple[float, float]

    @classmethod
    def of(cls, info: ModelInfo, height: int, width: int) -> Grid:
        """The grid of an image of this size, which the teacher resizes as for any prediction."""
        sides, stride = network_size(height, width, info.preprocess), info.output_stride
        rows, columns = (-(-max(side, MIN_SIZE) // stride) for side in sides)
        ratio = sides[0] / (height * stride), sides[1] / (width * stride)
        return cls((info.num_classes, rows, columns), ratio)


class StoredOutputs:
    """The logits of a segmentation teacher for the images of a data set, in files named by the images' pixels.

    What is missing is computed first; several processes share the images. Unreadable images have no file.

    Args:
        samples: the decoded samples.
        folder: where the files are.
        teacher: the teacher, which sees whole images as in prediction.
        precision: of the run.
        progress: display.

    Raises:
        ConfigError: the folder belongs to another teacher.
        CheckpointError: the teacher's output has another size than its description says.
    """

    def __init__(self, samples: Cached, folder: str, teacher: Teacher, precision: str, progress: Progress) -> None:
        self.info, self.classes = teacher.info, teacher.info.num_classes
        precision = stored_precision(precision)
        self.folder = TeacherFolder(folder, teacher.info.ref or "a file", teacher.identity(), precision, "output")
        self.files: list[tuple[Path, Grid] | None] = []
        missing: dict[Path, int] = {}
        with progress.bar("look up", len(samples.data)) as bar:
            for index in range(len(samples.data)):
                self.files.append(found := self._look_up(samples, index))
                if found and not self.folder.has(found[0], found[1].shape):
                    missing.setdefault(found[0], index)
                bar.advance()
        if missing:
            size = sum(2 * math.prod(found[1].shape) for found in dict(filter(None, self.files)).items())
            progress.note(f"the teacher's outputs for {len(self.files)} images take {size / 2**20:.0f} MiB in {folder}")

        def prepare_teacher() -> Callable[[int], None]:
            runner = teacher.runner(str(PartialState().device))
            return lambda index: self._compute(index, samples, runner)

        compute_missing(list(missing.values()), len(self.files), prepare_teacher, "teacher", precision, progress)

    def _look_up(self, samples: Cached, index: int) -> tuple[Path, Grid] | None:
        try:
            image, _ = samples[index]
        except (DataError, InputError):
            return None  # the run reports it when it reads the image itself
        return self.folder.file(content_name(image)), Grid.of(self.info, *image.shape[:2])

    def _compute(
        self, index: int, samples: Cached, runner: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> None:
        found = self.files[index]
        assert found is not None
        output = runner(prepare(samples[index][0], self.info.preprocess, MIN_SIZE))[0]
        if output.shape != found[1].shape:
            raise CheckpointError(
                f"the teacher's output is {output.shape}, not {found[1].shape}: its description is of another model"
            )
        self.folder.write(found[0], np.clip(output, -_LARGEST, _LARGEST))

    def split(self, target: Tensor) -> TargetsWithOrigins:
        """The parts of a batch of targets."""
        return TargetsWithOrigins.of(target, self.classes)

    def __call__(self, target: TargetsWithOrigins, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
        """The teacher's logits for a batch of samples, on a coarser grid than their pixels.

        Each position of the grid has the logits at the place in the original image from which the pixel in its middle
        comes (for an even stride, the pixel below and right of the middle), read bilinearly.

        Args:
            target: where the pixels come from.
            size: (h, w) of the grid.
            stride: pixels of the samples per position.

        Returns:
            Logits ``(B, C, h, w)`` float32, and whether a position is inside of an image, ``(B, h, w)`` bool.
        """
        row, column, numbers, inside = (_at_middles(part, size, stride) for part in target[1:])
        out = torch.zeros(len(row), self.classes, *size, device=row.device)
        for number, own in enumerate(numbers):
            for image in own.unique().tolist():
                found = self.files[image]
                assert found is not None
                values = torch.from_numpy(read_stored(found[0], found[1].shape, "output")).to(row.device, torch.float32)
                y, x = (
                    (place[number] + 0.5) * ratio - 0.5
                    for place, ratio in zip((row, column), found[1].ratio, strict=True)
                )
                read = sample_maps(values[None], y[None], x[None])[0]
                out[number] = torch.where(own == image, read, out[number])
        return out, inside


def _at_middles(part: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """``(B, H, W) -> (B, h, w)``: the pixel in the middle of each position, or the last one if it lies beyond."""
    rows, columns = (
        (torch.arange(count, device=part.device) * stride + stride // 2).clamp(max=side - 1)
        for count, side in zip(size, part.shape[1:], strict=True)
    )
    return part[:, rows][:, :, columns]


def content_name(image: NDArray[Any]) -> str:
    """The name of an image by its pixels: the first half of their SHA-256, in hexadecimal."""
    sha256 = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
    sha256.update(np.ascontiguousarray(image).data)
    return sha256.hexdigest()[:32]
