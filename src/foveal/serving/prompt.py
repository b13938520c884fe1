"""Calls of promptable models: encode an image once, then ask for the masks of points and boxes, or for all masks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ..errors import InputError
from ..images import regions
from ..images.colours import distinct_colours
from ..images.polygons import feature_collection
from ..images.preparing import long_side_size
from ..images.reading import read_image
from ..images.sam_frame import at_image_size, logits_size
from ..prediction.batching import Prepared
from ..prediction.mask_results import EverythingResult, MaskResult
from ..prediction.prompting import Embedding
from .calls import Answer, Asked, Call, Numbers, Options, Rows, Served, geojson_answer, json_answer, rle_of
from .limits import MAX_PROMPTS

_MAX_SIDE = 1 << 16
_LARGEST_LOGIT = 8  # of the format logits


class ReducedOptions(Options):
    """Options of calls whose masks may be smaller than the image."""

    max_side: int | None = Field(
        None, ge=1, le=_MAX_SIDE, description="Longest side of the masks in pixels; default: as of the image."
    )


class PromptOptions(ReducedOptions):
    """Points and boxes are in pixels of the image, also where the masks are smaller."""

    points: Rows | None = Field(None, max_length=MAX_PROMPTS, description="x and y of each point.")
    labels: Numbers | None = Field(
        None, max_length=MAX_PROMPTS, description="For each point 1 (on the object) or 0; default: all 1."
    )
    box: Numbers | None = Field(None, min_length=4, max_length=4, description="x1, y1, x2, y2 around one object.")
    boxes: Rows | None = Field(None, min_length=1, max_length=MAX_PROMPTS, description="Boxes around several objects.")
    multimask: bool | None = Field(
        None, description="Three masks (part, whole, more) instead of one; default: for a single point."
    )
    index: int | None = Field(None, ge=0, le=2, description="Number of the mask to return; default: the best.")
    all: bool = Field(True, description="Formats json and logits: all masks; otherwise the best one.")


class EverythingCallOptions(ReducedOptions):
    """How to find the masks of all objects."""

    fast: bool = Field(True, description="Far fewer prompts.")
    points_per_side: int = Field(32, ge=1, le=64, description="Points along each side of the grid of prompts.")
    pred_iou_thresh: float | None = Field(None, ge=0, le=1, description="Least predicted IoU of a mask.")
    stability_score_thresh: float | None = Field(None, ge=0, le=1, description="Least stability of a mask.")
    min_mask_region_area: int = Field(0, ge=0, le=1 << 31, description="Smaller holes and parts are removed.")


class _Encoded(NamedTuple):
    embedding: Embedding
    cached: bool


class _Prompted(NamedTuple):
    result: MaskResult
    size: tuple[int, int]  # (H, W) of the masks


class _LowRes(NamedTuple):
    logits: NDArray[np.float32]  # (256, 256), in the frame of Segment Anything
    iou: float
    number: int  # among the masks of its prompt


class _Mask(NamedTuple):
    mask: NDArray[np.bool_]
    iou: float
    number: int


# ---- encode


def _read_encode(served: Served, asked: Asked) -> Prepared:
    return _with_embedding(served, asked, lambda embedding: _Encoded(embedding, asked.embedding is not None))


def _with_embedding(served: Served, asked: Asked, run: Callable[[Embedding], Any]) -> Prepared:
    """Run something on the embedding, which is made from the image unless it is kept."""
    if (kept := asked.embedding) is not None:
        return Prepared(None, lambda _: run(kept), 0)
    pixels = read_image(asked.content)

    def finish(_: None) -> Any:
        embedding = served.predictor.encode(pixels)
        asked.keep(embedding)
        return run(embedding)

    return Prepared(None, finish, pixels.nbytes)


def _encode_json(served: Served, asked: Asked, encoded: _Encoded) -> Answer:
    height, width = encoded.embedding.size
    content = {"embedding": asked.digest, "width": width, "height": height, "cached": encoded.cached}
    return json_answer({"model": served.name, **content})


# ---- prompt


def _read_prompt(served: Served, asked: Asked) -> Prepared:
    options: PromptOptions = asked.options
    points, boxes = options.points, options.box
    if options.boxes is not None:
        if points is not None or boxes is not None:
            raise InputError("boxes are for several objects: leave out points and box, or give one box")
        boxes = options.boxes
    if points is None and boxes is None:
        raise InputError("no prompt: give points, box or boxes")
    labels = options.labels
    if labels is None and points is not None:
        labels = [1.0] * len(points)
    multimask = options.multimask
    if multimask is None:
        multimask = boxes is None and points is not None and len(points) == 1

    def run(embedding: Embedding) -> _Prompted:
        result = embedding.prompt(points, labels, boxes, multimask=multimask)
        return _Prompted(result, _reduced(embedding.size, options.max_side))

    return _with_embedding(served, asked, run)


def _reduced(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(H, W) of masks for an image of this size."""
    return size if max_side is None or max_side >= max(size) else long_side_size(*size, max_side)


