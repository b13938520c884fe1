"""Learned prompt tokens at the inputs of a backbone's stages, for any backbone and any size of image.

Visual prompt tuning (arXiv 2203.12119) gives the attention of a transformer further tokens, to which the positions of
an image attend. Convolutions and linear attention have no softmax over tokens that further ones could join. Prompts in
the form of maps or of frames around the image (arXiv 2203.17274) belong to one size of image, and a tile would see
another part of them than the whole image does. Here each position attends to the prompt tokens alone, and the result
is added to it: up to a gate, this is what keys and values prepended to attention compute (arXiv 2110.04366, section
3.1). Nothing depends on where a position is, so that any size, tiles and exported files with free sizes work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

MAX_TOKENS = 256  #: at the input of one stage


class PromptTokens(nn.Module):
    """Attention of each position to learned tokens, plus the position: ``(B, C, H, W) -> (B, C, H, W)``.

    At the start it changes nothing, because the values are zero.

    Args:
        channels: of the map.
        tokens: number of prompt tokens.
    """

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(tokens, channels) / channels**0.5)
        self.values = nn.Parameter(torch.zeros(channels, tokens))

    def forward(self, x: Tensor) -> Tensor:
        scores = F.conv2d(x, self.keys[:, :, None, None])  # B T H W
        return x + F.conv2d(scores.softmax(1), self.values[:, :, None, None])


class PromptedStage(nn.Sequential):
    """A stage behind its prompt tokens; the stage's keys get ``stage.`` before them."""

    tokens: PromptTokens
    stage: nn.Module

    def __init__(self, tokens: PromptTokens, stage: nn.Module) -> None:
        super().__init__()
        self.add_module("tokens", tokens)
        self.add_module("stage", stage)


def add_prompt_tokens(backbone: Any, tokens: int, in_chans: int) -> None:
    """Put prompt tokens before each stage of a backbone.

    Args:
        backbone: a :class:`~foveal.models.registry.Backbone`; it runs once, to show what its stages take.
        tokens: number of tokens for each stage, 1 to :data:`MAX_TOKENS`.
        in_chans: channels of the image.

    Raises:
        ConfigError: a stage takes something else than one map ``(B, C, H, W)``, or the number is out of range.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MAX_TOKENS:
        raise ConfigError(f"prompt_tokens={tokens!r}: give a whole number of 1 to {MAX_TOKENS}")
    stages: nn.ModuleList = backbone.stages
    shapes: list[tuple[int, ...]] = []
    hooks = [stage.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for stage in stages]
    parameter, training = next(backbone.parameters()), backbone.training
    image = torch.zeros(1, in_chans, backbone.min_size, backbone.min_size, device=parameter.device)
    try:
        with torch.no_grad():
            backbone.eval()(image.to(parameter.dtype))
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    channels = [shape[1] for shape in shapes if len(shape) == 4]
    known = [info.channels for info in backbone.feature_info[:-1]]  # of the maps between the stages
    if len(channels) != len(stages) or (len(known) == len(stages) - 1 and channels[1:] != known):
        raise ConfigError(f"prompt tokens need stages that take one map each; {type(backbone).__name__} has others")
    for index, count in enumerate(channels):
        stages[index] = PromptedStage(PromptTokens(count, tokens).to(parameter), stages[index])
