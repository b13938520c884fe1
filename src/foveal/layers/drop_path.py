"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError


class DropPath(nn.Module):
    """In training, set a residual branch to zero for random samples and scale the others to keep the mean.

    Takes any shape with the batch first and keeps it. Source: "Deep Networks with Stochastic Depth", arXiv 1603.09382.

    Args:
        rate: probability of dropping a sample, 0 to below 1.

    Raises:
        ConfigError: another number.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"drop path rate {rate}: give 0 to below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep) / keep)


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return rates that rise linearly from 0 at the first block to ``rate`` at the last, one list per stage.

    They are plain numbers, not a tensor, so that a model can be built on the meta device.
    """
    step, rates = rate / max(sum(depths) - 1, 1), iter(range(sum(depths)))
    return [[step * next(rates) for _ in range(depth)] for depth in depths]


def spread_drop_path(module: nn.Module, rate: float) -> int:
    """Set the rates of all residual branches of ``module`` that can be dropped; return their number n.

    Branch i, from 1 in the order in which they run, gets ``rate * i / n``, as in EfficientViT's training (arXiv
    2205.14756).
    """
    paths = [
        path
        for part in module.modules()
        if isinstance(path := getattr(part, "drop_path", None), DropPath) and getattr(part, "residual", True)
    ]
    for number, path in enumerate(paths, start=1):
        path.rate = rate * number / len(paths)
    return len(paths)