def _chosen(prompted: _Prompted, every: bool, index: int | None) -> list[_LowRes]:
    """The logits of the masks that are asked for: of one prompt all or one, of several prompts one each."""
    result = prompted.result
    iou = result.iou.reshape(len(result.low_res), -1)
    if index is not None and index >= iou.shape[1]:
        raise InputError(f"index={index}: there {'is one mask' if iou.shape[1] == 1 else f'are {iou.shape[1]} masks'}")
    chosen = []
    for low_res, scores in zip(result.low_res, iou, strict=True):
        best = int(scores.argmax()) if index is None else index
        numbers = range(len(scores)) if every and not result.many else [best]
        chosen += [_LowRes(low_res[number], float(scores[number]), number) for number in numbers]
    return chosen


def _masks(prompted: _Prompted, every: bool, index: int | None) -> Iterator[_Mask]:
    """Masks one by one, since all of them at the image's size could take too much memory."""
    for logits, iou, number in _chosen(prompted, every, index):
        yield _Mask(at_image_size(logits, prompted.size) > 0, iou, number)


def _bounds(mask: NDArray[np.bool_]) -> list[int]:
    """x, y, width and height around a mask, in pixels; zeros if it is empty."""
    if not mask.any():
        return [0, 0, 0, 0]
    ((x1, y1, x2, y2),) = regions.boxes_of(mask[None]).tolist()
    return [x1, y1, x2 - x1 + 1, y2 - y1 + 1]


def _prompt_json(served: Served, asked: Asked, prompted: _Prompted) -> Answer:
    options: PromptOptions = asked.options
    masks = [
        {
            "iou": round(mask.iou, 6),
            "area": int(np.count_nonzero(mask.mask)),
            "bbox": _bounds(mask.mask),
            "rle": rle_of(mask.mask),
        }
        for mask in _masks(prompted, options.all and options.index is None, options.index)
    ]
    height, width = prompted.size
    best = max(range(len(masks)), key=lambda number: masks[number]["iou"])
    head = {"model": served.name, "embedding": asked.digest, "width": width, "height": height, "best": best}
    return json_answer({**head, "masks": masks})


def _only(asked: Asked, prompted: _Prompted, form: str) -> _Mask:
    """The mask of a format that holds one."""
    if prompted.result.many:
        raise InputError(f"format={form} holds one mask: give one box, or ask for format=json")
    return next(_masks(prompted, False, asked.options.index))


def _prompt_png(served: Served, asked: Asked, prompted: _Prompted) -> Answer:
    mask, iou, index = _only(asked, prompted, "png")
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=1)
    headers = {"X-Foveal-IoU": f"{iou:.6f}", "X-Foveal-Index": str(index), "X-Foveal-Embedding": asked.digest}
    return Answer(file.getvalue(), "image/png", headers)


def _prompt_logits(served: Served, asked: Asked, prompted: _Prompted) -> Answer:
    """The network's own output, small and without work at the image's size: for clients that draw masks themselves."""
    options: PromptOptions = asked.options
    if options.max_side is not None:
        raise InputError("max_side: format=logits has the size of the network's output, leave it out")
    chosen = _chosen(prompted, options.all and options.index is None, options.index)
    rows, columns = logits_size(prompted.result.size)
    logits = np.stack([each.logits[:rows, :columns] for each in chosen])
    headers = {
        "X-Foveal-Shape": ",".join(map(str, logits.shape)),
        "X-Foveal-IoU": ",".join(f"{each.iou:.6f}" for each in chosen),
        "X-Foveal-Embedding": asked.digest,
    }
    return Answer(compressed_logits(logits).tobytes(), "application/octet-stream", headers)


