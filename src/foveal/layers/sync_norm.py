"""Batch normalisation over the whole batch of a ``torchrun`` group.

torch's SyncBatchNorm does not take CPU tensors, so this module has its arithmetic for the CPU; accelerators use
torch's.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ONE_VALUE = "Expected more than 1 value per channel"  #: beginning of the ValueError of batch norms in training


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm inside ``model`` by one with statistics over all processes; state dict keys stay."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            group_norm = {nn.BatchNorm2d: GroupBatchNorm2d, nn.BatchNorm1d: GroupBatchNorm1d}.get(type(child))
            if group_norm and child.affine:
                setattr(parent, name, group_norm.like(child))
    return model


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return all batch norms of ``model``, of any dimension."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with training statistics over all processes: ``(B, C, H, W) -> (B, C, H, W)``."""

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> GroupBatchNorm2d:
        """Make a norm that has the settings of ``norm`` and shares its parameters and buffers."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters, new._buffers = norm._parameters, norm._buffers
        return new.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        y, mean, variance, count = _GroupNorm.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return y


class GroupBatchNorm1d(GroupBatchNorm2d):
    """BatchNorm1d with training statistics over all processes: ``(B, C) -> (B, C)``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, None, None])[:, :, 0, 0]


class _GroupNorm(torch.autograd.Function):
    """Normalise by mean and variance over all processes. The gradient includes their dependence on all inputs."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x.float() if x.dtype.itemsize == 2 else x, (0, 2, 3), correction=0)
        count = mean.new_tensor([x.numel() / x.shape[1]])
        sums = _sum_over_processes(torch.cat([mean * count, count]))
        if sums[-1] <= 1:
            raise ValueError(f"{ONE_VALUE} when training, got input size {x.shape} in all processes together")
        group_mean, group_count = sums[:-1] / sums[-1], sums[-1]
        # Squares about the common mean, because the difference of two large sums of squares would lose digits.
        squares = (variance + (mean - group_mean).square()) * count
        group_variance = _sum_over_processes(squares) / group_count
        y = F.batch_norm(x, group_mean, group_variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, group_mean, torch.rsqrt(group_variance + eps), group_count)
        ctx.mark_non_differentiable(group_mean, group_variance, group_count)
        return y, group_mean, group_variance, group_count

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dy = gradients[0]
        own = dy.float() if dy.dtype.itemsize == 2 else dy
        normed = (x - mean[:, None, None]) * scale[:, None, None]
        d_bias, d_weight = own.sum((0, 2, 3)), (own * normed).sum((0, 2, 3))
        common_bias, common_weight = (_sum_over_processes(torch.stack([d_bias, d_weight])) / count).unbind()
        dx = own - common_bias[:, None, None]
        dx.addcmul_(normed, common_weight[:, None, None], value=-1)
        dx.mul_((scale * weight)[:, None, None])
        return dx.to(x.dtype), d_weight, d_bias, None


def _sum_over_processes(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total
