"""Blocks of MambaVision: a mixer of tokens and an MLP, inside windows of a map (arXiv 2407.08083)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import Mlp
from .windows import Part, Windows, to_map

WHOLE = "whole"  #: value of ``window_size`` for a single window that is the whole map


class MixerBlock(nn.Module):
    """Pre-norm mixer and MLP, each with a residual connection, on ``(N, L, C)``; the shape is kept."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(self, embed_dim: int, mixer: nn.Module, *, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        self.drop_path = DropPath(drop_path)
        for name in ("gamma_1", "gamma_2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((embed_dim,), layer_scale))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        y = self.mixer(self.norm1(x), valid)
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)


class WindowBlocks(nn.Module):
    """Cut a map into windows, mix their tokens in blocks, join them again; ``(B, C, H, W)`` keeps its shape.

    Args:
        blocks: each called with tokens ``(N, L, C)`` and a mask of those that are not padding, or ``None``.
        window_size: tokens on a side of a window, :data:`WHOLE` for one window that is the whole map.
        neutral_padding: whether the padding of a window has no effect on the tokens of the map.
        downsample: module before the windows, which may change the shape.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        window_size: int | str,
        *,
        neutral_padding: bool,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.window_size, self.neutral_padding = window_size, neutral_padding
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)

    def parts(self) -> list[Part]:
        """The parts of the module, for computing large maps in pieces."""
        window = None if isinstance(self.window_size, str) else self.window_size
        return [Part(self.downsample, 0), Part(self._mix_windows, window)]

    def forward(self, x: Tensor) -> Tensor:
        return self._mix_windows(self.downsample(x))

    def _mix_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if isinstance(self.window_size, str):
            return to_map(self._mix(x.flatten(2).transpose(1, 2)), height, width)
        windows = Windows(self.window_size, height, width, neutral=self.neutral_padding, device=x.device)
        valid = windows.valid(x.shape[0]) if self.neutral_padding else None
        return windows.join(self._mix(windows.cut(x), valid))

    def _mix(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, valid)
        return tokens


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers as published, also the projection of the step size, where Mamba differs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
