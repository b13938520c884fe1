"""Results of regression models: values at the image's own size, files in their unit, pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.targets import stored_values
from ..errors import InputError
from ..files import atomic_write
from ..images import exr
from ..images.tiff import RawTag
from ..images.tiff_writing import TiffImage, write_tiff
from ..images.value_colours import cut_out, map_colours
from ..images.writing import Canvas, write_picture
from ..info import ModelInfo, Target
from .argmax import upsampled_rows

_LOG = logging.getLogger(__name__)
_PNG_CHANNELS = (1, 3, 4)
FORMATS = (".png", ".tif", ".tiff", ".npy", exr.SUFFIX)  #: suffixes of files with values


@dataclass(frozen=True, repr=False)
class RegressResult:
    """Values of each pixel of one image.

    Attributes:
        image: the image, ``(H, W, 3)`` uint8; of a model of other bands ``(H, W, C)``.
        coarse: values at the network's stride, ``(channels, h, w)`` float32.
        scale: positions of ``coarse`` per image pixel, (vertical, horizontal): position = (pixel + 0.5) * scale - 0.5.
        target: what the values are: kind, unit, and how integer files hold them.
        names: of the channels.
        unit_length: whether the channels are a vector of length 1.
    """

    image: NDArray[Any]
    coarse: NDArray[np.float32]
    scale: tuple[float, float]
    target: Target
    names: tuple[str, ...]
    unit_length: bool = False

    @classmethod
    def of(
        cls, info: ModelInfo, image: NDArray[Any], coarse: NDArray[np.float32], scale: tuple[float, float]
    ) -> RegressResult:
        """The result of a model that ``info`` describes."""
        names = info.labels.names or info.target.names(info.num_classes)
        return cls(image, coarse, scale, info.target, names, info.options.get("output") == "unit")

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        unit = f" in {self.target.unit}" if self.target.unit else ""
        return f"RegressResult({', '.join(self.names)}{unit}, image {width}x{height}; .values, .picture(), .save())"

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The values, ``(H, W, channels)`` float32, in the unit of the target: bilinearly upsampled."""
        height, width = self.image.shape[:2]
        out = np.empty((height, width, len(self.coarse)), np.float32)
        for rows, values in upsampled_rows(self.coarse, (height, width), self.scale):
            out[rows] = values.transpose(1, 2, 0)
        if self.unit_length:
            out /= np.maximum(np.linalg.norm(out, axis=2, keepdims=True), 1e-6)
        return out

    def picture(self, limits: tuple[float, float] | None = None) -> Image.Image:
        """A picture: colours for depths (near is light) and other values, RGB for normals, a cut-out for alpha.

        Args:
            limits: values that get the first and the last colour; default: all but the lowest and highest 2 %.
        """
        if self.target.kind == "alpha":
            return Image.fromarray(cut_out(self.image, self.values[..., 0]))
        return Image.fromarray(map_colours(self.values, self.target.kind, limits))

    def save(self, path: str | Path, *, scale: float | None = None) -> Path:
        """Write the values: .png with 16 bits, .tif, .npy or .exr with float32.

        Integers are value / scale, as ``dataset.yaml`` of the training data says. Values beyond the range of 16 bits
        are clipped, and a warning of the logger "foveal" says how many.

        Args:
            path: its suffix selects the format.
            scale: PNG: value of one step; default: that of the target.

        Raises:
            InputError: an unknown suffix, a PNG without a scale or of another number of channels than 1, 3 or 4, or the
                file cannot be written.
            DependencyError: OpenEXR is not installed.
        """
        clipped = self.write(Path(path), scale)
        if clipped:
            _LOG.warning("%s: %d of %d pixels clipped to the range of 16 bits", path, clipped, self.values[..., 0].size)
        return Path(path)

    def write(self, path: Path, scale: float | None = None, tags: Mapping[int, RawTag] | None = None) -> int:
        """Write the values as :meth:`save`, and return the number of pixels that were clipped.

        Args:
            path: its suffix selects the format.
            scale: as in :meth:`save`.
            tags: further tags of a TIFF file, such as those of the image's georeference.
        """
        suffix, values = path.suffix.lower(), self.values
        check_format(path, len(self.coarse), self.target, scale)
        height, width, channels = values.shape
        if suffix == ".png":
            target = self.target if scale is None else dataclasses.replace(self.target, scale=scale)
            stored, clipped = stored_values(values, target)
            write_picture(path, Canvas(height, width, channels, 16), [stored])
            return clipped
        if suffix == exr.SUFFIX:
            exr.write_exr(path, values)
        elif suffix == ".npy":
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, values)
        else:
            write_tiff(path, self.tiff_image(tags), [values])
        return 0

    def tiff_image(self, tags: Mapping[int, RawTag] | None = None) -> TiffImage:
        """Size, type and further tags of the TIFF with the values."""
        height, width, channels = self.values.shape
        return TiffImage(height, width, channels, "float32", tags=tags or {}, overviews=False)


def check_format(path: Path, channels: int, target: Target, scale: float | None = None) -> None:
    """Refuse a file that cannot hold the values, before they are computed.

    Raises:
        InputError: an unknown suffix, or a PNG without a scale or of another number of channels.
        DependencyError: OpenEXR is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: values are written as {', '.join(FORMATS)}")
    if suffix == exr.SUFFIX:
        exr.import_openexr(path)
    if suffix != ".png":
        if scale is not None:
            raise InputError(f"{path}: scale={scale:g} is for .png files, others hold the values themselves")
        return
    if channels not in _PNG_CHANNELS:
        raise InputError(f"{path}: a PNG has 1, 3 or 4 channels, not {channels}: write .tif, .npy or .exr")
    if not (scale or target.scale) and target.kind in ("values", "depth"):
        raise InputError(f"{path}: the value of one step is not known: give scale, or write .tif, .npy or .exr")
