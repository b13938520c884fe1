"""Multi-scale linear attention in two parts: keys and values, of which only sums remain, and queries.

The sums of a piece need no queries, and the output of a piece needs neither keys nor values. So the projection to q, k
and v and the aggregation of each scale, all of which keep the channels of q, k and v apart, are computed once for every
place although each place is visited twice.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..layers.attention_rows import select_rows
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
        self.keys = _with_rows(attention.qkv, self.head_dim, [1, 2], grouped=False)
        self.key_scales = nn.ModuleList(self._scale(branch, [1, 2]) for branch in attention.aggregate)
        self.queries = _with_rows(attention.qkv, self.head_dim, [0], grouped=False)
        self.query_scales = nn.ModuleList(self._scale(branch, [0]) for branch in attention.aggregate)
        self.project = attention.project

    def _scale(self, branch: nn.Module, parts: list[int]) -> nn.Module:
        """The aggregation of one scale for q (0), k (1) or v (2), or several of them."""
        depthwise, pointwise = branch.children()
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        return nn.Sequential(*(_with_rows(conv, self.head_dim, parts, grouped=True) for conv in (depthwise, pointwise)))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x)
        scales = [keys, *(branch(keys) for branch in self.key_scales)]
        sums = sum_keys(self.head_dim, *scales)
        queries = self.queries(x)
        scales = [queries, *(branch(queries) for branch in self.query_scales)]
        return self.project(attend_heads(self.head_dim, self.eps, sums, *scales))


def _with_rows(conv: nn.Conv2d, head_dim: int, parts: list[int], *, grouped: bool) -> nn.Conv2d:
    """A convolution to q (0), k (1) or v (2) only; if it is grouped, from their inputs."""
    weight = select_rows(conv.weight.detach(), head_dim, parts)
    groups = len(weight) * conv.groups // conv.out_channels if grouped else conv.groups
    size = (weight.shape[1] * groups, len(weight), conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    part = nn.Conv2d(*size, groups, bias=False, device="meta")  # pyright: ignore[reportArgumentType]
    part.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        part.bias = nn.Parameter(select_rows(conv.bias.detach(), head_dim, parts), requires_grad=False)
    return PackedConv2d(part, conv.act, rows=conv.rows) if isinstance(conv, PackedConv2d) else part


def split_modules(model: nn.Module) -> nn.Module:
    """A copy of ``model``, which shares its parameters, whose modules are split into what can be one step.

    Linear attention becomes :class:`SplitAttention`, and a module that mixes places in windows its parts.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiScaleLinearAttention) and child.global_attention:
                setattr(parent, name, SplitAttention(child))
            elif has_parts(child):
                setattr(parent, name, Parts(child))
    return copied
