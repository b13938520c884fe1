"""Which model families exist: a dictionary that each model file fills when ``foveal.models`` is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class FeatureInfo(NamedTuple):
    """One map of a backbone's pyramid."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """What every backbone offers: ``forward(x)`` gives maps, finest first.

    Attributes:
        feature_info: channels and stride of each map.
        stem: what comes before the stages, block by block.
        stages: its parts in order, each a module of one input.
        min_size: smallest side of an image, in pixels.
    """

    stem: nn.Sequential
    stages: nn.ModuleList
    feature_info: list[FeatureInfo]
    min_size: int = 32


class Published(NamedTuple):
    """Weights somebody released: where they are, and the figure that was published for them (quoted, not measured)."""

    tag: str  # the data set or setting, as it stands behind the dot of a name
    metric: str  # "mIoU", "top-1"; in percent
    value: float
    size: str  # of the input
    source: str  # of the figure
    task: str = "classify"
    repo: str = ""  # on the hub; empty: the weights cannot be fetched by name
    file: str = "model.safetensors"
    sha256: str = ""  # empty: not known, the first download counts
    licence: str = ""  # empty: the family's


@dataclass(frozen=True)
class Variant:
    """One named member of a family.

    Attributes:
        backbone: ``(in_chans, **options) -> Backbone``.
        classifier: ``(in_channels, num_classes) -> nn.Module`` on the coarsest map, ``None`` if none was published. Its
            last layer is ``classifier``; ``num_features`` and ``forward(x, pre_logits=True)`` tell what that sees.
        segment_heads: keyword arguments of the published segmentation heads, by data set.
        crop_ratio: centre crop over resized short side in the authors' ImageNet evaluation at 224.
        published: weights that were released, with their figures.
        tasks: what it can be built for, the default first.
    """

    backbone: Callable[..., Backbone]
    classifier: Callable[..., nn.Module] | None = None
    segment_heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    crop_ratio: float = 0.95
    published: tuple[Published, ...] = ()
    tasks: tuple[str, ...] = ("classify", "segment")


@dataclass(frozen=True)
class Family:
    """A model family: its variants by public name, and how its published checkpoints are read.

    Attributes:
        convert: ``state dict in any published layout -> ours`` (keys ``backbone.*`` and ``head.*``), ``None`` when
            the keys are not this family's. It must not change a dictionary that is in our layout already.
        implied: ``state dict in any layout, before convert -> options`` of ``create_model`` that the file needs and
            that no variant has by default, told by its keys and shapes.
        stem: key of the first convolution, whose shape tells the channels of the image.
        options: options of ``create_model`` that reach the backbone, with what they do.
        licence: licence of the published weights.
    """

    name: str
    paper: str
    variants: dict[str, Variant]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None]
    implied: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda state: {}
    stem: str = "backbone.stem.0.conv.weight"
    options: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family; model files call this once, at their end."""
    FAMILIES[family.name] = family
    return family


def variants() -> dict[str, tuple[Family, Variant]]:
    """Return every registered variant by name, in order of registration: all of them once ``foveal.models`` is in."""
    return {name: (family, variant) for family in FAMILIES.values() for name, variant in family.variants.items()}


def published() -> dict[str, tuple[Family, Variant, Published]]:
    """Return all released weights that can be fetched, by ``name.tag``."""
    return {
        f"{name}.{entry.tag}": (family, variant, entry)
        for name, (family, variant) in variants().items()
        for entry in variant.published
        if entry.repo
    }
