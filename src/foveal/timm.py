"""Foveal's classifiers in timm: importing this module registers each of them as ``foveal_<name>``.

``timm.create_model("foveal_efficientvit_b1", features_only=True)`` then works, and so do libraries that build on timm,
for example ``segmentation_models_pytorch.Unet("tu-foveal_efficientvit_b1")``. Needs timm. Variants that are registered
after this import are not in timm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, DependencyError
from .factory.create import create_and_report
from .info import info_of
from .layers.recompute import recompute
from .layers.resample import ceil_div, check_min_size
from .models.registry import Backbone, Family, FeatureInfo, Published, Variant, published, variants
from .text import notice
from .weights.published import published_preprocess

try:
    from timm.models import (
        PretrainedCfg,
        build_model_with_cfg,
        generate_default_cfgs,
        get_pretrained_cfg,
        register_model,
    )
    from timm.models._features import feature_take_indices
except ImportError as error:
    raise DependencyError("foveal.timm registers models in timm: pip install timm") from error


class TimmModel(nn.Module):
    """A classifier of Foveal with timm's interface; its state dict has Foveal's keys, so Foveal's checkpoints load.

    Args:
        name: one of ``foveal.list_models()``.
        num_classes: number of classes; 0: pooled features.
        in_chans: channels of the image.
        global_pool: "avg", the pooling of all classifiers here, or an empty string: ``forward`` returns the coarsest
            feature map.
        drop_rate: dropout before the last linear layer in training; default: that of the family, else 0.
        drop_path_rate: stochastic depth in training; default: that of the family.
        img_size: side of the images in pixels, or (height, width), for timm's description of the input. The networks
            take images of any size.
        weights: tag of published weights, or a checkpoint, to start from.
        **options: options of ``foveal.create_model``.

    Attributes:
        report: what the weights gave; ``None`` without weights.

    Raises:
        ConfigError: another pooling, or an option that the family does not have.
        CheckpointError: the weights do not exist, or do not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        img_size: int | Sequence[int] | None = None,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.img_size = _check_size(img_size)
        family, variant = _classifiers()[name]
        if drop_path_rate is not None and (drop_path_rate or "drop_path_rate" in family.options):
            options["drop_path_rate"] = drop_path_rate
        self.drop_rate = _check_rate(drop_rate)
        if drop_rate is not None and "dropout" in family.classifier_options:
            options["dropout"] = drop_rate
        model, self.report = create_and_report(
            name, "classify", num_classes=num_classes, in_chans=in_chans, weights=weights, **options
        )
        options = info_of(model).options
        of_head = {key: value for key, value in options.items() if key in family.classifier_options}
        self.backbone, self.head = cast(Backbone, model.backbone), cast(Any, model.head)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, _check_pooling(global_pool)
        self.num_features = self.backbone.feature_info[-1].channels
        assert variant.classifier is not None
        self.fresh_head = partial(variant.classifier, self.num_features, **of_head)
        self.head_hidden_size = self.head.num_features
        self._add_dropout()
        self.taps = _find_taps(self.backbone)
        self.levels = _find_levels(self.backbone, dilated="output_stride" in options)
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"backbone.stem.{i}"}
            for i, (channels, stride) in self.taps.items()
        ] + [
            {"num_chs": channels, "reduction": stride, "module": f"backbone.stages.{i}"}
            for i, (channels, stride) in self.levels.items()
        ]

    def sizes(self, input_size: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """timm's entries of the image's and the coarsest map's size; ``img_size`` replaces that of ``input_size``."""
        image = (input_size[0], *(self.img_size or input_size[1:]))
        stride = self.backbone.feature_info[-1].stride
        return {"input_size": image, "pool_size": tuple(ceil_div(side, stride) for side in image[1:])}

    def _add_dropout(self) -> None:
        """Drop inputs of the last linear layers, for families whose classifier has no dropout of its own."""
        if self.drop_rate and not hasattr(self.head, "dropout"):
            for name, layer in self.head.named_children():
                if name.startswith("classifier"):
                    layer.register_forward_pre_hook(_Dropout(self.drop_rate))

    def forward_features(self, x: Tensor) -> Tensor:
        """The coarsest feature map, ``(B, num_features, h, w)``."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, num_classes)`` of the coarsest map; with ``pre_logits`` the inputs of the last linear layer."""
        return self.head(x, pre_logits=pre_logits) if self.global_pool else x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps, finest first: the last ``indices`` of them, or those of these indices.

        ``norm`` and ``stop_early`` have no effect: the maps are those of the whole backbone.

        Returns:
            A list of maps ``(B, C, h, w)``; without ``intermediates_only``, a pair of the coarsest map and that list.

        Raises:
            ConfigError: another format than "NCHW".
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt={output_fmt!r}: feature maps are only available as 'NCHW'")
        maps = self._feature_maps(x)
        selected = [maps[i] for i in self._select(indices)]
        return selected if intermediates_only else (maps[-1], selected)

    def _feature_maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps of the stem that ``taps`` names, followed by those of the backbone in ``levels``."""
        check_min_size(x, self.backbone.min_size)
        early = []
        for i, block in enumerate(self.backbone.stem):
            x = block(x)
            if i in self.taps:
                early.append(x)
        maps = self.backbone.forward_stages(x)
        return early + [maps[i] for i in self.levels]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the head, on which no feature map depends; all stages stay. Returns the indices of the maps."""
        if prune_head:
            self.reset_classifier(0, "")
            self.head = nn.Identity()
        return self._select(indices)

    def _select(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices of feature maps as timm resolves them: ``None`` is all, an integer the last ones."""
        requested = indices if indices is None or isinstance(indices, int) else list(indices)
        return list(feature_take_indices(len(self.feature_info), requested)[0])

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an identity for ``num_classes=0``."""
        return cast(nn.Module, getattr(self.head, "classifier", self.head))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a fresh one; distilled models have a second, for the teacher's labels."""
        if global_pool is not None:
            self.global_pool = _check_pooling(global_pool)
        self.num_classes = num_classes
        like = next(self.parameters())
        fresh = self.fresh_head(num_classes).to(like).train(self.training)
        if num_classes and isinstance(self.head, nn.Identity):  # after prune_intermediate_layers
            self.head = fresh
        for key in ("classifier", "classifier_distilled"):
            if hasattr(fresh, key):
                setattr(self.head, key, getattr(fresh, key))
        self._add_dropout()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each stage in the backward pass, to save memory."""
        for stage in self.backbone.stages:
            vars(stage).pop("forward", None)
        if enable:
            recompute(self.backbone.stages)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for layer-wise learning rates."""
        stage = r"^backbone\.(?:stages|out_norms)\.(\d+)"
        blocks = [(stage, None)] if coarse else [(r"^backbone\.stages\.(\d+)\.(?:blocks\.)?(\d+)", None), (stage, (0,))]
        return {"stem": r"^backbone\.stem", "blocks": [*blocks, (r"^head", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Tables of attention biases, and what the family excludes; timm itself excludes vectors (norms and biases)."""
        undecayed = getattr(self.backbone, "undecayed", ())
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.endswith("biases") or name.rpartition(".")[2] in undecayed}


def _check_pooling(name: str) -> str:
    if name not in ("", "avg"):
        raise ConfigError(f"global_pool={name!r}: the classifiers pool by average; give 'avg' or ''")
    return name


def _check_size(img_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if img_size is None:
        return None
    height, width = (img_size, img_size) if isinstance(img_size, int) else (*img_size, 0, 0)[:2]
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ConfigError(f"img_size={img_size!r}: give a side in pixels, or (height, width)")
    return height, width


def _check_rate(drop_rate: float | None) -> float:
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise ConfigError(f"drop_rate={drop_rate} is out of range: give 0 or more, and less than 1")
    return drop_rate or 0.0


class _Dropout:
    """Hook before a module: dropout on its input in training."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(args[0], self.rate, module.training), *args[1:])


def _find_taps(backbone: Backbone) -> dict[int, FeatureInfo]:
    """Last block of the stem at each stride from 2 to below that of the finest feature map, by index.

    timm counts these maps, too, and libraries that build on it assume that the maps begin at stride 2 or 4.
    """
    finest = backbone.feature_info[0].stride
    stem = cast(nn.Sequential, copy.deepcopy(backbone.stem).to("meta").eval())
    in_chans = next(module.in_channels for module in stem.modules() if isinstance(module, nn.Conv2d))
    x = torch.empty(1, in_chans, 16 * finest, 16 * finest, device="meta", dtype=next(stem.parameters()).dtype)
    taps: dict[int, tuple[int, FeatureInfo]] = {}
    for i, block in enumerate(stem):
        x = block(x)
        stride = 16 * finest // x.shape[-1]
        if 1 < stride < finest:
            taps[stride] = (i, FeatureInfo(x.shape[1], stride))
    return dict(taps.values())


def _find_levels(backbone: Backbone, dilated: bool) -> dict[int, FeatureInfo]:
    """Feature maps of the backbone by index: the last one of each stride, or all if it is dilated or isotropic."""
    infos = backbone.feature_info
    later = [info.stride for info in infos[1:]] + [0]
    keep_all = dilated or infos[0].stride == infos[-1].stride
    return {i: info for i, info in enumerate(infos) if keep_all or info.stride != later[i]}


def _default_cfg(variant: Variant, entry: Published | None) -> dict[str, Any]:
    preprocess = published_preprocess("classify", variant, entry)
    assert preprocess is not None
    assert preprocess.size is not None
    cfg = {
        "num_classes": 1000,
        "input_size": (3, *preprocess.size),
        "crop_pct": preprocess.crop_ratio,
        "interpolation": preprocess.resample,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "first_conv": "backbone.stem.0.conv",
        "classifier": "head.classifier",
    }
    if entry is None:
        return cfg
    # timm considers a model pretrained if it could find the weights itself; it is Foveal that fetches them.
    return cfg | ({"file": entry.file} if entry.package else {"hf_hub_id": entry.repo, "hf_hub_filename": entry.file})


def _default_cfgs() -> dict[str, Any]:
    """Configurations of all classifiers and their published weights, in timm's form."""
    entries = published("classify")
    cfgs: dict[str, Any] = {
        f"foveal_{ref}": _default_cfg(variant, entry) for ref, (_, variant, entry) in entries.items()
    }
    with_weights = {ref.partition(".")[0] for ref in entries}
    for name, (_, variant) in _classifiers().items():
        if name not in with_weights:
            cfgs[f"foveal_{name}"] = _default_cfg(variant, None)
    return generate_default_cfgs(cfgs)


def _classifiers() -> dict[str, tuple[Family, Variant]]:
    return {name: entry for name, entry in variants().items() if entry[1].classifier is not None}


def _build(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build ``foveal_<name>`` for timm. Foveal loads the weights, which it checks and renames."""
    cfg = arguments.get("pretrained_cfg")
    registered = get_pretrained_cfg(f"foveal_{name}")
    given = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg) if isinstance(cfg, Mapping) else {}
    if given.get("file") == getattr(registered, "file", None):  # where the published weights are in their package
        given.pop("file", None)
    overlay = {**given, **(arguments.get("pretrained_cfg_overlay") or {})}
    if pretrained:
        tag = cfg if isinstance(cfg, str) else given.get("tag", getattr(registered, "tag", None))
        arguments["weights"] = overlay.get("file") or tag
        if not arguments["weights"]:
            raise ConfigError(
                f"foveal_{name} has no published weights; leave out pretrained=True, or name a checkpoint by "
                "pretrained_cfg_overlay={'file': PATH}"
            )
    built: list[TimmModel] = []

    def build(**options: Any) -> TimmModel:
        built.append(TimmModel(name, **options))
        return built[0]

    features = {"feature_cls": "getter", "out_indices": None}
    net: Any = build_model_with_cfg(build, f"foveal_{name}", pretrained=False, feature_cfg=features, **arguments)
    net.default_cfg.update(built[0].sizes(net.default_cfg["input_size"]))  # a copy that belongs to this model
    if "num_classes" not in arguments and not arguments.get("features_only"):  # timm filled in the number
        _say_fresh_classifier(built[0])
    return net


def _say_fresh_classifier(model: TimmModel) -> None:
    """State it on standard error if weights for another number of classes left the classifier as it was."""
    report = model.report
    if report is not None and any(key.startswith("head.classifier.") for key in report.reinitialized):
        classes = report.info.num_classes if report.info else 0
        known = f"{classes} classes" if classes else "other classes"
        notice(f"weights for {known}, model for {model.num_classes}: head.classifier keeps its initial values")


default_cfgs = _default_cfgs()  # timm reads this name when a model of this module is registered
for _name in _classifiers():
    _entry: Any = partial(_build, _name)
    _entry.__name__, _entry.__module__ = f"foveal_{_name}", __name__
    register_model(_entry)
