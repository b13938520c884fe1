"""Cascaded linear attention: its definition, the connections between heads, work in proportion to the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.errors import ConfigError
from foveal.layers.linear_attention import CascadedLinearAttention
from helpers import golden
from helpers.golden import largest


def head_outputs(layer: CascadedLinearAttention, x: Tensor, cascade: str) -> Tensor:
    """Compute the layer by its definition, with the N x N matrix of scores."""
    outs: list[Tensor] = []
    for split, qkv in zip(x.chunk(len(layer.qkv), dim=-1), layer.qkv, strict=True):
        q, k, v = qkv(split + outs[-1] if cascade == "input" and outs else split).chunk(3, dim=-1)
        q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
        scores = q @ k.transpose(1, 2)
        outs.append(scores @ v / (scores.sum(-1, keepdim=True) + layer.eps))
    if cascade == "output":
        outs = [out + (outs[i - 1] if i else 0) for i, out in enumerate(outs)]
    return layer.project(torch.cat(outs, dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("cascade", ["output", "input"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_cascaded_attention_is_its_definition(heads: int, cascade: Any) -> None:
    layer = golden.fill(CascadedLinearAttention(8, heads, cascade=cascade)).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    expected = head_outputs(layer, x, cascade)
    assert largest(layer(x) - expected) <= 1e-12
    if heads > 1:
        other = head_outputs(layer, x, "input" if cascade == "output" else "output")
        assert largest(other - expected) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("cascade", "reached"), [("output", [2, 3]), ("input", [2, 3, 4])])
def test_connections_between_heads(cascade: Any, reached: list[int]) -> None:
    """A change in one split changes its head and the next one ("output") or all later ones ("input"), none before."""
    layer = golden.fill(CascadedLinearAttention(20, 5, cascade=cascade))
    layer.project = nn.Identity()
    x = torch.randn(1, 6, 20)
    other = x.clone()
    other[..., 8:12] += 1  # of head 2
    changed = [largest(part) > 1e-6 for part in (layer(x) - layer(other)).chunk(5, dim=-1)]
    assert [head for head, differs in enumerate(changed) if differs] == reached


def test_attention_is_linear_in_the_tokens() -> None:
    layer = CascadedLinearAttention(16, 4)
    work = []
    for tokens in (64, 128, 256):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, tokens, 16))
        work.append(counter.get_total_flops())
    assert work[1] == 2 * work[0] > 0
    assert work[2] == 4 * work[0]


@pytest.mark.parametrize(("heads", "cascade"), [(3, "output"), (0, "output"), (2, "both")])
def test_impossible_cascades(heads: int, cascade: Any) -> None:
    with pytest.raises(ConfigError):
        CascadedLinearAttention(8, heads, cascade=cascade)
