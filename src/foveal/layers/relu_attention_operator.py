"""The fused ReLU attention as a torch operator, ``foveal::relu_attention``, for gradients and torch.compile."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .leaf import constant

_library = torch.library.Library("foveal", "FRAGMENT")
_library.define("relu_attention(Tensor heads, float eps) -> (Tensor, Tensor, Tensor)")
_library.define("relu_attention_backward(Tensor dout, Tensor heads, Tensor context, Tensor norm, float eps) -> Tensor")


def fused_relu_attention(heads: Tensor, eps: float) -> Tensor:
    """Return the ReLU linear attention of channel-major heads in Triton; differentiable once.

    Args:
        heads: queries, keys and values of each head, ``(B, H, 3 D, N)``, on an NVIDIA GPU;
            float32 or 16-bit.
        eps: epsilon of the normaliser.

    Returns:
        ``(B, H, D, N)`` in the dtype of ``heads``. All arithmetic is float32.
    """
    if torch.is_grad_enabled() and heads.requires_grad:
        return _Attention.apply(heads, eps)
    return torch.ops.foveal.relu_attention.default(heads, eps)[0]


def has_fused_kernel(x: Tensor) -> bool:
    """Whether the kernels run for ``x``: on an NVIDIA GPU with Triton, and not for a graph that is exported."""
    if x.device.type != "cuda" or x.dtype == torch.float64 or torch.version.hip is not None:
        return False
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not exporting and _has_triton()


@constant
def _has_triton() -> bool:
    return find_spec("triton") is not None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, context, norm = torch.ops.foveal.relu_attention.default(heads, eps)
        ctx.save_for_backward(heads, context, norm)
        ctx.eps = eps
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.foveal.relu_attention_backward.default(dout, *ctx.saved_tensors, ctx.eps), None


@torch.library.impl(_library, "relu_attention", "CompositeExplicitAutograd")
def _(heads: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from . import relu_attention_gpu  # imports triton

    return relu_attention_gpu.forward(heads, eps)


@torch.library.impl(_library, "relu_attention_backward", "CompositeExplicitAutograd")
def _(dout: Tensor, heads: Tensor, context: Tensor, norm: Tensor, eps: float) -> Tensor:
    from . import relu_attention_gpu

    return relu_attention_gpu.backward(dout, heads, context, norm, eps)


@torch.library.register_fake("foveal::relu_attention", lib=_library)
def _(heads: Tensor, _eps: float) -> tuple[Tensor, Tensor, Tensor]:
    b, h, rows, n = heads.shape
    d, wide = rows // 3, torch.float32
    sums = (heads.new_empty(b, h, d, d, dtype=wide), heads.new_empty(b, h, d, dtype=wide))
    return heads.new_empty(b, h, d, n), *sums


@torch.library.register_fake("foveal::relu_attention_backward", lib=_library)
def _(_dout: Tensor, heads: Tensor, *_: object) -> Tensor:
    return torch.empty_like(heads, memory_format=torch.contiguous_format)
