"""Building models by name: ``create_model``, ``list_models``."""

from __future__ import annotations

import fnmatch
import numbers
from pathlib import Path
from typing import Any

from torch import nn

from .. import assets
from ..errors import ConfigError, nearest
from ..info import Labels, ModelInfo, Preprocess, attach
from ..models.registry import Backbone, Variant, published, variants
from ..tasks import classify, language, prompt, segment, upscale
from ..weights.loading import implied_options, load_for_finetuning, read_weights

TASKS = ("classify", "segment", "upscale", "prompt", "language")
_TASK_OPTIONS = {"segment": {"head", "head_width", "head_depth"}, "upscale": {"scale"}}  # those that the head takes
_IMAGENET_CLASSES = 1000


def list_models(pattern: str = "*", *, task: str | None = None, pretrained: bool | None = None) -> list[str]:
    """Names that :func:`create_model` takes, in the families' own order.

    Args:
        pattern: shell-style pattern, with ``*`` and ``?``.
        task: only models of this task ("classify", "segment", "upscale", "prompt", "language").
        pretrained: ``True``: ``name.tag`` of all weights that come with Foveal or are fetched on first use; ``False``
            or ``None``: the architectures.

    Raises:
        ConfigError: ``task`` is unknown.
    """
    if task is not None:
        _check_task(task)
    if pretrained:
        tasks = {ref: weights.task for ref, weights in assets.WEIGHTS.items()}
        tasks |= {ref: entry.task for ref, (_, _, entry) in published().items()}
        return [ref for ref, of in tasks.items() if fnmatch.fnmatch(ref, pattern) and task in (None, of)]
    return [
        name
        for name, (_, variant) in variants().items()
        if fnmatch.fnmatch(name, pattern)
        and (task is None or task in variant.tasks)
        and (task != "classify" or variant.classifier is not None)
    ]


