"""The optimisers by name. A new one is a line of the table; settings import this file, so torch is imported late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Groups = Sequence[Mapping[str, Any]]


class Optimizer(NamedTuple):
    """An optimiser.

    Attributes:
        help: what it does.
        make: makes it from groups of parameters, the peak learning rate and the momentum.
        whole: whether it needs whole matrices, which parameters that are sharded (FSDP) are not.
    """

    help: str
    make: Callable[[Groups, float, float], Any]
    whole: bool = False


def _adamw(groups: Groups, lr: float, momentum: float) -> Any:
    import torch

    return torch.optim.AdamW(list(map(dict, groups)), lr=lr)


def _sgd(groups: Groups, lr: float, momentum: float) -> Any:
    import torch

    return torch.optim.SGD(list(map(dict, groups)), lr=lr, momentum=momentum, nesterov=momentum > 0)


def _muon(groups: Groups, lr: float, momentum: float) -> Any:
    from .muon import Muon

    return Muon(groups, lr=lr, momentum=momentum)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer("Adam with decoupled weight decay", _adamw),
    "sgd": Optimizer("stochastic gradient descent with Nesterov's momentum; its lr is about 10 times AdamW's", _sgd),
    "muon": Optimizer("orthogonalised momentum for matrices and dense convolutions, AdamW for the rest", _muon, True),
}
