"""Kinds of blocks that a stage of a backbone can be made of: one line of a table each.

All keep ``(B, C, H, W)`` for any H and W, so a kind can take the place of another; see :mod:`foveal.models.hybrid`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ConfigError
from .attention import Attention
from .conv import InvertedResidual
from .efficientvit_block import EfficientViTBlock
from .mamba_mixer import MambaMixer
from .transformer_block import TransformerBlock
from .window_blocks import MixerBlock, WindowBlocks, init_linear

_HEAD_DIM = 32  #: largest number of channels of a head


class BlockStage(nn.Module):
    """Downsample, then blocks: ``(B, in_chans, H, W) -> (B, channels, H', W')``."""

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Place(NamedTuple):
    """Where blocks stand.

    Attributes:
        channels: of the map.
        stride: of the map, in pixels of the image.
        drop_path: rate of stochastic depth of each block; their number is that of the blocks.
    """

    channels: int
    stride: int
    drop_path: Sequence[float]


class StageBlock(NamedTuple):
    """A kind of block.

    Attributes:
        text: description in one line.
        build: ``(place, **options) -> modules``, one for each block or one for all of them.
        undecayed: last parts of the names of parameters without weight decay, in addition to norms and biases.
    """

    text: str
    build: Callable[..., list[nn.Module]]
    undecayed: tuple[str, ...] = ()


def head_dim(channels: int) -> int:
    """Channels of a head where a family has no number of its own: the largest divisor up to 32."""
    return max(dim for dim in range(1, _HEAD_DIM + 1) if channels % dim == 0)


def window_size(stride: int) -> int:
    """Side of the windows of MambaVision at this stride: 14 positions, 7 at stride 32 and above."""
    return 14 if stride < 32 else 7


def _convolutions(place: Place, **options: Any) -> list[nn.Module]:
    options = {"act": nn.Hardswish} | options
    return [InvertedResidual(place.channels, place.channels, drop_path=rate, **options) for rate in place.drop_path]


def _linear_attention(place: Place, **options: Any) -> list[nn.Module]:
    options = {"head_dim": head_dim(place.channels)} | options
    return [EfficientViTBlock(place.channels, drop_path=rate, **options) for rate in place.drop_path]


def _softmax_attention(place: Place, **options: Any) -> list[nn.Module]:
    heads = options.get("num_heads", place.channels // head_dim(place.channels))
    return [
        TransformerBlock(place.channels, Attention(place.channels, heads), drop_path=rate) for rate in place.drop_path
    ]


def _window_attention(place: Place, **options: Any) -> list[nn.Module]:
    heads = options.pop("num_heads", place.channels // head_dim(place.channels))
    return _in_windows(place, lambda: Attention(place.channels, heads), **options)


def _scan(place: Place, **options: Any) -> list[nn.Module]:
    if place.channels % 2:
        raise ConfigError(f"stage_blocks: scan needs an even number of channels, this stage has {place.channels}")
    options.pop("num_heads", None)
    return _in_windows(place, lambda: MambaMixer(place.channels), **options)


def _in_windows(
    place: Place,
    mixer: Callable[[], nn.Module],
    *,
    layer_scale: float | None = None,
    window: int | str | None = None,
    neutral_padding: bool = True,
) -> list[nn.Module]:
    blocks = (MixerBlock(place.channels, mixer(), layer_scale=layer_scale, drop_path=r) for r in place.drop_path)
    size = window_size(place.stride) if window is None else window
    return [WindowBlocks(blocks, size, neutral_padding=neutral_padding).apply(init_linear)]


STAGE_BLOCKS: dict[str, StageBlock] = {
    "convolution": StageBlock("inverted residual of MobileNetV2", _convolutions),
    "linear_attention": StageBlock("multi-scale linear attention and convolutions of EfficientViT", _linear_attention),
    "window_attention": StageBlock("softmax attention in windows and MLP of MambaVision", _window_attention),
    "scan": StageBlock("selective scan in windows and MLP of MambaVision", _scan, MambaMixer.undecayed),
    "softmax_attention": StageBlock("softmax attention over the whole map and MLP of ViT", _softmax_attention),
}
