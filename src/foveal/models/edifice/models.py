"""The vision models of Edifice, a library for Elixir, with its names and options.

``EfficientViT`` and ``MambaVision`` have the functions of Edifice's modules of these names: ``build``, ``output_size``,
``build_backbone``, ``feature_size``, ``input_shape``; ``MambaVision`` also has ``tiny_config``, ``small_config`` and
``base_config``. With the names ``edifice_efficient_vit`` and ``edifice_mamba_vision`` they are models like all others.

The code of that library does not compute what its documentation describes: no head has its own channels or passes its
output on, the token grid is never downsampled, and MambaVision's last norm makes its features almost independent of the
image. The models here follow the documentation; ``compat=True`` computes what the code does. ``docs/edifice.md`` lists
all differences.

Source: Edifice 0.2.0 (MIT licence), its documentation and behaviour; there are no published weights.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import build_config
from ...errors import InputError
from ...info import ModelInfo, Preprocess, attach
from ...layers.conv import LayerNorm2d
from ...layers.leaf import leaf
from ...layers.resample import ceil_div
from ..registry import Backbone, Family, Variant, register
from . import efficientvit as edifice_efficientvit
from . import mambavision as edifice_mambavision
from .efficientvit import EfficientViTBackbone, EfficientViTConfig
from .mambavision import MambaVisionBackbone, MambaVisionConfig

Function = TypeVar("Function", bound=Callable[..., Any])


class WidthNorm(nn.Module):
    """Layer norm over the width of ``(B, C, H, W)``: Edifice norms the last axis, but its channels are not the last.

    Args:
        image_size: width of the images, in pixels; there is one weight per column at stride 32.

    Raises:
        InputError: the map has another width.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.weight = nn.Parameter(torch.ones(ceil_div(image_size, 32)))
        self.bias = nn.Parameter(torch.zeros(ceil_div(image_size, 32)))

    def forward(self, x: Tensor) -> Tensor:
        _check_width(x, self.image_size)
        # The first column is subtracted first, which is exact for neighbours of similar value. With only two or three
        # columns the result consists of their differences, of which torch's layer norm has only five digits.
        y = x - x[..., :1]
        y = y - y.mean(-1, keepdim=True)
        return y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


@leaf
def _check_width(x: Tensor, image_size: int) -> None:
    if x.shape[-1] != ceil_div(image_size, 32):
        raise InputError(
            f"compat=True has weights for images of {image_size}x{image_size} pixels only: resize to that, give "
            "another image_size, or leave out compat"
        )


