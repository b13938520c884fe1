"""Calls of classifiers."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from ..prediction.results import ClassifyResult
from .calls import Answer, Asked, Call, Options, Served, json_answer


class ClassifyOptions(Options):
    """Options of classification."""

    top: int = Field(5, ge=1, le=1000, description="Classification: number of classes, the most probable first.")


def _json(served: Served, asked: Asked, result: ClassifyResult) -> Answer:
    order = np.argsort(-result.scores, kind="stable")[: asked.options.top]
    classes = [
        {"index": int(index), "name": result.names[index], "score": round(float(result.scores[index]), 6)}
        for index in order
    ]
    return json_answer({"model": served.name, "classes": classes})


CALLS = {
    "predict": Call(
        "the class of the image",
        ClassifyOptions,
        {"json": _json},
        lambda served, asked: served.predictor.prepare(asked.content),
    )
}
