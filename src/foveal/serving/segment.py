"""Calls of segmentation models."""

from __future__ import annotations

import io

import numpy as np
from pydantic import Field

from ..errors import ConfigError
from ..images.polygons import feature_collection
from ..prediction.results import SegmentResult, mask_picture
from .calls import Answer, Asked, Call, Options, Served, geojson_answer, json_answer, rle_of


class SegmentOptions(Options):
    """Options of segmentation."""

    alpha: float = Field(0.5, ge=0, le=1, description="Segmentation, format overlay: opacity of the colours.")


def _json(served: Served, asked: Asked, result: SegmentResult) -> Answer:
    height, width = result.mask.shape
    classes = [
        {
            "index": index,
            "name": result.names[index],
            "share": round(share, 6),
            "confidence": round(confidence, 6),
            "colour": list(result.palette[index]),
        }
        for index, share, confidence in result.indexed_shares()
    ]
    return json_answer({"model": served.name, "width": width, "height": height, "classes": classes})


def _png(served: Served, asked: Asked, result: SegmentResult) -> Answer:
    if result.mask.dtype != np.uint8:
        raise ConfigError(f"format=png holds at most 256 classes, not {len(result.names)}: ask for format=rle")
    file = io.BytesIO()
    mask_picture(result).save(file, "PNG", compress_level=1)
    return Answer(file.getvalue(), "image/png")


def _overlay(served: Served, asked: Asked, result: SegmentResult) -> Answer:
    file = io.BytesIO()
    result.overlay(asked.options.alpha).save(file, "JPEG", quality=90)
    return Answer(file.getvalue(), "image/jpeg")


def _rle(served: Served, asked: Asked, result: SegmentResult) -> Answer:
    height, width = result.mask.shape
    counts = np.bincount(result.mask.ravel(), minlength=len(result.names))
    classes = [
        {"index": index, "name": result.names[index], "area": int(counts[index]), "rle": rle_of(result.mask == index)}
        for index in map(int, np.argsort(-counts, kind="stable"))
        if counts[index]
    ]
    return json_answer({"model": served.name, "width": width, "height": height, "classes": classes})


def _polygons(served: Served, asked: Asked, result: SegmentResult) -> Answer:
    return geojson_answer(feature_collection(result.mask, result.names)["features"])


CALLS = {
    "predict": Call(
        "the class of each pixel",
        SegmentOptions,
        {"json": _json, "png": _png, "overlay": _overlay, "rle": _rle, "polygons": _polygons},
        lambda served, asked: served.predictor.prepare(asked.content),
    )
}
