"""Results of promptable models: masks at the image's own size, with overlays and files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..files import atomic_write
from ..images import regions
from ..images.colours import distinct_colours
from ..images.sam_frame import at_image_size
from ..images.writing import save_picture


@dataclass(frozen=True, repr=False)
class MaskResult:
    """Masks of one prompt, or of P prompts: M each, 3 for an ambiguous prompt (part, whole, more), else 1.

    Masks are in the order of the network's outputs, whatever their size. :attr:`best` is the mask with the highest
    predicted IoU, which may be a part of the object; :attr:`by_area` has the whole object first.

    Attributes:
        low_res: mask logits at the network's resolution, ``(P, M, 256, 256)`` float32; input for ``prompt(masks=)``.
        iou: IoU of each mask with the object as the network predicts it: ``(M,)``, for P prompts ``(P, M)``.
        size: (H, W) of the image.
        image: the image, ``(H, W, 3)`` uint8; ``None`` if the embedding was read from a file.
    """

    low_res: NDArray[np.float32] = field(repr=False)
    iou: NDArray[np.float32]
    size: tuple[int, int]
    image: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        (prompts, masks), (height, width) = self.low_res.shape[:2], self.size
        text = f"for each of {prompts} prompts"
        if not self.many:
            text = f"with a predicted IoU of {', '.join(f'{value:.3f}' for value in self.iou)}"
        masks = "one mask" if masks == 1 else f"{masks} masks"
        return f"MaskResult(image {width}x{height}, {masks} {text}; .masks, .iou, .best, .overlay())"

    @property
    def many(self) -> bool:
        """Whether the result is for P prompts, not for one."""
        return self.iou.ndim == 2

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Mask logits at the image's size, ``(M, H, W)``, for P prompts ``(P, M, H, W)``; above 0 inside the mask."""
        logits = at_image_size(self.low_res, self.size)
        return logits if self.many else logits[0]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """Masks ``(M, H, W)``, for P prompts ``(P, M, H, W)``."""
        masks = np.empty((*self.low_res.shape[:2], *self.size), bool)
        for mask, low_res in zip(masks, self.low_res, strict=True):  # all logits at once would take 4 times the memory
            np.greater(at_image_size(low_res, self.size), 0, out=mask)
        return masks if self.many else masks[0]

    @cached_property
    def best(self) -> NDArray[np.bool_]:
        """The mask with the highest :attr:`iou`: ``(H, W)``, for P prompts ``(P, H, W)``."""
        choice = self.iou.reshape(len(self.low_res), -1).argmax(1)
        masks = np.stack([at_image_size(low[i], self.size) > 0 for low, i in zip(self.low_res, choice, strict=True)])
        return masks if self.many else masks[0]

    @property
    def by_area(self) -> NDArray[np.int64]:
        """Indices of the masks, the largest first: the whole object before its parts; ``(M,)``, or ``(P, M)``."""
        return np.argsort(-np.count_nonzero(self.masks, axis=(-2, -1)), axis=-1, kind="stable")

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with the best masks in colours, their outlines and predicted IoU; ``alpha``: opacity, 0 to 1."""
        if self.image is None:
            raise InputError("this embedding was read from a file, without its image: draw result.best over the image")
        best = self.best if self.many else self.best[None]
        return draw_masks(self.image, best, self.iou.reshape(len(best), -1).max(1), alpha)

    def cutout(self, mask: int | None = None, *, crop: bool = True) -> Image.Image:
        """The object alone: an RGBA picture that is transparent outside of a mask, for one prompt.

        Args:
            mask: index of the mask; default: the one with the highest predicted IoU.
            crop: whether to cut the picture to the object's box; ``False`` keeps the size of the image.

        Raises:
            InputError: many prompts, no such mask, an empty mask, or an embedding without its image.
        """
        if self.image is None:
            raise InputError("this embedding was read from a file, without its image: encode the image again")
        if self.many:
            raise InputError("cutout is for one prompt: prompt the embedding once for each object")
        if mask is not None and not 0 <= mask < len(self.iou):
            raise InputError(f"mask={mask}: give 0 to {len(self.iou) - 1}")
        return cut_out(self.image, self.best if mask is None else self.masks[mask], crop)

    def save(self, path: str | Path) -> Path:
        """Write the best mask as a PNG, 255 inside; for P prompts the number 1..P of the last mask with the pixel.

        Raises:
            InputError: a suffix other than .png, more than 255 prompts, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: masks are saved as .png files only")
        if len(self.low_res) > 255:
            raise InputError(f"{path}: a mask holds at most 255 objects, not {len(self.low_res)}: save fewer at a time")
        numbers = np.zeros(self.size, np.uint8)
        for number, mask in enumerate(self.best if self.many else self.best[None], start=1):
            numbers[mask] = number if self.many else 255
        save_picture(Image.fromarray(numbers), path)
        return path


class Record(TypedDict):
    """One mask, in the form of SAM's ``SamAutomaticMaskGenerator``.

    Attributes:
        segmentation: ``(H, W)`` bool, or COCO's run-length encoding.
        area: number of pixels.
        bbox: x, y, width, height, from the first to the last pixel; as in SAM, one pixel has width 0.
        predicted_iou: IoU of the mask with the object as the network predicts it.
        point_coords: the prompt, x and y in the image.
        stability_score: IoU of the masks that two thresholds of the logits give.
        crop_box: x, y, width, height of the crop in which the mask was found.
    """

    segmentation: NDArray[np.bool_] | dict[str, Any]
    area: int
    bbox: list[int]
    predicted_iou: float
    point_coords: list[list[float]]
    stability_score: float
    crop_box: list[int]