def create_model(
    name: str,
    task: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model.

    Args:
        name: architecture, or ``architecture.tag`` for one with the weights of that tag.
        task: "classify", "segment", "upscale", "prompt" or "language"; default: the tag's task, else the architecture's
            first ("classify" of backbones).
        num_classes: outputs; default: the published number. 0 when classifying: pooled features.
        in_chans: channels of the image, at least 1.
        features_only: the backbone alone: ``forward(x)`` gives a list of maps, finest first, and ``feature_info``
            tells the channels and stride of each. Of a language model: hidden states, ``(B, L, embed_dim)``.
        weights: tag ("camvid"), path, folder, or hub id, to start from. A classifier for another number of classes
            starts fresh, weights of another task give the backbone alone, and a promptable model with another image
            encoder, SAM's own say, gives its prompt encoder and mask decoder.
        **options: the family's own (see ``foveal models NAME``), and for segmentation ``head="cityscapes"`` or
            ``"ade20k"``, the published head for that data set, with ``head_width=`` channels and ``head_depth=`` blocks
            in place of the published ones; for upscaling ``scale=`` 1 (restoration at the image's own size), 2 (the
            default), 3 or 4.

    Returns:
        nn.Module: in training mode as torch builds it, with a ``foveal_info`` attribute.

    Raises:
        ConfigError: unknown name, task or option; the message has the nearest valid one.
        CheckpointError: the weights do not fit.
    """
    name, _, tag = name.partition(".")
    family, variant = _find(name)
    if tag and weights is None:
        weights = f"{name}.{tag}"
    state, info = (None, None) if weights is None else read_weights(weights, name)
    task = _check_task(task or (info.task if info and info.task in variant.tasks else variant.tasks[0]))
    if task not in variant.tasks:
        kind = "a language model, " if "language" in variant.tasks else ""
        raise ConfigError(f"{name} is {kind}not for {task!r}; valid: {', '.join(variant.tasks)}")
    classifies = task == "classify" and not features_only
    of_classifier = set(family.classifier_options) if classifies else set()
    general = set(family.options) | set(family.settings)
    valid = general | of_classifier | _TASK_OPTIONS.get(task, set())
    if info:
        if info.task == task:
            num_classes = info.num_classes if num_classes is None else num_classes
        same = info.task == task and not features_only
        # What another architecture was told, its epsilon and padding say, is not this one's.
        told = info.options if info.model in ("", name) else {}
        options = {k: v for k, v in told.items() if same or k in general} | options
    elif state is not None:
        options = {k: v for k, v in implied_options(state, family).items() if k in valid} | options
    for option in options:
        if option not in valid:
            raise ConfigError(f"{name} has no option {option!r}{nearest(option, valid)}")
    for count, value, least in (("in_chans", in_chans, 1), ("num_classes", num_classes, 0)):
        if value is not None and not (isinstance(value, numbers.Integral) and value >= least):
            raise ConfigError(f"{count}={value!r}: give a whole number, {least} or more")
    for_backbone = {k: v for k, v in options.items() if k in family.options}
    if task == "language":
        if num_classes or in_chans != 3:
            raise ConfigError(f"{name} is a language model: num_classes and in_chans are for images")
        backbone = variant.backbone(**for_backbone)
    else:
        backbone = variant.backbone(in_chans, **for_backbone)
    if features_only:
        model = backbone
    elif variant.language_head is not None:
        model = language.LanguageModel(backbone, variant.language_head(backbone))
    elif task == "segment":
        for_head = {k: v for k, v in options.items() if k in _TASK_OPTIONS["segment"]}
        model, num_classes = _segmenter(name, variant, backbone, num_classes, **for_head)
    elif task == "upscale":
        options.setdefault("scale", upscale.DEFAULT_SCALE)
        model = _upscaler(name, backbone, in_chans, num_classes, options["scale"])
    elif task == "prompt":
        if num_classes:
            raise ConfigError(
                f"num_classes={num_classes}: {name} for task='prompt' finds what is pointed at; leave it out"
            )
        model = prompt.build(backbone, **(variant.prompt or prompt.DEFAULT_NECK))
    else:
        model, num_classes = _classifier(
            name, variant, backbone, num_classes, {k: v for k, v in options.items() if k in of_classifier}
        )
    settings = {k: v for k, v in options.items() if k in family.settings}
    family.set(model, **{**variant.settings, **settings})
    described = ModelInfo(
        model=name,
        task="features" if features_only else task,
        num_classes=num_classes or 0,
        in_chans=in_chans,
        options=dict(options),
        output_stride=getattr(model, "stride", 1),
        licence=info.licence if info else "",
        mask_thresholds=info.mask_thresholds if info and info.task == task else (),
        # What a promptable model sees is its own encoder's size, not that of the weights' one, which may be another.
        preprocess=info.preprocess if info and info.task == task and task != "prompt" else _preprocess(task, model),
        labels=info.labels if info and info.num_classes == num_classes else Labels(),
    )
    attach(model, described)
    if state is not None:
        load_for_finetuning(model, state, info)
    return model


def _preprocess(task: str, model: nn.Module) -> Preprocess:
    if task == "upscale":
        return Preprocess(upscale.MEAN, upscale.STD)
    if isinstance(model, prompt.PromptModel):
        return Preprocess.of_prompts(model.image_encoder.size)
    return Preprocess()


def _check_task(task: str) -> str:
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}{nearest(task, TASKS)}")
    return task


def _find(name: str) -> tuple[Any, Variant]:
    known = variants()
    if name not in known:
        raise ConfigError(f"unknown model {name!r}{nearest(name, known)} (foveal models lists all)")
    return known[name]


def _segmenter(
    name: str,
    variant: Variant,
    backbone: Backbone,
    num_classes: int | None,
    head: str | None = None,
    **sizes: Any,
) -> tuple[nn.Module, int]:
    heads = variant.segment_heads or {"cityscapes": segment.DEFAULT_HEAD}
    head = head or "cityscapes"
    if head not in heads:
        raise ConfigError(f"{name} has no published segmentation head {head!r}{nearest(head, heads)}")
    for option, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{option}={size!r}: give a whole number from 1 up")
    arguments = dict(heads[head]) | {option.removeprefix("head_"): size for option, size in sizes.items()}
    published: int = arguments.pop("num_classes")
    num_classes = published if num_classes is None else num_classes
    if num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: a segmentation model needs at least 1")
    decoder = segment.SegmentationHead(backbone.feature_info, num_classes, **arguments)
    return segment.SegmentationModel(backbone, decoder), num_classes


def _upscaler(name: str, backbone: Backbone, in_chans: int, num_classes: int | None, scale: int) -> nn.Module:
    if num_classes:
        raise ConfigError(f"num_classes={num_classes}: {name} makes images, not classes; leave it out")
    if scale not in upscale.SCALES:
        raise ConfigError(f"scale={scale!r}: give one of {', '.join(map(str, upscale.SCALES))}")
    head = upscale.UpscaleHead(backbone.feature_info[-1].channels, in_chans, scale)
    return upscale.UpscaleModel(backbone, head)


def _classifier(
    name: str, variant: Variant, backbone: Backbone, num_classes: int | None, options: dict[str, Any]
) -> tuple[nn.Module, int]:
    if variant.classifier is None:
        raise ConfigError(f"{name} has no classifier; use features_only=True or task='segment'")
    num_classes = _IMAGENET_CLASSES if num_classes is None else num_classes
    if num_classes < 0:
        raise ConfigError(f"num_classes={num_classes}: give 0 (pooled features) or more")
    head = variant.classifier(backbone.feature_info[-1].channels, num_classes, **options)
    return classify.ClassificationModel(backbone, head), num_classes
