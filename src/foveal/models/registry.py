"""The registry of model families: each model file adds its own when ``foveal.models`` is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..info import IMAGENET_MEAN, IMAGENET_STD
from ..layers.conv import ConvNormAct
from ..layers.dilation import dilate
from ..layers.resample import check_min_size
from ..task import TASKS


class FeatureInfo(NamedTuple):
    """Channels and stride of one feature map of a backbone."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Base class of image backbones: ``forward(x)`` returns a list of feature maps, finest first.

    Attributes:
        feature_info: channels and stride of each feature map. A map of stride s has ``ceil(H / s) x ceil(W / s)``
            positions.
        stem: the blocks before the stages, in order.
        stages: the stages in order, each a module with one input.
        min_size: smallest side of an image, in pixels.
        undecayed: last parts of the names of parameters without weight decay, in addition to norms and biases.
        optional: names of modules that a checkpoint for fine-tuning may lack; they then keep their initial values.
        out_indices: which maps ``forward`` returns, see :meth:`select_maps`; ``None``: all.
        stage_blocks: kind of the blocks of each stage where another family's replace its own, by the stage's number
            from 1; see :mod:`foveal.models.hybrid`.
        option_blocks: options of the family that configure one kind of block, with that module.
    """

    stem: nn.Sequential
    stages: nn.ModuleList
    feature_info: list[FeatureInfo]
    min_size: int = 32
    undecayed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    out_indices: tuple[int, ...] | None = None
    option_blocks: Mapping[str, type[nn.Module]] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.stage_blocks: dict[int, str] = {}

    def block_options(self, index: int, kind: str) -> dict[str, Any]:
        """Arguments of blocks of a kind of :data:`~foveal.layers.stage_blocks.STAGE_BLOCKS` in a stage, from 0."""
        return {}

    def forward(self, x: Tensor) -> list[Tensor]:
        check_min_size(x, self.min_size)
        maps = self.forward_stages(self.stem(x))
        return maps if self.out_indices is None else [maps[index] for index in self.out_indices]

    def select_maps(self, indices: int | Sequence[int]) -> None:
        """Return only the maps of these indices, in this order; negative ones count from the coarsest.

        A number in place of indices: so many of the coarsest. ``feature_info`` then describes these maps, and indices
        of a second call are those of these maps. All stages stay, so that the state dict is the same.

        Raises:
            ConfigError: no indices, or one out of range.
        """
        count = len(self.feature_info)
        if isinstance(indices, int) and not 1 <= indices <= count:
            raise ConfigError(f"out_indices={indices}: give 1 to {count}, for so many of the coarsest, or a list")
        chosen = range(-indices, 0) if isinstance(indices, int) else indices
        if not chosen or not all(isinstance(index, int) and -count <= index < count for index in chosen):
            raise ConfigError(f"out_indices={indices!r}: give numbers of {-count} to {count - 1}, one for each map")
        before = self.out_indices or range(count)
        self.out_indices = tuple(before[index] for index in chosen)
        self.feature_info = [self.feature_info[index] for index in chosen]

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Feature maps, finest first, of the stem's output."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def limit_stride(self, output_stride: int | None) -> None:
        """Dilate the stages whose maps are coarser than ``output_stride``, so that their maps have this stride.

        ``None``: all strides as published. Only for stages of convolutions and of operations without a spatial extent;
        see :func:`~.dilation.dilate`.

        Raises:
            ConfigError: no map of the backbone has this stride.
        """
        if output_stride is None:
            return
        strides = [info.stride for info in self.feature_info]
        if output_stride not in strides:
            raise ConfigError(f"output_stride={output_stride!r}: give one of {', '.join(map(str, strides))}")
        dilation = 1
        for i, stage in enumerate(self.stages):
            if strides[i] > output_stride:
                dilation = dilate(stage, dilation)
                self.feature_info[i] = self.feature_info[i]._replace(stride=output_stride)

    def set_stem_stride(self, stem_stride: int) -> None:
        """Set the stride of the stem's first convolution: 2 as published, or 1, which halves the stride of every map.

        With 1, a network for images of 224 pixels suits images of 32 to 112. No tensor changes.

        Raises:
            ConfigError: another stride.
        """
        first = self.stem[0]
        assert isinstance(first, ConvNormAct)
        if isinstance(stem_stride, bool) or stem_stride not in (1, 2):
            raise ConfigError(f"stem_stride={stem_stride!r}: give 1 or 2")
        if stem_stride == 1:
            first.conv.stride = (1, 1)
            first.pad("symmetric")  # at stride 1 the two kinds of padding are the same
            self.feature_info = [info._replace(stride=info.stride // 2) for info in self.feature_info]


#: Description of the option ``output_stride`` of the families that call :meth:`Backbone.limit_stride`.
OUTPUT_STRIDE = "largest stride of a map: the stages beyond it are dilated; default: as published"
#: Description of the option ``stem_stride`` of the families that call :meth:`Backbone.set_stem_stride`.
STEM_STRIDE = "stride of the first convolution: 2, the default, or 1 for images of 32 to 112 pixels"


class LanguageBackbone(nn.Module):
    """Base class of language encoders: ``forward(input_ids, attention_mask=None)``.

    It maps token ids ``(B, L)`` to hidden states ``(B, L, embed_dim)``; tokens whose mask is 0 are not attended to.

    Attributes:
        embed_dim: channels of a hidden state.
        vocab_size: number of tokens in the vocabulary.
        max_length: largest number of tokens in a sequence.
        word_embeddings: embeddings of the vocabulary; heads may share their weight.
        optional: names of modules that a checkpoint for fine-tuning may lack, and that a model with a head ignores.
    """

    embed_dim: int
    vocab_size: int
    max_length: int
    word_embeddings: nn.Embedding
    optional: tuple[str, ...] = ()

    def checked_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Check both inputs and return ``attention_mask`` as booleans.

        Raises:
            InputError: ``input_ids`` are not ``(B, L)`` integers from 0 to ``vocab_size - 1``, L is above
                ``max_length``, or the mask has another shape.
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
                raise InputError(f"token {low if low < 0 else high} is out of range: give 0 to {self.vocab_size - 1}")
        return None if attention_mask is None else attention_mask.bool()


class Published(NamedTuple):
    """Weights that somebody released, with the figure that was published for them (quoted, not measured by us).

    Attributes:
        tag: data set or setting, the part of the name after the dot.
        metric: "mIoU" or "top-1", in percent.
        value: the figure.
        size: of the input.
        source: of the figure.
        task: of the model.
        repo: hub repository; empty: the weights cannot be fetched by name, unless ``package`` is set.
        file: path inside the repository or the package.
        sha256: of the file; empty: unknown, the hash of the first download is kept.
        licence: SPDX name; empty: the family's.
        options: arguments of ``create_model`` that differ from the variant's defaults.
        crop_ratio: centre crop over resized short side in the classifier's evaluation; ``None``: the variant's.
        squash: whether that evaluation resizes both sides to the same length.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
        resample: filter of that evaluation's resize.
        package: Python package and version ("name==1.0") whose wheel contains ``file``, instead of ``repo``.
        sources: whether ``file`` is in the package's source archive instead of the wheel.
    """

    tag: str
    metric: str
    value: float
    size: str
    source: str
    task: str = "classify"
    repo: str = ""
    file: str = "model.safetensors"
    sha256: str = ""
    licence: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    crop_ratio: float | None = None
    squash: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: str = "bicubic"
    package: str = ""
    sources: bool = False


def from_timm(
    name: str, tag: str, top1: float, size: int = 224, source: str = "timm results", **fields: Any
) -> Published:
    """ImageNet-1k classifier that timm publishes in safetensors: its own, or one of the authors' that it republishes.

    Args:
        name: of the model in timm.
        tag: of the weights in timm.
        top1: published figure, in percent.
        size: side of the input.
        source: of the figure.
        **fields: further fields of :class:`Published`.
    """
    return Published(tag, "top-1", top1, str(size), source, repo=f"timm/{name}.{tag}", **fields)


@dataclass(frozen=True)
class Variant:
    """A named member of a family, for example ``efficientvit_b0``.

    Attributes:
        backbone: ``(in_chans, **options) -> Backbone``; for language models ``(**options) -> LanguageBackbone``.
        classifier: ``(in_channels, num_classes, **classifier_options) -> nn.Module`` on the coarsest feature map,
            ``None`` if the variant has no classifier. Its last layer is named ``classifier``. It also has
            ``num_features``, the number of inputs of that layer, and ``forward(x, pre_logits=True)``, which returns
            these inputs.
        segment_heads: keyword arguments of the published segmentation heads, by data set; each also has
            ``num_classes``.
        prompt: keyword arguments of the published promptable model, see :func:`foveal.tasks.prompt.build`.
        language_head: ``(LanguageBackbone) -> nn.Module`` whose ``forward(hidden, word_embeddings)`` returns a score
            for each token of the vocabulary; ``None`` for image models.
        crop_ratio: centre crop over resized short side in the authors' ImageNet evaluation.
        size: side of that crop, in pixels.
        published: released weights with their figures.
        settings: default values of the family's settings.
        twins: variants with the same tensors but other settings; a file alone does not distinguish them from this one.
        tasks: tasks that it can be built for, the default one first.
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
    tasks: tuple[str, ...] = ("classify", "segment", "regress", "prompt")