@dataclass(frozen=True, repr=False)
class EverythingResult(Sequence[Record]):
    """All masks of one image: a sequence of their records, highest predicted IoU first.

    Attributes:
        records: one for each mask, see :class:`Record`.
        size: (H, W) of the image.
        image: the image, ``(H, W, 3)`` uint8.
        prompts: number of prompts that the decoder ran.
    """

    records: list[Record]
    size: tuple[int, int]
    image: NDArray[np.uint8] = field(repr=False)
    prompts: int

    def __repr__(self) -> str:
        height, width = self.size
        found = f"{len(self)} masks of {self.prompts} prompts"
        return f"EverythingResult(image {width}x{height}, {found}; .records, .overlay())"

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self.records[index]

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with all masks in colours, small over large ones, their outlines and predicted IoU.

        ``alpha``: opacity of the colours, 0 to 1.
        """
        order = sorted(self.records, key=lambda record: -record["area"])
        scores = np.array([record["predicted_iou"] for record in order])
        return draw_masks(self.image, (_mask(record) for record in order), scores, alpha)

    def cutouts(self, *, crop: bool = True) -> Iterator[Image.Image]:
        """Each object alone, in the order of the records; see :meth:`MaskResult.cutout`."""
        for record in self.records:
            yield cut_out(self.image, _mask(record), crop)

    def save(self, path: str | Path, file_name: str = "") -> Path:
        """Write the masks in COCO's JSON format: one image, one category "object", masks as run-length encodings.

        Args:
            path: the .json file.
            file_name: name of the image in the JSON.

        Raises:
            InputError: a suffix other than .json, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise InputError(f"{path}: COCO's annotations are .json files")
        height, width = self.size
        annotations = [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                **record,
                "segmentation": _encode(record["segmentation"], self.size),
            }
            for number, record in enumerate(self.records, start=1)
        ]
        content = {
            "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": annotations,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return path


def _encode(segmentation: NDArray[np.bool_] | dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(segmentation, dict):
        return segmentation
    return regions.uncompressed_rle(regions.runs_of(segmentation), size)


def _mask(record: Record) -> NDArray[np.bool_]:
    segmentation = record["segmentation"]
    return regions.decoded(segmentation) if isinstance(segmentation, dict) else segmentation


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.bool_], crop: bool) -> Image.Image:
    """An RGBA picture of an image ``(H, W, 3)``, transparent and black outside of a mask ``(H, W)``.

    Raises:
        InputError: an empty mask.
    """
    if not mask.any():
        raise InputError("the mask is empty: there is nothing to cut out; give another prompt or another mask")
    if crop:
        ((x1, y1, x2, y2),) = regions.boxes_of(mask[None])
        image, mask = image[y1 : y2 + 1, x1 : x2 + 1], mask[y1 : y2 + 1, x1 : x2 + 1]
    # Colours behind transparent pixels would come back in programs that ignore alpha.
    return Image.fromarray(np.dstack([np.where(mask[..., None], image, 0), mask.astype(np.uint8) * 255]))


def draw_masks(
    image: NDArray[np.uint8], masks: Iterable[NDArray[np.bool_]], scores: NDArray[np.floating], alpha: float = 0.5
) -> Image.Image:
    """Draw N masks over an image, each in its own colour, with its outline and score.

    Args:
        image: ``(H, W, 3)``.
        masks: N masks ``(H, W)``.
        scores: ``(N,)``.
        alpha: opacity of the colours, 0 to 1.

    Raises:
        InputError: ``alpha`` is not from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: give 0 (image only) to 1 (colours only)")
    from PIL import ImageDraw, ImageFont

    out = image.copy()
    colours = np.asarray(distinct_colours(len(scores) + 1)[1:], np.float32)
    width = max(1, round(max(image.shape[:2]) / 600))
    texts: list[tuple[tuple[float, float], str]] = []
    for mask, colour, score in zip(masks, colours, scores, strict=True):
        if not mask.any():
            continue
        ((x1, y1, x2, y2),) = regions.boxes_of(mask[None])
        part, inside = out[y1 : y2 + 1, x1 : x2 + 1], mask[y1 : y2 + 1, x1 : x2 + 1]
        part[inside] = (part[inside] * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
        # No outline at the image's border: the object may go on beyond it.
        edges = ((int(y1 > 0), int(y2 + 1 < mask.shape[0])), (int(x1 > 0), int(x2 + 1 < mask.shape[1])))
        framed = _outline(np.pad(inside, edges), width)
        part[framed[edges[0][0] :, edges[1][0] :][: inside.shape[0], : inside.shape[1]]] = 255
        rows, columns = np.nonzero(inside)
        texts.append(((float(x1 + columns.mean()), float(y1 + rows.mean())), f"{score:.2f}"))
    picture = Image.fromarray(out)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(max(image.shape[:2]) / 50)))
    for position, text in texts:
        pen.text(position, text, fill="white", stroke_fill="black", stroke_width=2, anchor="mm", font=font)
    return picture


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of the mask within ``width`` steps of its outside; steps go along rows and columns, not diagonally."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
