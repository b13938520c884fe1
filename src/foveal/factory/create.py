"""Build models by name: ``create_model`` and ``list_models``."""

from __future__ import annotations

import dataclasses
import fnmatch
import numbers
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from .. import assets
from ..config import check_arguments
from ..errors import ConfigError, FovealError, is_out_of_memory, nearest
from ..info import Labels, ModelInfo, attach
from ..layers.prompt_tokens import add_prompt_tokens
from ..models.hybrid import idle_options, parse_stage_blocks, replace_blocks
from ..models.registry import Backbone, Family, Variant, published, variants
from ..task import TASKS, identify_task
from ..tasks.builder import Request
from ..tasks.builders import BUILDERS
from ..weights.loading import LoadReport, fill
from ..weights.reading import Checkpoint, read_checkpoint
from .bare import describe_bare
from .described import check_size

#: Arguments of ``create_model`` by name, besides the options of the families.
_STAGE_BLOCKS, _PROMPT_TOKENS = "stage_blocks", "prompt_tokens"  # options of every image model
_ARGUMENTS = {"task", "num_classes", "in_chans", "features_only", "weights", "pretrained", "out_indices"}


def list_models(pattern: str = "*", *, task: str | None = None, pretrained: bool | None = None) -> list[str]:
    """List the names that :func:`create_model` takes, in the families' own order.

    Args:
        pattern: shell-style pattern, with ``*`` and ``?``. With ``pretrained``, an architecture is for all its tags.
        task: only models for this task ("classify", "segment", "upscale", "regress", "prompt", "language").
        pretrained: ``True``: ``name.tag`` of all weights that come with Foveal or are downloaded on first use;
            ``False`` or ``None``: the architectures.

    Raises:
        ConfigError: ``task`` is unknown; the message has the nearest valid one.
    """
    if task is not None:
        _check_task(task)
    if pretrained:
        bundled = [ref for ref, weights in assets.WEIGHTS.items() if task in (None, weights.task)]
        patterns = (pattern, f"{pattern}.*")
        known = dict.fromkeys([*bundled, *published(task)])
        return [ref for ref in known if any(fnmatch.fnmatch(ref, each) for each in patterns)]
    return [
        name
        for name, (_, variant) in variants().items()
        if fnmatch.fnmatch(name, pattern)
        and (task is None or (task in variant.tasks and BUILDERS[task].supports(variant)))
    ]


