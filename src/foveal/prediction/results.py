"""Results of predictors: numpy arrays at the image's own size, with overlays and files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..images.bands import displayed
from ..images.colours import contrasting_palette, palette_of
from ..images.overlay import draw_overlay
from ..images.writing import Canvas, save_picture, stored_channels, write_picture
from ..info import Labels
from .areas import Area, Encoding, Polygon, coco_file, find_areas, find_polygons
from .argmax import upsampled_argmax, upsampled_rows


def class_names(labels: Labels, count: int) -> tuple[str, ...]:
    """Names of ``count`` classes; "class 0", ... where there are none."""
    return labels.names or tuple(f"class {i}" for i in range(count))


@dataclass(frozen=True, repr=False)
class SegmentResult:
    """Semantic segmentation of one image.

    Attributes:
        image: the image, ``(H, W, 3)`` uint8; of a model of other bands ``(H, W, C)``.
        logits: class scores at the network's stride, ``(C, h, w)`` float32.
        scale: logit positions per image pixel, (vertical, horizontal): position = (pixel + 0.5) * scale - 0.5.
        labels: names and palette.
    """

    image: NDArray[Any]
    logits: NDArray[np.float32]
    scale: tuple[float, float]
    labels: Labels

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index; "class 0", ... where the model has none."""
        return class_names(self.labels, len(self.logits))

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f"SegmentResult(image {width}x{height}, {len(self.names)} classes; .mask, .scores, .shares(), .overlay())"
        )

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Colour (red, green, blue) of each class."""
        return palette_of(self.labels, len(self.logits))

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """Class index of every pixel, ``(H, W)`` uint8 (int32 for more than 256 classes).

        The argmax of the bilinearly upsampled logits, computed only where it can change.
        """
        return upsampled_argmax(self.logits, self.image.shape[:2], self.scale)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Probability of the predicted class of every pixel, ``(H, W)`` float32: softmax of the upsampled logits."""
        out = np.empty(self.image.shape[:2], np.float32)
        for rows, logits in upsampled_rows(self.logits, self.image.shape[:2], self.scale):
            logits -= logits.max(0)
            np.divide(1, np.exp(logits, out=logits).sum(0), out=out[rows])
        return out

    def shares(self) -> list[tuple[str, float, float]]:
        """(class name, share of the pixels, mean probability there) of every class that occurs, largest share first."""
        return [(self.names[index], share, confidence) for index, share, confidence in self.indexed_shares()]

    def indexed_shares(self) -> list[tuple[int, float, float]]:
        """As :meth:`shares`, with the index of the class; several classes may have one name."""
        count = np.bincount(self.mask.ravel(), minlength=len(self.names))
        total = np.bincount(self.mask.ravel(), weights=self.scores.ravel(), minlength=len(self.names))
        order = [int(i) for i in np.argsort(-count, kind="stable") if count[i]]
        return [(i, float(count[i] / self.mask.size), float(total[i] / count[i])) for i in order]

    def overlay(
        self, alpha: float = 0.5, *, contours: bool = False, legend: bool = False, distinct: bool = False
    ) -> Image.Image:
        """The image with the colours of the classes over it; of other bands than RGB the first three, or the first.

        Args:
            alpha: opacity of the colours, 0 (image only) to 1 (colours only).
            contours: whether to draw a line around each region, for classes of similar colours.
            legend: whether to add a strip below the image with the colours and names of the classes that occur.
            distinct: clearly different colours for the classes that occur, in place of the palette.

        Raises:
            InputError: ``alpha`` is not 0 to 1.
        """
        labels = Labels(self.names, contrasting_palette(self.mask, len(self.names)) if distinct else self.palette)
        return draw_overlay(displayed(self.image), self.mask, labels, alpha=alpha, contours=contours, legend=legend)

    def areas(self, min_area: int = 1) -> list[Area]:
        """The connected areas of each class with their run lengths and boxes, those of fewer pixels left out."""
        return list(find_areas(self.mask, min_area))

    def polygons(self) -> list[Polygon]:
        """The outline of every area, with its holes, in pixels of the image.

        Raises:
            DependencyError: rasterio or shapely is not installed.
        """
        return find_polygons(self.mask, self.names)

    def save_coco(
        self, path: str | Path, file_name: str = "", *, encoding: Encoding = "rle", min_area: int = 1
    ) -> Path:
        """Write the areas as COCO annotations: one image, the classes as categories with their index plus 1 as id.

        Args:
            path: the .json file.
            file_name: name of the image in it.
            encoding: "rle" (lists of run lengths), "coco_rle" (COCO's strings) or "polygons" (areas with holes stay
                run lengths).
            min_area: areas of fewer pixels are left out.

        Raises:
            InputError: a suffix other than .json, or the file cannot be written.
            DependencyError: the encoding needs a library that is not installed.
        """
        with coco_file(path, self.names, encoding, min_area) as file:
            file.add(file_name, self.mask)
        return Path(path)

    def save(self, path: str | Path) -> Path:
        """Write the mask as a PNG of class indices with a palette: viewers show colours, programs read indices.

        Raises:
            InputError: a suffix other than .png, more than 256 classes, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: masks of class indices are saved as .png files only")
        if self.mask.dtype != np.uint8:
            raise InputError(
                f"{path}: a PNG with a palette holds at most 256 classes, not {len(self.names)}: save .mask yourself"
            )
        save_picture(mask_picture(self), path)
        return path


def mask_picture(result: SegmentResult) -> Image.Image:
    """The mask of at most 256 classes as a picture of class indices with the palette."""
    picture = Image.fromarray(result.mask)
    picture.putpalette(np.asarray(result.palette, np.uint8).ravel().tolist())
    return picture


@dataclass(frozen=True, repr=False)
class ClassifyResult:
    """Classification of one image.

    Attributes:
        logits: ``(num_classes,)`` float32.
        labels: names of the classes.
    """

    logits: NDArray[np.float32]
    labels: Labels

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index; "class 0", ... where the model has none."""
        return class_names(self.labels, len(self.logits))

    def __repr__(self) -> str:
        best = ", ".join(f"{name!r} {score:.1%}" for name, score in self.top(3))
        return f"ClassifyResult({len(self.logits)} classes: {best}; .top(), .scores)"

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities, ``(num_classes,)``."""
        shifted = np.exp(self.logits - self.logits.max())
        return shifted / shifted.sum()

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """(name, probability) of the ``k`` most probable classes, best first; without names "class 0", ...

        Raises:
            InputError: ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"top({k}): give 1 or more")
        order = np.argsort(-self.scores, kind="stable")[:k]
        names = self.names
        return [(names[i], float(self.scores[i])) for i in order]


@dataclass(frozen=True, repr=False)
class UpscaleResult:
    """An upscaled image, or with ``scale=1`` a restored one.

    Attributes:
        image: ``(scale * H, scale * W, 3)``, with alpha 4 channels; uint8, or uint16 if the input has 16 bits.
        scale: ratio of the sides to those of the input.
        icc: colour profile; empty: none.
        grey: whether the image is grey; its three channels are then equal.
    """

    image: NDArray[Any]
    scale: int
    icc: bytes = b""
    grey: bool = False

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"UpscaleResult(image {width}x{height}, x{self.scale}, {self.image.dtype}; .image, .save())"

    def save(self, path: str | Path) -> Path:
        """Write the image with its colour profile, in the format of the suffix.

        Raises:
            InputError: an unknown format, one that cannot hold the image, or the file cannot be written.
        """
        stored = stored_channels(self.image, self.grey)
        height, width, channels = stored.shape
        canvas = Canvas(height, width, channels, 8 * self.image.itemsize, self.icc)
        write_picture(path, canvas, [stored])
        return Path(path)