class PooledHead(nn.Module):
    """Norm, average over positions, classifier: ``(B, in_chans, H, W) -> (B, num_classes)``.

    With ``num_classes=0`` or ``pre_logits=True`` it returns the pooled features, ``(B, in_chans)``. The default norm is
    over channels.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000, *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features = in_chans
        self.norm = LayerNorm2d(in_chans, eps=1e-5) if norm is None else norm
        self.classifier = nn.Linear(in_chans, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.adaptive_avg_pool2d(self.norm(x), 1).flatten(1)
        return x if pre_logits else self.classifier(x)


def _mambavision_head(in_chans: int, num_classes: int, *, image_size: int = 224, compat: bool = False) -> PooledHead:
    return PooledHead(in_chans, num_classes, norm=WidthNorm(image_size) if compat else None)


def _show_options(function: Function, options: inspect.Signature) -> Function:
    """A class method of ``**options`` whose signature has the names, types and defaults of ``options``."""

    @functools.wraps(function)
    def call(cls: Any, **given: Any) -> Any:
        return function(cls, **given)

    own = inspect.signature(function)
    first = next(iter(own.parameters.values()))
    call.__signature__ = own.replace(parameters=[first, *options.parameters.values()])  # pyright: ignore
    return cast("Function", call)


def _from_options(function: Function) -> Function:
    """Build the model from the options that are given: editors read the signature of ``function``, which has no body.

    The model's description then holds these options only, and an unknown one is a ConfigError with the nearest name.
    """

    @functools.wraps(function)
    def build(cls: Any, **options: Any) -> Any:
        return cls(**options)

    return cast("Function", build)


class _Model(nn.Module):
    """Base of both models: it builds backbone and head from options, and computes sizes from options alone."""

    __signature__: ClassVar[inspect.Signature]
    name: ClassVar[str]  # name in the registry
    config: ClassVar[type[Any]]  # dataclass of the options
    network: ClassVar[type[Any]]  # class of the backbone, which takes the dataclass

    def __init_subclass__(cls) -> None:
        """Show the options of ``build`` in the signatures of the class and of the other functions that take them."""
        signature = inspect.signature(getattr(cls, "build"))  # noqa: B009 - each subclass defines it
        cls.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)
        for name in ("build_backbone", "output_size", "feature_size", "input_shape"):
            setattr(cls, name, classmethod(_show_options(getattr(_Model, name).__func__, signature)))

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = self._config(options)
        num_classes = config.num_classes or 0
        self.backbone = self.network(config)
        self.head = self._head(config, num_classes)
        info_options = {key: value for key, value in options.items() if key not in ("in_channels", "num_classes")}
        preprocess = Preprocess().for_channels(config.in_channels)
        attach(self, ModelInfo(self.name, "classify", num_classes, config.in_channels, info_options, preprocess))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])

    @classmethod
    def build_backbone(cls, **options: Any) -> Self:
        """Build the model without a classifier: outputs are ``(B, feature_size)``; ``num_classes`` is ignored."""
        return cls(**{**options, "num_classes": None})

    @classmethod
    def output_size(cls, **options: Any) -> int:
        """Return the length of an output: ``num_classes``, or ``feature_size`` if there are no classes."""
        return cls._config(options).num_classes or cls.feature_size(**options)

    @classmethod
    def feature_size(cls, **options: Any) -> int:
        """Return the length of the pooled features."""
        return cls._config(options).dims[-1]

    @classmethod
    def input_shape(cls, **options: Any) -> tuple[None, int, int, int]:
        """Return ``(None, in_channels, image_size, image_size)``, where ``None`` stands for any batch."""
        config = cls._config(options)
        return None, config.in_channels, config.image_size, config.image_size

    @classmethod
    def _config(cls, options: dict[str, Any]) -> Any:
        return build_config(cls.config, options, cls.__name__)

    @staticmethod
    def _head(config: Any, num_classes: int) -> PooledHead:
        return PooledHead(config.dims[-1], num_classes)


class EfficientViT(_Model):
    """Edifice's EfficientViT: ``(B, in_channels, H, W) -> (B, num_classes)``, or ``(B, feature_size)`` without classes.

    The image is cut into patches. Each stage has blocks of linear attention (O(N), ``elu(x) + 1`` features, cascaded
    heads on their own splits of the channels) and feed-forward networks with a depthwise convolution on the token grid.
    Between stages, 2x2 tokens are merged into one with twice the channels. A layer norm and average pooling follow.
    ``feature_size`` is ``embed_dim * 2^(stages - 1)``.

    ``compat=True`` computes what Edifice's code computes: heads that are slices of projections of all channels, no
    cascade, a fixed blur along the flattened tokens in place of the depthwise convolution, and no downsampling of the
    grid. It serves to compare with Edifice and to use parameters trained with it.

    Args:
        **options: the options of Edifice and three of ours, see :class:`EfficientViTConfig`; all have defaults.

    Raises:
        ConfigError: an unknown option, or a value of a wrong type or out of range.
        InputError: when called with an image that is too small.
    """

    name = "edifice_efficient_vit"
    config = EfficientViTConfig
    network = EfficientViTBackbone

    @classmethod
    @_from_options
    def build(
        cls,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (1, 2, 3),
        num_heads: Sequence[int] = (4, 4, 4),
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        cascade: Literal["output", "input"] = "output",
        downsample: Literal["spatial", "channels"] = "spatial",
        compat: bool = False,
    ) -> Self:
        """Build the model; equivalent to calling the class. :class:`EfficientViTConfig` explains the options."""
        ...


class MambaVision(_Model):
    """Edifice's MambaVision: ``(B, in_channels, H, W) -> (B, num_classes)``, or ``(B, 8 * dim)`` without classes.

    There are two stages of convolutions, then two stages of Mamba mixers and multi-head attention within windows. A
    layer norm over the channels and average pooling follow. ``num_heads`` is the number of attention heads, ``dropout``
    the rate of stochastic depth.

    ``compat=True`` computes what Edifice's code computes: attention with a single head; attention and scan over the
    whole map; a scan with a fixed ``A`` (whose first state never decays) and without ``D``; and a last norm over the
    width, so that the features hardly depend on the image (not at all for an image of 32 pixels) and the weights fit
    only one ``image_size``.

    Args:
        **options: the options of Edifice and two of ours, see :class:`MambaVisionConfig`; all have defaults.

    Raises:
        ConfigError: an unknown option, or a value of a wrong type or out of range.
        InputError: when called with an image that is too small, or, with ``compat``, of another width.
    """

    name = "edifice_mamba_vision"
    config = MambaVisionConfig
    network = MambaVisionBackbone

    @classmethod
    @_from_options
    def build(
        cls,
        *,
        image_size: int = 224,
        in_channels: int = 3,
        dim: int = 80,
        depths: Sequence[int] = (1, 3, 8, 4),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        d_state: int = 8,
        d_conv: int = 3,
        num_classes: int | None = None,
        window_size: Sequence[int] = (14, 7),
        compat: bool = False,
    ) -> Self:
        """Build the model; equivalent to calling the class. :class:`MambaVisionConfig` explains the options."""
        ...

    @staticmethod
    def tiny_config() -> dict[str, Any]:
        """Options of the tiny model, 32 million parameters."""
        return {"dim": 80, "depths": [1, 3, 8, 4], "num_heads": [2, 4, 8, 16]}

    @staticmethod
    def small_config() -> dict[str, Any]:
        """Options of the small model, 50 million parameters."""
        return {"dim": 96, "depths": [3, 3, 7, 5], "num_heads": [2, 4, 8, 16]}

    @staticmethod
    def base_config() -> dict[str, Any]:
        """Options of the base model, 98 million parameters."""
        return {"dim": 128, "depths": [3, 3, 10, 5], "num_heads": [2, 4, 8, 16]}

    @staticmethod
    def _head(config: Any, num_classes: int) -> PooledHead:
        return _mambavision_head(config.dims[-1], num_classes, image_size=config.image_size, compat=config.compat)


def _network(model: type[_Model], in_chans: int, **options: Any) -> Backbone:
    return model.network(build_config(model.config, {"in_channels": in_chans, **options}, model.name))


_IMAGE_SIZE = "side of the images, default 224; it limits the size only with compat, or where it is below 32"
_COMPAT = "True: compute what Edifice's code computes instead of what its documentation describes; default False"
register(
    Family(
        name="edifice_efficient_vit",
        paper="Edifice 0.2.0, after arXiv 2305.07027",
        variants={EfficientViT.name: Variant(partial(_network, EfficientViT), PooledHead)},
        convert=edifice_efficientvit.convert,
        implied=edifice_efficientvit.implied,
        options={
            "image_size": _IMAGE_SIZE,
            "patch_size": "side of a patch, default 16",
            "embed_dim": "channels of the first stage, default 64; each further stage has twice as many",
            "depths": "blocks of each stage, default (1, 2, 3); any number of stages",
            "num_heads": "attention heads of each stage, default (4, 4, 4)",
            "mlp_ratio": "hidden channels of the feed-forward network over those of the stage, default 4",
            "cascade": "where a head's output is added in the next head: 'output' (default) or 'input'",
            "downsample": "'spatial' (default): 2x2 tokens are merged; 'channels': the token grid keeps its size",
            "compat": _COMPAT,
        },
    )
)
register(
    Family(
        name="edifice_mamba_vision",
        paper="Edifice 0.2.0, after arXiv 2407.08083",
        variants={MambaVision.name: Variant(partial(_network, MambaVision), _mambavision_head)},
        convert=edifice_mambavision.convert,
        implied=edifice_mambavision.implied,
        options={
            "image_size": _IMAGE_SIZE,
            "dim": "channels of the first stage, default 80; each further stage has twice as many",
            "depths": "blocks of each of the four stages, default (1, 3, 8, 4)",
            "num_heads": "attention heads of each stage, default (2, 4, 8, 16); the first two stages have no attention",
            "mlp_ratio": "hidden channels of the feed-forward networks over those of the stage, default 4",
            "dropout": "stochastic depth of the last block in training, default 0",
            "d_state": "states per channel of the scan, default 8",
            "d_conv": "kernel size of the mixers' convolutions, default 3",
            "window_size": "sides of the windows of the last two stages, in tokens, default (14, 7)",
            "compat": _COMPAT,
        },
        classifier_options={"image_size": _IMAGE_SIZE, "compat": _COMPAT},
    )
)