@dataclass(frozen=True)
class Family:
    """A model family: its variants by public name, and how its published checkpoints are read.

    Attributes:
        convert: ``state dict in any published layout -> ours`` (keys ``backbone.*`` and ``head.*``); ``None`` if the
            keys are not of this family. A state dict in our layout must come back unchanged.
        implied: ``state dict in any layout, before convert -> options`` of ``create_model`` that the checkpoint needs,
            that no variant has by default, and that its keys and shapes show.
        from_config: ``content of the config.json next to published weights -> (variant, options)`` of
            ``create_model``, for families whose shapes do not show all options.
        stem: key of the first convolution's weight in our layout; its second dimension is the number of image channels.
            Identification fails with an error if a state dict of the family has no tensor of this name.
        options: options of ``create_model`` that go to the backbone, each with a description.
        classifier_options: options that go to the classifier, each with a description.
        settings: options that change no tensor, for architectures with several conventions, each with a description.
            A variant has default values for them and ``create_model`` accepts them. ``load_checkpoint`` sets those
            that a checkpoint implies, unless they were given to ``create_model``.
        set: ``(model, **settings)`` applies settings to a model.
        licence: licence of the published weights, an SPDX name.
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
    def takes_images(self) -> bool:
        """Whether its variants are image models; otherwise they are language models."""
        return all(TASKS[task].takes_images for variant in self.variants.values() for task in variant.tasks)


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family to the registry; each model file calls this at its end.

    Raises:
        ConfigError: a family or a variant of this name is registered already, or a variant's name has a dot.
    """
    if family.name in FAMILIES:
        raise ConfigError(f"a model family {family.name!r} is registered already; give this one another name")
    for name in family.variants:
        check_new_name(name)
    FAMILIES[family.name] = family
    return family


