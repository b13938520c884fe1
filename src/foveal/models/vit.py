"""Vision transformers with a choice of attention, to compare kinds of attention in the same network.

Notable:
  - widths and depths of ViT-Ti, S, B (arXiv 2010.11929, 2012.12877); a stem of 3x3 convolutions instead of one 16x16
    patch projection (arXiv 2106.14881), whose maps at strides 2, 4 and 8 complete the pyramid for clients of timm
  - fixed sine and cosine position embeddings, and average pooling instead of a class token (arXiv 2205.01580), so the
    network takes any H x W
  - ``attention="softmax" | "gqa" | "mqa" | "linear" | "linformer"``; ``shared_layers`` as in ALBERT (arXiv 1909.11942)

These are architectures without weights: none are published for this stem.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from ..layers.attention import Attention, LinformerAttention
from ..layers.classifiers import NormClassifier
from ..layers.conv import ConvNormAct
from ..layers.leaf import leaf
from ..layers.linear_attention import LinearSelfAttention
from ..layers.sharing import SharedLayers
from ..layers.transformer_block import TransformerBlock
from .registry import Backbone, Family, FeatureInfo, Variant, register

ClassifierHead = NormClassifier  #: its name for clients of this file


@dataclass(frozen=True)
class Config:
    """Sizes of one variant.

    Attributes:
        embed_dim: channels of a token, a multiple of 8.
        num_heads: attention heads.
        depth: blocks.
    """

    embed_dim: int
    num_heads: int
    depth: int = 12


CONFIGS = {
    "vit_tiny": Config(192, 3),
    "vit_small": Config(384, 6),
    "vit_base": Config(768, 12),
}
ATTENTIONS = ("softmax", "gqa", "mqa", "linear", "linformer")


def _attention(kind: str, config: Config, num_kv_heads: int | None, max_tokens: int, proj_dim: int) -> nn.Module:
    dim, heads = config.embed_dim, config.num_heads
    if kind == "softmax":
        return Attention(dim, heads)
    if kind == "gqa":
        return Attention(dim, heads, heads // 3 if num_kv_heads is None else num_kv_heads)
    if kind == "mqa":
        return Attention(dim, heads, 1)
    if kind == "linear":
        return LinearSelfAttention(dim, heads)
    return LinformerAttention(dim, heads, max_length=max_tokens, proj_dim=proj_dim)


class Positions(nn.Module):
    """Add fixed sines and cosines of row and column: keeps ``(B, C, H, W)``, C a multiple of 4 (arXiv 2205.01580)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + _positions(x)


@leaf
def _positions(x: Tensor) -> Tensor:
    """Return the position embeddings for ``x`` in its dtype, ``(C, H, W)``."""
    quarter = x.shape[1] // 4
    frequencies = torch.exp(torch.arange(quarter, device=x.device) * (-math.log(10000.0) / max(quarter - 1, 1)))
    rows, columns = (torch.arange(n, device=x.device).unsqueeze(-1) * frequencies for n in x.shape[-2:])
    y = torch.cat([rows.sin(), rows.cos()], dim=-1).T.unsqueeze(-1).expand(-1, -1, x.shape[-1])  # (C / 2, H, W)
    z = torch.cat([columns.sin(), columns.cos()], dim=-1).T.unsqueeze(1).expand(-1, x.shape[-2], -1)
    return torch.cat([z, y]).to(x.dtype)