def create_model(
    name: str,
    task: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    weights: str | Path | None = None,
    pretrained: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model.

    Args:
        name: architecture, or ``architecture.tag`` for one with the weights of that tag.
        task: "classify", "segment", "upscale", "regress", "prompt" or "language"; default: the task of the weights
            that are named, else the architecture's first ("classify" for backbones).
        num_classes: number of classes; default: the published number. 0 when classifying: pooled features.
        in_chans: channels of the image, at least 1. The first convolution of weights for another number is adapted: its
            filters are summed, or repeated and scaled. The preprocessing of a new model for other than 3 channels
            neither shifts nor scales values of 0..1; training replaces it.
        features_only: build the backbone alone: ``forward(x)`` returns a list of feature maps, finest first, and
            ``feature_info`` has the channels and stride of each. A language model returns hidden states,
            ``(B, L, embed_dim)``.
        weights: tag ("camvid"), path, folder, or hub id, to start from. A classifier for another number of classes
            keeps its initial values. From weights for another task only the backbone is loaded. From weights of a
            promptable model with another image encoder, for example SAM's own, the prompt encoder and the mask decoder
            are loaded.
        pretrained: start from the architecture's own weights: those of the package for this task, else the first that
            were published for it, else the first for another task, of which the backbone is loaded. Of several for
            the task, those for ``scale=`` or ``head=``. ``foveal models "NAME.*"`` lists them.
        out_indices: with ``features_only``: which feature maps to return, 0 for the finest and -1 for the coarsest; a
            number: so many of the coarsest. This is not stored with the model.
        **options: options of the family (``foveal models NAME`` lists them). For backbones of images also
            ``stage_blocks={3: "window_attention"}``, which replaces the blocks of stages by those of another family,
            see :data:`foveal.layers.stage_blocks.STAGE_BLOCKS`. For segmentation also
            ``head="cityscapes"`` or ``"ade20k"``, the published head for that data set, with ``head_width=`` channels
            and ``head_depth=`` blocks in place of the published ones; for upscaling ``scale=`` 1 (restoration at the
            image's own size), 2 (the default), 3 or 4; for regression the options of segmentation, ``out_chans=``
            channels, and ``output=`` "none", "sigmoid", "softplus" (above 0) or "unit" (vectors of length 1).
            ``prompt_tokens=`` 1 to 256 puts so many learned tokens before each stage of the backbone, see
            :mod:`foveal.layers.prompt_tokens`.

    Returns:
        nn.Module: in training mode, as torch builds it, with a ``foveal_info`` attribute.

    Raises:
        ConfigError: unknown name, task or option; the message has the nearest valid one.
        CheckpointError: the weights do not exist, or do not fit.
    """
    if pretrained:
        task, weights = _own_weights(name, task, weights, options)
    if out_indices is not None and not features_only:
        raise ConfigError(f"out_indices={out_indices!r} is for features_only=True")
    model, _ = create_and_report(
        name,
        task,
        num_classes=num_classes,
        in_chans=in_chans,
        features_only=features_only,
        weights=weights,
        **options,
    )
    if out_indices is not None:
        if not isinstance(model, Backbone) or type(model).forward is not Backbone.forward:
            raise ConfigError(f"out_indices={out_indices!r}: {name} has no list of feature maps")
        model.select_maps(out_indices if isinstance(out_indices, int) else list(out_indices))
    return model


def create_and_report(
    name: str,
    task: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    weights: str | Path | None = None,
    **options: Any,
) -> tuple[nn.Module, LoadReport | None]:
    """Build a model as :func:`create_model`; also return what its weights gave, ``None`` without weights."""
    name, _, tag = name.partition(".")
    family, variant = _find_variant(name)
    if tag and weights not in (None, tag, f"{name}.{tag}"):
        raise ConfigError(f"{name}.{tag} and weights={weights} name two sets of weights: leave one out")
    weights = f"{name}.{tag}" if tag else weights
    checkpoint = None if weights is None else read_checkpoint(weights, name)
    given = set(options)
    task = _choose_task(name, variant, task, checkpoint)
    if checkpoint is not None:
        check_description(checkpoint, name)
        known_classes, known_options = _read_arguments(checkpoint, name, family, task, features_only)
        if options.get("out_chans") is not None:  # both are the number of channels
            known_classes = None
        elif num_classes is not None:
            known_options.pop("out_chans", None)
        num_classes, options = known_classes if num_classes is None else num_classes, known_options | options
    _check_options(name, options, _valid_options(family, task, features_only))
    _check_counts(in_chans=(in_chans, 1), num_classes=(num_classes, 0))
    with _checked_types(name, family, variant, options):
        backbone = _build_backbone(name, variant, task, num_classes, in_chans, _select(options, family.options))
        options = _replace_stages(backbone, name, options, given)
        tokens, fills_tokens = options.get(_PROMPT_TOKENS), _has_tokens(checkpoint)
        if tokens is not None and fills_tokens:
            add_prompt_tokens(backbone, tokens, in_chans)
        model = backbone
        if not features_only:
            model, num_classes, options = _build_task_model(
                backbone, Request(name, variant, num_classes, in_chans, options), family, task
            )
        family.set(model, **{**variant.settings, **_select(options, family.settings)})
    described = ModelInfo(
        model=name,
        task="features" if features_only else task,
        num_classes=0 if features_only else num_classes or 0,
        in_chans=in_chans,
        options=dict(options),
        output_stride=getattr(model, "stride", 1),
    )
    attach(model, _describe_use(described, model, task, checkpoint))
    report = None if checkpoint is None else fill(model, checkpoint, finetune=True)
    if tokens is not None and not fills_tokens:
        add_prompt_tokens(backbone, tokens, in_chans)
    return model, report


def _has_tokens(checkpoint: Checkpoint | None) -> bool:
    """Whether prompt tokens must be there before the weights are loaded; also without weights."""
    return checkpoint is None or (checkpoint.info is not None and _PROMPT_TOKENS in checkpoint.info.options)


def _own_weights(
    name: str, task: str | None, weights: str | Path | None, options: Mapping[str, Any]
) -> tuple[str, str]:
    """The task, and the reference of an architecture's own weights, for ``pretrained=True``.

    Raises:
        ConfigError: other weights are named, too, or there are none, or none for the requested scale.
    """
    if weights is not None or "." in name:
        other = weights if weights is not None else f"the tag of {name!r}"
        raise ConfigError(f"pretrained=True and {other} name two sets of weights: leave one out")
    _, variant = _find_variant(name)
    wanted = task or variant.tasks[0]
    bundled = [(ref, each.task) for ref, each in assets.WEIGHTS.items() if ref.startswith(f"{name}.")]
    known = bundled + [(ref, entry.task) for ref, (_, own, entry) in published().items() if own is variant]
    if not known:
        raise ConfigError(f"{name} has no weights of its own: leave pretrained out, or give weights=")
    fitting = [ref for ref, of_task in known if of_task == wanted]
    return wanted, _best_tag(name, fitting, wanted, options) if fitting else known[0][0]


def _best_tag(name: str, refs: Sequence[str], task: str, options: Mapping[str, Any]) -> str:
    """Of weights for the same task, those for the scale or the head of ``options``, else the first.

    Raises:
        ConfigError: a scale is requested that none of them has.
    """
    option = TASKS[task].option  # "scale" of upscaling; other tasks have none
    asked = options.get(option or "head", BUILDERS[task].defaults.get(option))
    best = f"{name}.x{asked}" if option else f"{name}.{asked}"
    if best not in refs and option in options:
        known = ", ".join(refs)
        raise ConfigError(f"{name} has no weights for {option}={asked!r}, only {known}: leave pretrained out")
    return best if best in refs else refs[0]


def create_described(info: ModelInfo, name: str = "") -> nn.Module:
    """Build the model that a description asks for, without weights; ``name``: architecture, if it names none."""
    has_head = TASKS[info.task].has_head if info.task in TASKS else True
    return create_model(
        info.model or name,
        info.task if has_head else None,
        num_classes=info.num_classes,
        in_chans=info.in_chans,
        features_only=not has_head,
        **info.options,
    )


def check_description(checkpoint: Checkpoint, name: str = "") -> None:
    """Check that the description of a checkpoint asks for a model of about the size of its tensors.

    Raises:
        CheckpointError, ConfigError: as :func:`~foveal.factory.described.check_size`.
    """
    if (info := checkpoint.info) is not None:
        check_size(lambda: create_described(info, name), checkpoint.state, checkpoint.source or "state dict")


# ---- checking the arguments


def _find_variant(name: str) -> tuple[Family, Variant]:
    known = variants()
    if name not in known:
        raise ConfigError(f"unknown model {name!r}{nearest(name, known)} (foveal models lists all)")
    return known[name]


def _check_task(task: str) -> None:
    if task not in BUILDERS:
        raise ConfigError(f"unknown task {task!r}{nearest(task, BUILDERS)}")


def _choose_task(name: str, variant: Variant, task: str | None, checkpoint: Checkpoint | None) -> str:
    """Check the requested task; default: that of the weights if the variant has it, else the variant's first."""
    if not task:
        known = _task_of(checkpoint) if checkpoint else ""
        return known if known in variant.tasks else variant.tasks[0]
    _check_task(task)
    if task not in variant.tasks:
        kind = "" if TASKS[variant.tasks[0]].takes_images else "a language model, "
        raise ConfigError(f"{name} is {kind}not for {task!r}; valid: {', '.join(variant.tasks)}")
    return task


def _task_of(checkpoint: Checkpoint) -> str:
    """The task that the description says, or without one the keys."""
    return checkpoint.info.task if checkpoint.info else identify_task(checkpoint.in_our_layout()).name


def _valid_options(family: Family, task: str, features_only: bool) -> set[str]:
    head = set() if features_only else {*BUILDERS[task].options, *BUILDERS[task].family_options(family)}
    stages = {_STAGE_BLOCKS} if family.takes_images else set()
    tokens = {_PROMPT_TOKENS} if TASKS[task].has_classes or TASKS[task].takes_prompts else set()
    return {*family.options, *family.settings, *head, *stages, *tokens}


def _check_options(name: str, options: Mapping[str, Any], valid: set[str]) -> None:
    for option in options:
        if option not in valid:
            raise ConfigError(f"{name} has no option {option!r}{nearest(option, valid | _ARGUMENTS)}")


@contextmanager
def _checked_types(name: str, family: Family, variant: Variant, options: Mapping[str, Any]) -> Iterator[None]:
    """Check the types of options after the model is built, or could not be: families have better words for some.

    Raises:
        ConfigError: an option has another type than its default.
    """

    def check() -> None:
        for part in (variant.backbone, variant.classifier, family.set):
            if part is not None:
                check_arguments(part, options, name)

    try:
        yield
    except FovealError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        check()
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name} cannot be built with these options: {reason}") from error
    except Exception:
        check()
        raise
    check()


def _check_counts(**counts: tuple[int | None, int]) -> None:
    """Check that each count is ``None`` or an integer of at least its minimum."""
    for argument, (count, minimum) in counts.items():
        if count is not None and not (isinstance(count, numbers.Integral) and count >= minimum):
            raise ConfigError(f"{argument}={count!r}: give a whole number, {minimum} or more")


def _select(options: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in names}


# ---- building


def _read_arguments(
    checkpoint: Checkpoint, name: str, family: Family, task: str, features_only: bool
) -> tuple[int | None, dict[str, Any]]:
    """The number of classes and the options of ``create_model`` that fit the weights, as far as they are known."""
    info = checkpoint.info
    if info is None:
        recognised = checkpoint.recognise_encoder()
        if recognised is None or recognised.family is not family:
            return None, {}
        implied = recognised.options | BUILDERS[task].implied(recognised.state, family)
        same_task = not features_only and identify_task(recognised.state).name == task
        last = recognised.state.get("head.classifier.weight") if same_task else None
        classes = None if last is None else len(last)
        return classes, _select(implied, _valid_options(family, task, features_only))
    # Options of another architecture, for example its epsilon and padding, do not apply to this one.
    options = dict(info.options) if info.model in ("", name) else {}
    if info.task != task or features_only:
        options = _select(options, {*family.options, *family.settings, _STAGE_BLOCKS, _PROMPT_TOKENS})
    return info.num_classes if info.task == task else None, options


def _build_backbone(
    name: str, variant: Variant, task: str, num_classes: int | None, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    if TASKS[task].takes_images:
        return variant.backbone(in_chans, **options)
    if num_classes or in_chans != 3:
        raise ConfigError(f"{name} is a language model: num_classes and in_chans are for images, leave them out")
    return variant.backbone(**options)


def _replace_stages(backbone: Any, name: str, options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Replace the blocks of the stages that ``stage_blocks`` names.

    Returns:
        The options as they are described: without those that configure no block, which only weights may imply.

    Raises:
        ConfigError: as :mod:`foveal.models.hybrid`, or an option in ``given`` has no effect.
    """
    kinds = parse_stage_blocks(options.get(_STAGE_BLOCKS, {}), name)
    options = {key: value for key, value in options.items() if key != _STAGE_BLOCKS}
    if not kinds:
        return options
    if options.get("output_stride") is not None:
        raise ConfigError(f"{name}: output_stride dilates the published stages: leave it or stage_blocks out")
    replace_blocks(backbone, kinds, name)
    idle = idle_options(backbone, options)
    if wrong := next((option for option in idle if option in given), None):
        raise ConfigError(
            f"{name}: {wrong} has no effect with stage_blocks={kinds}: no stage has such blocks, leave it out"
        )
    options = {key: value for key, value in options.items() if key not in idle}
    # With the numbers as text, which JSON has.
    replaced = {str(number): kind for number, kind in backbone.stage_blocks.items()}
    return options | ({_STAGE_BLOCKS: replaced} if replaced else {})


def _build_task_model(
    backbone: nn.Module, request: Request, family: Family, task: str
) -> tuple[nn.Module, int, dict[str, Any]]:
    """Build the model of a task around ``backbone``.

    Returns:
        The model, its number of classes, and its options with the defaults that the task notes.
    """
    builder = BUILDERS[task]
    options = {**request.options, **{k: v for k, v in builder.defaults.items() if k not in request.options}}
    for_head = _select(options, {*builder.options, *builder.family_options(family)})
    request = dataclasses.replace(request, options=for_head)
    request = dataclasses.replace(request, num_classes=builder.count_classes(request))
    return builder.build(backbone, request), request.num_classes or 0, options


def _describe_use(info: ModelInfo, model: nn.Module, task: str, checkpoint: Checkpoint | None) -> ModelInfo:
    """Complete a description by the licence, preprocessing, thresholds and classes of the weights."""
    known = ModelInfo()
    if checkpoint is not None:
        known = checkpoint.info or describe_bare(checkpoint, info.model, info.options.get("head", ""))
    same_task = known.task == task
    preprocess = BUILDERS[task].preprocess(model, known.preprocess if same_task else None)
    preprocess = preprocess.for_channels(info.in_chans)
    return info.replace(
        licence=known.licence,
        mask_thresholds=known.mask_thresholds if same_task else (),
        preprocess=preprocess,
        labels=known.labels if same_task and known.num_classes == info.num_classes else Labels(),
        target=known.target if same_task and known.num_classes == info.num_classes else info.target,
    )