def check_new_name(name: str) -> None:
    """Check that a new variant may have this name.

    Raises:
        ConfigError: a variant of this name is registered already, or the name has a dot.
    """
    if name in (known := variants()):
        raise ConfigError(
            f"a model {name!r} is registered already, in the family {known[name][0].name!r}; choose another name"
        )
    if not name or "." in name:
        raise ConfigError(f"{name!r} cannot be a model's name: what follows a dot is the tag of its weights")


def variants() -> dict[str, tuple[Family, Variant]]:
    """Return every registered variant by name, in order of registration; ``foveal.models`` registers all families."""
    return {name: (family, variant) for family in FAMILIES.values() for name, variant in family.variants.items()}


def check_takes_images(name: str) -> None:
    """Check that ``name`` is not a language model.

    Raises:
        ConfigError: it is one.
    """
    if name in (known := variants()) and not known[name][0].takes_images:
        raise ConfigError(f"{name} is a language model: it takes token ids, not images; get it with foveal.load_model")


def published(task: str | None = None) -> dict[str, tuple[Family, Variant, Published]]:
    """Return all released weights that can be fetched, or those for one task, by ``name.tag``."""
    return {
        f"{name}.{entry.tag}": (family, variant, entry)
        for name, (family, variant) in variants().items()
        for entry in variant.published
        if (entry.repo or entry.package) and task in (None, entry.task)
    }
