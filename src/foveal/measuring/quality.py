"""Published and measured quality of our models, for tables and plots of latency."""

from __future__ import annotations

import re
from typing import NamedTuple

from .. import assets
from ..models.registry import Published, variants


class Quality(NamedTuple):
    """A score of a model, in percent or dB."""

    value: float
    metric: str  #: for example "mIoU, cityscapes"; scores are compared only if it is the same
    source: str  #: who measured it


#: What is read from the description of weights in the package, by the metric that tables of papers have. The tag of
#: weights for super-resolution is their scale.
_MEASURED = {"PSNR, BSD100 {tag}": re.compile(r"BSD100 ([\d.]+) dB"), "mIoU, camvid": re.compile(r"mIoU ([\d.]+)")}


def quality_of(ref: str, task: str, size: tuple[int, int] | None = None) -> Quality | None:
    """Quality of a model; ``None`` where none is known.

    Args:
        ref: name of an architecture, of published weights (``name.tag``) or of weights in the package.
        task: what the model is used for.
        size: (H, W) of the images, for classifiers, whose accuracy depends on it; ``None``: the default size.

    Returns:
        Quality: of the first published weights for the task, or as measured for weights in the package.
    """
    if ref in assets.WEIGHTS:
        return _measured(ref)
    name, _, tag = ref.partition(".")
    if name not in variants():
        return None
    entries = [e for e in variants()[name][1].published if e.task == task and tag in ("", e.tag)]
    sized = [e for e in entries if size is not None and _fits(e, size)]
    return next((_published(entry) for entry in sized or ([] if size else entries)), None)


def _fits(entry: Published, size: tuple[int, int]) -> bool:
    """Whether a figure is for images of this size; figures of tasks with images of any size always are."""
    return not entry.size.isdecimal() or size == (int(entry.size), int(entry.size))


def _published(entry: Published) -> Quality:
    return Quality(entry.value, f"{entry.metric}, {_DATA.get(entry.task, entry.tag)}", entry.source)


#: Data of the figures of tasks whose tags name the setting of the weights instead.
_DATA = {"classify": "ImageNet", "prompt": "COCO"}


def _measured(ref: str) -> Quality | None:
    for metric, pattern in _MEASURED.items():
        if match := pattern.search(assets.WEIGHTS[ref].figure):
            return Quality(float(match[1]), metric.format(tag=ref.partition(".")[2]), "measured by us")
    return None
