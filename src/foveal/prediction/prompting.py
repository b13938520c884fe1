"""Promptable models: encode an image once, then get masks for points, boxes or earlier masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.npz import read_npz
from ..errors import InputError
from ..files import atomic_write
from ..images.sam_frame import LOW_RES, frame_size
from .mask_results import MaskResult
from .runner import PromptRunner, check_finite

_SAVED_BYTES = 4 * 256 * 64 * 64 + (1 << 12)  # of a saved embedding's arrays
_CORNERS = (2, 3)  # labels of a box's top left and bottom right corner


@dataclass(frozen=True)
class Embedding:
    """An encoded image; prompts do not change it.

    Attributes:
        features: embedding of the image, ``(1, 256, 64, 64)`` float32.
        size: (H, W) of the image; prompts and masks are in its pixels.
        model: name and tag of the model that encoded the image.
        runner: runs the decoder.
        image: ``(H, W, 3)`` uint8; ``None`` if the embedding was read from a file.
    """

    features: NDArray[np.float32] = field(repr=False)
    size: tuple[int, int]
    model: str
    runner: PromptRunner = field(repr=False)
    image: NDArray[np.uint8] | None = field(default=None, repr=False)

    def prompt(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        multimask: bool = True,
        least_iou: float = -math.inf,
    ) -> MaskResult:
        """Get the masks of one object, or of P objects at once: the n-th points, box and mask are the n-th prompt.

        Args:
            points: x and y in pixels: ``(N, 2)``, for P prompts ``(P, N, 2)``.
            labels: one for each point: 1 on the object, 0 on the background.
            boxes: x1, y1, x2, y2 in pixels: ``(4,)``, for P prompts ``(P, 4)``.
            masks: ``low_res`` of an earlier result: ``(256, 256)``, for P prompts ``(P, 256, 256)``.
            multimask: ``True``: three masks, for prompts that can mean a part or the whole; ``False``: one mask, for
                unambiguous prompts.
            least_iou: if none of a prompt's three masks has a higher predicted IoU, its masks may be left empty. With
                torch this saves half of the cost of such a prompt.

        Raises:
            InputError: no prompt, a wrong shape, a point outside the image, or a box without an inside.
        """
        inputs = {"points": points, "boxes": boxes, "masks": masks}
        points, boxes, masks = (None if x is None else _numbers(x, name) for name, x in inputs.items())
        batched = [x is not None and np.ndim(x) > single for x, single in ((points, 2), (boxes, 1), (masks, 2))]
        coords, kinds = self._points(points, labels)
        corners, logits = self._boxes(boxes), _low_res(masks)
        counts = {len(x) for x in (coords, corners, logits) if x is not None}
        if not counts:
            raise InputError("no prompt: give points with labels, boxes, or masks")
        if len(counts) > 1:
            raise InputError(
                f"points, boxes and masks are for {', '.join(map(str, sorted(counts)))} prompts: give one of each"
            )
        (count,) = counts
        height, width = frame_size(self.size)
        to_frame = np.array([width, height]) / self.size[::-1]
        coords, corners = (None if xy is None else xy * to_frame for xy in (coords, corners))
        low_res, iou = self.decode(*decoder_prompts(count, coords, corners, kinds), logits, multimask, least_iou)
        return MaskResult(low_res, iou if any(batched) else iou[0], self.size, self.image)

    def decode(
        self,
        tokens: NDArray[np.float32],
        kinds: NDArray[np.int64],
        logits: NDArray[np.float32] | None = None,
        multimask: bool = True,
        least_iou: float = -math.inf,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the decoder for P prompts in its own form, which :func:`decoder_prompts` makes.

        Args:
            tokens: ``(P, N, 2)`` x and y in the frame, where the image's long side is 1024.
            kinds: ``(P, N)``: 1 and 0 for points, 2 and 3 for the corners of a box, -1 for no point.
            logits: ``(P, 1, 256, 256)`` mask logits.
            multimask: three masks, else one.
            least_iou: as for :meth:`prompt`.

        Returns:
            Mask logits ``(P, M, 256, 256)`` and predicted IoU ``(P, M)``.
        """
        chosen = slice(1, None) if multimask else slice(0, 1)
        outputs = []
        for start in range(0, len(tokens), self.runner.at_once):
            part = slice(start, start + self.runner.at_once)
            masks = None if logits is None else logits[part]
            low_res, iou = self.runner.decode(self.features, tokens[part], kinds[part], masks, least_iou)
            outputs.append((low_res[:, chosen], iou[:, chosen]))
        low_res, iou = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        check_finite(low_res)
        check_finite(iou)
        return low_res, iou

    def _points(
        self, points: ArrayLike | None, labels: ArrayLike | None
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
        """Checked points ``(P, N, 2)`` and labels ``(P, N)``."""
        if points is None and labels is None:
            return None, None
        if points is None or labels is None:
            missing = "labels (1 object, 0 background) for the points" if labels is None else "points for the labels"
            raise InputError(f"{missing} are missing: give one of each")
        coords, kinds = _numbers(points, "points"), _numbers(labels, "labels")
        if coords.ndim not in (2, 3) or coords.shape[-1] != 2 or not coords.size:
            raise InputError(f"points {coords.shape}: give x and y of each, (N, 2) or (P, N, 2)")
        if kinds.shape != coords.shape[:-1]:
            raise InputError(f"labels {kinds.shape} for points {coords.shape}: give one for each point")
        if not np.isin(kinds, (0, 1)).all():
            raise InputError("labels: give 1 for a point on the object, 0 for a point on the background")
        height, width = self.size
        outside = (coords < 0).any(-1) | (coords > (width, height)).any(-1)
        if outside.any():
            x, y = coords[outside][0]
            raise InputError(f"point {x:g},{y:g} is outside of the image of {width}x{height} pixels (x,y)")
        return coords.reshape(-1, *coords.shape[-2:]), kinds.astype(np.int64).reshape(-1, kinds.shape[-1])

    def _boxes(self, boxes: ArrayLike | None) -> NDArray[np.float64] | None:
        """Corners of checked boxes, ``(P, 2, 2)``."""
        if boxes is None:
            return None
        corners = _numbers(boxes, "boxes")
        if corners.ndim not in (1, 2) or corners.shape[-1] != 4 or not corners.size:
            raise InputError(f"boxes {corners.shape}: give x1, y1, x2, y2 of each, (4,) or (P, 4)")
        height, width = self.size
        for x1, y1, x2, y2 in corners.reshape(-1, 4):
            text = f"box {x1:g},{y1:g},{x2:g},{y2:g}"
            if x1 >= x2 or y1 >= y2:
                raise InputError(f"{text}: give the left top corner, then the right bottom one (x1,y1,x2,y2)")
            if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                raise InputError(f"{text} is outside of the image of {width}x{height} pixels")
        return corners.reshape(-1, 2, 2)

    def save(self, path: str | Path) -> Path:
        """Write the embedding as .npz, for :meth:`Predictor.open_embedding`; the image is not in the file.

        Raises:
            InputError: a suffix other than .npz, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path}: embeddings are saved as .npz files only")
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            model, encoder = np.array(self.model), np.array(self.runner.encoder_id)
            np.savez(file, features=self.features, size=np.array(self.size), model=model, encoder=encoder)
        return path


def decoder_prompts(
    count: int,
    points: NDArray[np.floating] | None,
    corners: NDArray[np.floating] | None,
    labels: NDArray[np.int64] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Bring prompts into the decoder's form, see :meth:`Embedding.decode`.

    Args:
        count: number of prompts.
        points: ``(count, N, 2)`` x and y in the frame.
        corners: ``(count, 2, 2)`` corners of boxes in the frame.
        labels: ``(count, N)`` 1 and 0, for the points.

    Returns:
        Coordinates ``(count, M, 2)`` and labels ``(count, M)``.
    """
    if points is None or labels is None:
        coords, kinds = np.zeros((count, 0, 2)), np.zeros((count, 0), np.int64)
    else:
        coords, kinds = points, labels
    if corners is not None:
        coords, kinds = np.concatenate([coords, corners], 1), np.concatenate([kinds, [_CORNERS] * count], 1)
    elif points is not None:  # a point of label -1 tells SAM's decoder that there is no box
        coords, kinds = np.pad(coords, ((0, 0), (0, 1), (0, 0))), np.pad(kinds, ((0, 0), (0, 1)), constant_values=-1)
    return coords.astype(np.float32), kinds.astype(np.int64)


def open_embedding(path: str | Path, model: str, runner: PromptRunner) -> Embedding:
    """Read a file that :meth:`Embedding.save` wrote.

    Args:
        path: the .npz file.
        model: name and tag of the model that continues with it.
        runner: runs that model.

    Raises:
        InputError: no such file, another kind of file, or an embedding of another model.
    """
    try:
        arrays = read_npz(path, _SAVED_BYTES)
        features, size, origin = arrays["features"], arrays["size"], str(arrays["model"])
        encoder = str(arrays["encoder"]) if "encoder" in arrays else ""
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not an embedding that Foveal saved, or damaged: encode the image again") from error
    if origin != model:
        raise InputError(f"{path}: an embedding of {origin}, not of {model}: encode the image again")
    if encoder and runner.encoder_id and encoder != runner.encoder_id:
        raise InputError(f"{path}: an embedding of {origin} with other weights: encode the image again")
    if features.shape != (1, 256, 64, 64) or features.dtype != np.float32 or not np.isfinite(features).all():
        raise InputError(f"{path}: damaged, its features are not (1, 256, 64, 64) finite numbers of float32")
    if size.shape != (2,) or size.dtype.kind not in "iu" or (size < 1).any():
        raise InputError(f"{path}: damaged, its size is not that of an image")
    return Embedding(features, (int(size[0]), int(size[1])), origin, runner)


def _low_res(masks: ArrayLike | None) -> NDArray[np.float32] | None:
    """Checked mask logits, ``(P, 1, 256, 256)``."""
    if masks is None:
        return None
    logits = _numbers(masks, "masks")
    if logits.ndim not in (2, 3) or logits.shape[-2:] != (LOW_RES, LOW_RES) or not logits.size:
        raise InputError(
            f"masks {logits.shape}: give low_res of an earlier answer, for one prompt ({LOW_RES}, {LOW_RES})"
        )
    return logits.reshape(-1, 1, LOW_RES, LOW_RES).astype(np.float32)


def _numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: from tensors that cannot become arrays
        raise InputError(f"{name}: give numbers, as many for each prompt") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{name}: not all of them are finite numbers")
    return numbers
