"""How a model starts: residual branches that are zero at first, and branches that are dropped at random."""

from __future__ import annotations

from torch import nn

from ..errors import ConfigError
from ..layers.drop_path import spread_drop_path
from ..layers.zero_init import zero_init_last
from .settings import CommonSettings


def start_model(model: nn.Module, config: CommonSettings) -> None:
    """Apply ``drop_path`` and ``zero_init_last`` to the backbone of a new model.

    Raises:
        ConfigError: the backbone has no such branches, or has weights, whose branches are not to be zeroed.
    """
    backbone = getattr(model, "backbone", None) or model
    if config.drop_path is not None and not spread_drop_path(backbone, config.drop_path):
        raise ConfigError(f"drop_path={config.drop_path}: {config.model} has no residual branches that can be dropped")
    if config.zero_init_last:
        if config.weights or "." in config.model:
            raise ConfigError(
                "zero_init_last is for random weights: it would overwrite norms of the weights that the run starts "
                "from; leave one of the two out"
            )
        if not zero_init_last(backbone):
            raise ConfigError(f"zero_init_last: {config.model} has no residual branch that ends in a batch norm")