class ViT(Backbone):
    """Backbone: ``(B, in_chans, H, W) ->`` maps at strides 16 and 32 (its mean over 2x2), finest first, rounded up.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.
        attention: one of :data:`ATTENTIONS`. "softmax": multi-head attention. "gqa": groups of three heads share keys
            and values. "mqa": all heads share them. "linear": linear attention with ``elu(x) + 1``. "linformer":
            attention to mixtures of the tokens.
        num_kv_heads: only for "gqa": heads of keys and values, default a third of the heads.
        max_tokens: only for "linformer": largest number of tokens; there is one token per 16x16 pixels.
        proj_dim: only for "linformer": number of mixtures.
        shared_layers: ``False``: every layer has its own parameters. ``True`` or 1: all layers share theirs. Another
            number: that many different blocks, each shared by neighbouring layers.

    Raises:
        ConfigError: an unknown attention, ``num_kv_heads`` without "gqa" or not a divisor of the heads, or more blocks
            than layers.
        InputError: a side of the image is below 32 pixels; "linformer": more tokens than ``max_tokens``.
    """

    option_blocks = MappingProxyType(
        dict.fromkeys(("attention", "num_kv_heads", "max_tokens", "proj_dim"), TransformerBlock)
    )

    def __init__(
        self,
        config: Config,
        in_chans: int = 3,
        *,
        attention: str = "softmax",
        num_kv_heads: int | None = None,
        max_tokens: int = 1024,
        proj_dim: int = 64,
        shared_layers: bool | int = False,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ConfigError(f"unknown attention {attention!r}{nearest(str(attention), ATTENTIONS)}")
        if num_kv_heads is not None and attention != "gqa":
            raise ConfigError(
                f"num_kv_heads={num_kv_heads} is only for attention='gqa'; leave it out for {attention!r}"
            )
        dim = config.embed_dim
        widths = (dim // 8, dim // 4, dim // 2, dim)
        convs = [
            ConvNormAct(previous, width, 3, 2, act=nn.ReLU)
            for previous, width in zip((in_chans, *widths), widths, strict=False)
        ]
        self.stem = nn.Sequential(*convs, nn.Conv2d(dim, dim, 1), Positions())
        blocks = SharedLayers(
            lambda: TransformerBlock(dim, _attention(attention, config, num_kv_heads, max_tokens, proj_dim)),
            config.depth,
            int(shared_layers) or config.depth,
        )
        self.stages = nn.ModuleList([blocks, nn.AvgPool2d(2, ceil_mode=True)])
        self.feature_info = [FeatureInfo(dim, 16), FeatureInfo(dim, 32)]
        self.num_heads = config.num_heads

    def block_options(self, index: int, kind: str) -> dict[str, Any]:
        return {"num_heads": self.num_heads} if kind in ("softmax_attention", "window_attention") else {}


_BLOCK = re.compile(r"(?:backbone\.)?stages\.0\.(\d+)\.(attention\.(?:linear_qkv|qkv|proj_k|query)(?:\.weight)?)$")


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return our layout unchanged, ``None`` for anything else: there are no published weights in another layout."""
    ours = "backbone.stages.0.0.norm1.weight" in state and any(_BLOCK.match(key) for key in state)
    return dict(state) if ours else None


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a state dict: the kind of attention, its sizes, and the number of different blocks."""
    first_block = {m[2]: value for key, value in state.items() if (m := _BLOCK.match(key)) and m[1] == "0"}
    dim = state["backbone.stages.0.0.norm1.weight"].shape[0]
    row = next((row for row in CONFIGS.values() if row.embed_dim == dim), None)
    if row is None:
        return {}
    options: dict[str, Any] = {}
    if "attention.linear_qkv.weight" in first_block:
        options["attention"] = "linear"
    elif "attention.proj_k" in first_block:
        tokens, proj_dim = first_block["attention.proj_k"].shape
        options |= {"attention": "linformer", "max_tokens": tokens, "proj_dim": proj_dim}
    elif (kv_channels := first_block["attention.qkv.weight"].shape[0] - dim) < 2 * dim:
        options |= {"attention": "gqa", "num_kv_heads": kv_channels * row.num_heads // (2 * dim)}
    blocks = len({m[1] for key in state if (m := _BLOCK.match(key))})
    return options | ({"shared_layers": blocks} if blocks < row.depth else {})


register(
    Family(
        name="vit",
        paper="arXiv 2010.11929",
        variants={
            name: Variant(backbone=partial(ViT, config), classifier=NormClassifier) for name, config in CONFIGS.items()
        },
        convert=convert,
        implied=implied,
        options={
            "attention": f"one of {', '.join(ATTENTIONS)}; default softmax",
            "num_kv_heads": 'only with attention="gqa": heads of keys and values, default a third of the heads',
            "max_tokens": 'only with attention="linformer": most tokens, one per 16x16 pixels, default 1024',
            "proj_dim": 'only with attention="linformer": mixtures of tokens, default 64',
            "shared_layers": "True: all layers share their parameters; a number: that many different blocks",
        },
    )
)
