"""One vector for each image: the features of a model's backbone, averaged over their positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..images.preparing import prepare
from ..prediction.devices import torch_installed
from ..prediction.predictor import Predictor
from ..prediction.tiles import MIN_SIZE
from ..prediction.torch_runner import TorchRunner
from ..task import find_task

Embed = Callable[[Any], NDArray[np.float32]]


def load_with_features(load: Callable[[str], Predictor], runtime: str = "auto") -> Predictor:
    """Load a predictor that can embed: with torch if the chosen runtime gives no features.

    Args:
        load: loads the predictor in a runtime; "" stands for the user's choice.
        runtime: the user's choice.

    Raises:
        ConfigError: the user named a runtime that gives no features of this model, which torch does.
    """
    predictor = load("")
    if embeds(predictor) or not torch_installed():
        return predictor
    try:
        with_torch = load("torch")
    except ConfigError:  # an exported file, which torch cannot run
        return predictor
    if runtime not in ("auto", "torch"):
        raise ConfigError(f"--runtime {runtime}: only torch gives embeddings of {predictor.info.ref}: leave it out")
    return with_torch


def embeds(predictor: Predictor) -> bool:
    """Whether :func:`open_embedder` can be used: exported files have the output of their network only."""
    return find_task(predictor.info.task).takes_prompts or _is_pooled(predictor) or _backbone(predictor) is not None


def _backbone(predictor: Predictor) -> Any:
    """The backbone of a model in torch, which is the model itself if it has no head; ``None``: there is none."""
    if not isinstance(predictor.runner, TorchRunner):
        return None
    model = predictor.runner.model
    return getattr(model, "backbone", None) if find_task(predictor.info.task).has_head else model


def _is_pooled(predictor: Predictor) -> bool:
    """Whether the network's output is a vector of features: a classifier without classes."""
    task = find_task(predictor.info.task)
    return task.has_classes and not task.labels_pixels and predictor.info.num_classes == 0


def open_embedder(predictor: Predictor) -> Embed:
    """A function from an image to its embedding ``(C,)``.

    It is the mean over all positions of the embedding of a promptable model (256 values), the input of the last layer
    of a classifier, and of other models the mean of the backbone's last feature map.

    Raises:
        ConfigError: the model has no features.
    """
    if not embeds(predictor):
        raise ConfigError(
            f"{predictor.info.ref}: embeddings need a checkpoint and torch (pip install 'foveal[torch]'), or a "
            "promptable model; an exported file has the output of its network only"
        )
    network = _network(predictor)

    def embed(image: Any) -> NDArray[np.float32]:
        pixels = predictor.bands.read(image)
        output = network(prepare(pixels, predictor.info.preprocess, MIN_SIZE))
        return output.reshape(*output.shape[:2], -1).mean(2)[0]

    return embed


def _network(predictor: Predictor) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """From a prepared image to features ``(1, C)`` or ``(1, C, h, w)``."""
    if find_task(predictor.info.task).takes_prompts:
        return predictor.prompter()
    if _is_pooled(predictor):
        return predictor.runner
    import torch

    class Features(torch.nn.Module):
        """The features of a model of ours."""

        def __init__(self, backbone: Any, head: Any) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = self.backbone(x)[-1]
            return last if self.head is None else self.head(last, pre_logits=True)

    runner: Any = predictor.runner
    task = find_task(predictor.info.task)
    head = runner.model.head if task.has_classes and not task.labels_pixels else None
    return TorchRunner(Features(_backbone(predictor), head), str(runner.device), runner.dtype)
