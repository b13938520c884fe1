"""Multi-scale linear attention in two parts: keys and values, of which only sums remain, and queries.

The sums of a piece need no queries, and the output of a piece needs neither keys nor values. So the projection to q, k
and v and the aggregation of each scale, all of which keep the channels of q, k and v apart, are computed once for every
place although each place is visited twice.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..layers.leaf import leaf
from ..layers.linear_attention import MultiScaleLinearAttention
from ..layers.packed import PackedConv2d
from .module_parts import Parts, has_parts
from .operations import KeySums, attend


@leaf
def sum_keys(head_dim: int, *keys_and_values: Tensor) -> Tensor:
    """The sums of linear attention over all places, unscaled; see :class:`~.operations.KeySums`."""
    return KeySums(head_dim).partial(keys_and_values, None).float()


@leaf
def attend_heads(head_dim: int, eps: float, sums: Tensor, *queries: Tensor) -> Tensor:
    """What the queries of all scales attend to, given the sums."""
    return attend(queries, sums, head_dim, eps)


class SplitAttention(nn.Module):
    """The same function as a :class:`MultiScaleLinearAttention`, whose weights it shares or copies in parts."""

    def __init__(self, attention: MultiScaleLinearAttention) -> None:
        super().__init__()
        self.head_dim, self.eps = attention.head_dim, attention.eps
        self.attends = attention.global_attention
        self.keys = _part(attention, [1, 2] if self.attends else [2])
        self.key_scales = nn.ModuleList(self._scale(branch, [1, 2]) for branch in attention.aggregate)
        if self.attends:
            self.queries = _part(attention, [0])
            self.query_scales = nn.ModuleList(self._scale(branch, [0]) for branch in attention.aggregate)
        self.project = attention.project

    def _scale(self, branch: nn.Module, parts: list[int]) -> nn.Module:
        """The aggregation of one scale for q (0), k (1) or v (2), or several of them."""
        depthwise, pointwise = branch.children()
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        parts = parts if self.attends else [2]
        return nn.Sequential(
            _with_rows(depthwise, _rows(depthwise.out_channels, self.head_dim, parts), grouped=True),
            _with_rows(pointwise, _rows(pointwise.out_channels, self.head_dim, parts), grouped=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x)
        scales = [keys, *(branch(keys) for branch in self.key_scales)]
        if not self.attends:
            return self.project(torch.cat(scales, dim=1))
        sums = sum_keys(self.head_dim, *scales)
        queries = self.queries(x)
        scales = [queries, *(branch(queries) for branch in self.query_scales)]
        return self.project(attend_heads(self.head_dim, self.eps, sums, *scales))


def _part(attention: MultiScaleLinearAttention, parts: list[int]) -> nn.Conv2d:
    qkv = attention.qkv
    return _with_rows(qkv, _rows(qkv.out_channels, attention.head_dim, parts), grouped=False)


def _rows(channels: int, head_dim: int, parts: list[int]) -> Tensor:
    """The channels of q (0), k (1) or v (2) among those of all heads, which are q, k, v of one head after the other."""
    return torch.arange(channels).reshape(-1, 3, head_dim)[:, parts].flatten()


def _with_rows(conv: nn.Conv2d, rows: Tensor, *, grouped: bool) -> nn.Conv2d:
    """A convolution to the output channels ``rows`` only; if it is grouped, whole groups, with their inputs."""
    weight = conv.weight.detach()[rows.to(conv.weight.device)]
    groups = len(rows) * conv.groups // conv.out_channels if grouped else conv.groups
    size = (weight.shape[1] * groups, len(rows), conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    part = nn.Conv2d(*size, groups, bias=False, device="meta")  # pyright: ignore[reportArgumentType]
    part.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        part.bias = nn.Parameter(conv.bias.detach()[rows.to(conv.bias.device)], requires_grad=False)
    return PackedConv2d(part, conv.act, rows=conv.rows) if isinstance(conv, PackedConv2d) else part


def split_modules(model: nn.Module) -> nn.Module:
    """A copy of ``model``, which shares its parameters, whose modules are split into what can be one step.

    Linear attention becomes :class:`SplitAttention`, and a module that mixes places in windows its parts.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiScaleLinearAttention):
                setattr(parent, name, SplitAttention(child))
            elif has_parts(child):
                setattr(parent, name, Parts(child))
    return copied