def compressed_logits(logits: NDArray[np.float32]) -> NDArray[np.int8]:
    """Logits as square roots in 8 bits: finest around 0, where the edges are.

    A value q stands for ``sign(q) * 8 * (q / 127) ** 2``; larger logits are cut to 8.
    """
    roots = np.sqrt(np.minimum(np.abs(logits), _LARGEST_LOGIT) * (127**2 / _LARGEST_LOGIT))
    return np.rint(np.copysign(roots, logits)).astype(np.int8)


def _prompt_rle(served: Served, asked: Asked, prompted: _Prompted) -> Answer:
    return json_answer(rle_of(_only(asked, prompted, "rle").mask))


def _outlines(mask: NDArray[np.bool_], properties: dict[str, Any]) -> list[dict[str, Any]]:
    """Polygons of the areas of one mask."""
    features = feature_collection(mask.astype(np.uint8), ("background", "object"), nodata=0)["features"]
    return [{**each, "properties": {"pixels": each["properties"]["pixels"], **properties}} for each in features]


def _prompt_polygons(served: Served, asked: Asked, prompted: _Prompted) -> Answer:
    features: list[dict[str, Any]] = []
    for number, mask in enumerate(_masks(prompted, False, asked.options.index)):
        features += _outlines(mask.mask, {"object": number, "iou": round(mask.iou, 6)})
    return geojson_answer(features)


# ---- everything


def _read_everything(served: Served, asked: Asked) -> Prepared:
    options: EverythingCallOptions = asked.options
    pixels = read_image(asked.content)
    size = _reduced((pixels.shape[0], pixels.shape[1]), options.max_side)
    if size != pixels.shape[:2]:
        pixels = np.asarray(
            Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)
        )
    chosen = options.model_dump(exclude={"timeout", "max_side"})

    def run(_: None) -> EverythingResult:
        return served.predictor.everything(
            pixels, progress=lambda points: asked.check(), output_mode="uncompressed_rle", **chosen
        )

    return Prepared(None, run, pixels.nbytes)


def _everything_json(served: Served, asked: Asked, result: EverythingResult) -> Answer:
    height, width = result.size
    masks = [
        {
            "iou": round(record["predicted_iou"], 6),
            "stability": round(record["stability_score"], 6),
            "area": record["area"],
            "bbox": [*record["bbox"][:2], record["bbox"][2] + 1, record["bbox"][3] + 1],
            "point": record["point_coords"][0],
            "rle": record["segmentation"],
        }
        for record in result
    ]
    head = {"model": served.name, "width": width, "height": height, "prompts": result.prompts}
    return json_answer({**head, "masks": masks})


def _decoded(record: Any) -> NDArray[np.bool_]:
    return regions.decoded(record["segmentation"])


def _everything_png(served: Served, asked: Asked, result: EverythingResult) -> Answer:
    """The number of the mask of each pixel, small masks over large ones; of more than 255 masks, the best."""
    numbers = np.zeros(result.size, np.uint8)
    order = sorted(enumerate(result.records[:255], start=1), key=lambda pair: -pair[1]["area"])
    for number, record in order:
        numbers[_decoded(record)] = number
    picture = Image.fromarray(numbers)
    picture.putpalette(np.asarray(((0, 0, 0), *distinct_colours(255)), np.uint8).ravel().tolist())
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Answer(file.getvalue(), "image/png")


def _everything_polygons(served: Served, asked: Asked, result: EverythingResult) -> Answer:
    features: list[dict[str, Any]] = []
    for number, record in enumerate(result):
        features += _outlines(_decoded(record), {"object": number, "iou": round(record["predicted_iou"], 6)})
    return geojson_answer(features)


CALLS = {
    "encode": Call(
        "encode the image for prompts", Options, {"json": _encode_json}, _read_encode, takes_embeddings=True
    ),
    "prompt": Call(
        "the masks of the object at points or in a box",
        PromptOptions,
        {
            "json": _prompt_json,
            "png": _prompt_png,
            "rle": _prompt_rle,
            "polygons": _prompt_polygons,
            "logits": _prompt_logits,
        },
        _read_prompt,
        takes_embeddings=True,
    ),
    "everything": Call(
        "the masks of all objects",
        EverythingCallOptions,
        {"json": _everything_json, "png": _everything_png, "polygons": _everything_polygons},
        _read_everything,
        lane="everything",
    ),
}
