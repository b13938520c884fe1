"""The vision models of Edifice, a library for Elixir, under its names and with its options.

``EfficientViT`` and ``MambaVision`` have what Edifice's modules of these names have: ``build``, ``output_size``,
``build_backbone``, ``feature_size``, ``input_shape``, and the second one ``tiny_config``, ``small_config`` and
``base_config``. As ``edifice_efficient_vit`` and ``edifice_mamba_vision`` they are models like all others.

What that library's code computes is not what its pages describe: no head has channels of its own or hands anything on,
the token grid is never downsampled, and MambaVision's last norm makes its features almost independent of the image.
The models here are those of the pages; ``compat=True`` computes what the code does. ``docs/edifice.md`` lists all
differences.

Source: Edifice 0.2.0 (MIT licence), its documentation and behaviour; there are no published weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import build_config
from ...errors import InputError
from ...info import ModelInfo, attach
from ...layers.conv import LayerNorm2d
from ...layers.resample import ceil_div
from ..registry import Backbone, Family, Variant, register
from . import efficientvit as edifice_efficientvit
from . import mambavision as edifice_mambavision
from .efficientvit import EfficientViTBackbone, EfficientViTConfig
from .mambavision import MambaVisionBackbone, MambaVisionConfig


class WidthNorm(nn.Module):
    """Layer norm over the width of ``(B, C, H, W)``: what a norm of the last axis comes to, channels being first.

    Args:
        image_size: width of the images, in pixels; there is a weight per column at stride 32.

    Raises:
        InputError: the map is of another width.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.weight = nn.Parameter(torch.ones(ceil_div(image_size, 32)))
        self.bias = nn.Parameter(torch.zeros(ceil_div(image_size, 32)))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.weight):
            raise InputError(
                f"compat=True has weights for images of {self.image_size}x{self.image_size} pixels only: resize to "
                "that, give another image_size, or leave out compat"
            )
        # Relative to the first column, which is exact where neighbours are alike: over two or three columns hardly
        # anything but their differences is left, and torch's layer norm gets these to five digits only.
        y = x - x[..., :1]
        y = y - y.mean(-1, keepdim=True)
        return y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class PooledHead(nn.Module):
    """Norm, average over positions, classifier: ``(B, in_chans, H, W) -> (B, num_classes)``.

    ``num_classes=0`` returns the pooled features, ``(B, in_chans)``, and so does ``forward(x, pre_logits=True)``. The
    norm is over channels by default.
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


class _Model(nn.Module):
    """What both have: options in, a backbone and a head out, and sizes told from the options alone."""

    name: ClassVar[str]  # in the registry
    config: ClassVar[type[Any]]  # the dataclass of the options
    network: ClassVar[type[Any]]  # the backbone that it describes

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = self._config(options)
        num_classes = config.num_classes or 0
        self.backbone = self.network(config)
        self.head = self._head(config, num_classes)
        own = {key: value for key, value in options.items() if key not in ("in_channels", "num_classes")}
        described = ModelInfo(self.name, "classify", num_classes, config.in_channels, own)
        attach(self, described)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])

    @classmethod
    def build(cls, **options: Any) -> Self:
        """Build the model; the same as calling the class."""
        return cls(**options)

    @classmethod
    def build_backbone(cls, **options: Any) -> Self:
        """Build it without a classifier, whatever ``num_classes`` says: outputs are ``(B, feature_size)``."""
        return cls(**{**options, "num_classes": None})

    @classmethod
    def output_size(cls, **options: Any) -> int:
        """Length of an output: ``num_classes``, or ``feature_size`` without."""
        return cls._config(options).num_classes or cls.feature_size(**options)

    @classmethod
    def feature_size(cls, **options: Any) -> int:
        """Length of the pooled features."""
        return cls._config(options).dims[-1]

    @classmethod
    def input_shape(cls, **options: Any) -> tuple[None, int, int, int]:
        """``(None, in_channels, image_size, image_size)``, where ``None`` stands for any batch."""
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

    Patches; stages of linear attention (O(N), ``elu(x) + 1`` features, each head on its own channel split, cascaded)
    and feed-forward networks with a depthwise convolution on the token grid; between stages 2x2 tokens become one of
    twice the channels; layer norm and average. ``feature_size`` is ``embed_dim * 2^(stages - 1)``.

    ``compat=True`` is Edifice's code: heads that are slices of full projections, no cascade, a fixed blur along the
    flattened tokens for the depthwise convolution, and no downsampling of the grid. It is there to check against
    Edifice and to use parameters trained with it.

    Args:
        **options: those of Edifice and three of ours, see :class:`EfficientViTConfig`; all have defaults.

    Raises:
        ConfigError: an unknown option, or a value of a wrong type or out of range.
        InputError: when called with an image that is too small.
    """

    name = "edifice_efficient_vit"
    config = EfficientViTConfig
    network = EfficientViTBackbone


class MambaVision(_Model):
    """Edifice's MambaVision: ``(B, in_channels, H, W) -> (B, num_classes)``, or ``(B, 8 * dim)`` without classes.

    Two stages of convolutions, two of Mamba mixers and then multi-head attention within windows; layer norm over the
    channels and average. ``num_heads`` splits heads, ``dropout`` is the rate of drop path.

    ``compat=True`` is Edifice's code: attention with a single head and over the whole map, as the scan; a scan with a
    fixed ``A`` (whose first state never decays) and without ``D``; a last norm over the width, so that the features
    hardly depend on the image (not at all for one of 32 pixels), and one ``image_size`` per set of weights.

    Args:
        **options: those of Edifice and two of ours, see :class:`MambaVisionConfig`; all have defaults.

    Raises:
        ConfigError: an unknown option, or a value of a wrong type or out of range.
        InputError: when called with an image that is too small, or with ``compat`` of another width.
    """

    name = "edifice_mamba_vision"
    config = MambaVisionConfig
    network = MambaVisionBackbone

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


_IMAGE_SIZE = "side of the images, default 224; only with compat it matters beyond allowing images below 32"
_COMPAT = "True: compute what Edifice's code computes, instead of what its page describes"
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
            "embed_dim": "channels of the first stage, default 64; each stage doubles them",
            "depths": "blocks of each stage, default (1, 2, 3); any number of stages",
            "num_heads": "attention heads of each stage, default (4, 4, 4)",
            "mlp_ratio": "hidden over embedding channels, default 4",
            "cascade": "what a head hands on: 'output' (default) or 'input'",
            "downsample": "'spatial' (default): 2x2 tokens become one; 'channels': the grid stays",
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
            "dim": "channels of the first stage, default 80; each of the four stages doubles them",
            "depths": "blocks of each stage, default (1, 3, 8, 4)",
            "num_heads": "attention heads of each stage, default (2, 4, 8, 16); the first two have none",
            "mlp_ratio": "hidden over embedding channels, default 4",
            "dropout": "largest rate of drop path, default 0",
            "d_state": "states per channel of the scan, default 8",
            "d_conv": "kernel size of the mixers' convolutions, default 3",
            "window_size": "sides of the windows of the last two stages, in tokens, default (14, 7)",
            "compat": _COMPAT,
        },
        classifier_options={"image_size": _IMAGE_SIZE, "compat": _COMPAT},
    )
)
