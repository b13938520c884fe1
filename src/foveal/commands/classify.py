"""The verb ``classify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import ConfigError, InputError
from .console import Images, Json, print_json, print_table
from .outputs import jobs_of

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor


def classify(images: Images, /, *, model: str = assets.DEFAULTS["classify"], top: int = 5, json: Json = False) -> int:
    """Classify photographs: the most probable classes of each.

    Parameters
    ----------
    model
        Checkpoint or exported file of a classifier; default: published weights, fetched once.
    top
        How many classes to print.
    """
    from ..prediction.load import load

    predictor = load(model)
    if predictor.info.task != "classify":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    return _classify(predictor, images, top, json)


def _classify(predictor: Predictor, images: list[Path], top: int, as_json: bool) -> int:
    jobs, many = jobs_of(images, Path())
    report: dict[str, Any] = {"images": [], "failed": []}
    for source, _ in jobs:
        try:
            result = predictor.classify(source)
        except InputError as error:
            if not many:
                raise
            report["failed"].append({"image": str(source), "error": str(error)})
            print(f"failed: {error}", file=sys.stderr)
            continue
        best = result.top(top)
        report["images"].append({"image": str(source), "classes": [{"name": n, "score": round(s, 6)} for n, s in best]})
        if not as_json:
            print_table((str(source), "score"), [(name, f"{score:.4f}") for name, score in best])
    if as_json:
        print_json(report)
    return 1 if report["failed"] else 0
