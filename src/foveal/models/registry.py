"""Which model families exist: a dictionary that each model file fills when ``foveal.models`` is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..info import IMAGENET_MEAN, IMAGENET_STD


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
        undecayed: last names of parameters that weight decay must leave alone, beside norms and biases.
        optional: modules that weights to start from may lack; they keep their initial values then.
        reach: pixels around one that anything but linear attention looks at, 0 where nobody has counted.
    """

    stem: nn.Sequential
    stages: nn.ModuleList
    feature_info: list[FeatureInfo]
    min_size: int = 32
    undecayed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    reach: int = 0


class LanguageBackbone(nn.Module):
    """What the encoder of a language model offers: ``forward(input_ids, attention_mask=None)``.

    ``(B, L)`` token ids and a mask of those that count give hidden states, ``(B, L, embed_dim)``.

    Attributes:
        embed_dim: channels of a hidden state.
        vocab_size: tokens there are.
        max_length: most tokens of a sequence.
        word_embeddings: of the tokens; heads may share its weight.
        optional: modules that weights to start from may lack, and that a model with a head has no use for.
    """

    embed_dim: int
    vocab_size: int
    max_length: int
    word_embeddings: nn.Embedding
    optional: tuple[str, ...] = ()

    def checked_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """``attention_mask`` as booleans, after a look at both.

        Raises:
            InputError: no ``(B, L)`` integers from 0 to below ``vocab_size``, too many, or a mask of another shape.
        """
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int32, torch.int64):
            raise InputError(f"input_ids {tuple(input_ids.shape)} of {input_ids.dtype}: give (B, L) integers")
        if input_ids.shape[1] > self.max_length:
            raise InputError(f"{input_ids.shape[1]} tokens: this model takes at most {self.max_length}")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            shapes = f"{tuple(attention_mask.shape)} for input_ids {tuple(input_ids.shape)}"
            raise InputError(f"attention_mask {shapes}: give one for each token")
        if input_ids.numel() and not input_ids.is_meta and not torch.compiler.is_compiling():
            low, high = map(int, torch.aminmax(input_ids))
            if low < 0 or high >= self.vocab_size:
                raise InputError(f"token {low if low < 0 else high}: this model knows 0 to {self.vocab_size - 1}")
        return None if attention_mask is None else attention_mask.bool()


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
    options: Mapping[str, Any] = MappingProxyType({})  # of create_model, where they are not the variant's defaults
    crop_ratio: float | None = None  # of a classifier's evaluation, None: the variant's
    squash: bool = False  # whether that evaluation resizes both sides to one length
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the images' channels, on the 0..1 scale
    std: tuple[float, ...] = IMAGENET_STD
    resample: str = "bicubic"  # filter of that evaluation's resize
    package: str = ""  # and version ("name==1.0"), whose wheel holds ``file``, in place of ``repo``
    sources: bool = False  # not the wheel, but the archive of sources


@dataclass(frozen=True)
class Variant:
    """One named member of a family.

    Attributes:
        backbone: ``(in_chans, **options) -> Backbone``, of a language model ``(**options) -> LanguageBackbone``.
        classifier: ``(in_channels, num_classes, **classifier_options) -> nn.Module`` on the coarsest map, ``None`` if
            none was published. Its last layer is ``classifier``; ``num_features`` and ``forward(x, pre_logits=True)``
            tell what that sees.
        segment_heads: keyword arguments of the published segmentation heads, by data set.
        prompt: keyword arguments of the published promptable form, see :func:`foveal.tasks.prompt.build`.
        language_head: ``(LanguageBackbone) -> nn.Module`` whose ``forward(hidden, word_embeddings)`` gives a score for
            each token of the vocabulary; ``None`` for what sees images.
        crop_ratio: centre crop over resized short side in the authors' ImageNet evaluation.
        size: side of that crop, in pixels.
        published: weights that were released, with their figures.
        settings: defaults of the family's settings.
        twins: variants with the same tensors and other settings, which a file alone does not tell from this one.
        tasks: what it can be built for, the default first.
    """

    backbone: Callable[..., Any]
    classifier: Callable[..., nn.Module] | None = None
    segment_heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    language_head: Callable[[Any], nn.Module] | None = None
    crop_ratio: float = 0.95
    size: int = 224
    published: tuple[Published, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    twins: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("classify", "segment", "prompt")


@dataclass(frozen=True)
class Family:
    """A model family: its variants by public name, and how its published checkpoints are read.

    Attributes:
        convert: ``state dict in any published layout -> ours`` (keys ``backbone.*`` and ``head.*``), ``None`` when
            the keys are not this family's. It must not change a dictionary that is in our layout already.
        implied: ``state dict in any layout, before convert -> options`` of ``create_model`` that the file needs and
            that no variant has by default, told by its keys and shapes.
        from_config: ``content of a config.json beside published weights -> (variant, options)`` of ``create_model``,
            for families whose shapes do not tell everything.
        stem: key of the first convolution, whose shape tells the channels of the image.
        options: options of ``create_model`` that reach the backbone, with what they do.
        classifier_options: the same for the classifier.
        settings: options that change no tensor, for which one architecture has several conventions. A variant has
            defaults for them, ``create_model`` takes them, and ``load_checkpoint`` takes over those that a file
            implies, unless they were given to ``create_model``.
        set: ``(model, **settings)`` sets them on a model that is built.
        licence: licence of the published weights.
    """

    name: str
    paper: str
    variants: dict[str, Variant]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None]
    implied: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda state: {}
    from_config: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]] | None = None
    stem: str = "backbone.stem.0.conv.weight"
    options: Mapping[str, str] = field(default_factory=dict)
    classifier_options: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    set: Callable[..., None] = lambda model: None
    licence: str = ""

    @property
    def of_language(self) -> bool:
        """Whether its variants are language models."""
        return any("language" in variant.tasks for variant in self.variants.values())


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family; model files call this once, at their end."""
    FAMILIES[family.name] = family
    return family


def variants() -> dict[str, tuple[Family, Variant]]:
    """Return every registered variant by name, in order of registration: all of them once ``foveal.models`` is in."""
    return {name: (family, variant) for family in FAMILIES.values() for name, variant in family.variants.items()}


def check_sees_images(name: str) -> None:
    """Raise ConfigError where ``name`` is a language model, which no image can be given to."""
    if name in (known := variants()) and known[name][0].of_language:
        raise ConfigError(f"{name} is a language model: it takes token ids, not images; get it with foveal.load_model")


def published() -> dict[str, tuple[Family, Variant, Published]]:
    """Return all released weights that can be fetched, by ``name.tag``."""
    return {
        f"{name}.{entry.tag}": (family, variant, entry)
        for name, (family, variant) in variants().items()
        for entry in variant.published
        if entry.repo or entry.package
    }
