"""Calls of super-resolution models."""

from __future__ import annotations

import base64

from ..images.writing import Canvas, png_content, stored_channels
from ..prediction.results import UpscaleResult
from .calls import Answer, Asked, Call, Options, Served, json_answer


class UpscaleOptions(Options):
    """Options of upscaling."""


def _png(served: Served, asked: Asked, result: UpscaleResult) -> Answer:
    stored = stored_channels(result.image, result.grey)
    height, width, channels = stored.shape
    canvas = Canvas(height, width, channels, 8 * result.image.itemsize, result.icc)
    return Answer(png_content(canvas, [stored]), "image/png")


def _json(served: Served, asked: Asked, result: UpscaleResult) -> Answer:
    height, width = result.image.shape[:2]
    image = base64.b64encode(_png(served, asked, result).content).decode()
    content = {"model": served.name, "width": width, "height": height, "scale": result.scale, "image": image}
    return json_answer(content)


CALLS = {
    "predict": Call(
        "the enlarged image",
        UpscaleOptions,
        {"png": _png, "json": _json},
        lambda served, asked: served.predictor.prepare(asked.content),
    )
}
