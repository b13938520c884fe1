"""Short runs that learn from a teacher, and models with random weights that teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import foveal
from foveal.info import attach, info_of
from foveal.progress import Progress
from foveal.training.config import TrainConfig, build_settings
from foveal.weights.checkpoints import save_checkpoint
from helpers.runs import SETTINGS, SMALL

QUIET = Progress(enabled=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def train(data: Path, out: Path, **settings: Any) -> Any:
    return foveal.train(data, out=out, **{**SETTINGS, **SMALL, "epochs": 2, **settings})


def config(**settings: Any) -> TrainConfig:
    return build_settings({**SETTINGS, **SMALL, **settings})


def saved(path: Path, name: str, task: str, labels: tuple[str, ...] = (), **options: Any) -> str:
    """A model with random weights in a file."""
    torch.manual_seed(1)
    count = {"num_classes": len(labels)} if labels else {}
    model: Any = foveal.create_model(name, task, **count, **options)
    info = info_of(model).replace(labels=foveal.Labels(labels))
    attach(model, info)
    save_checkpoint(path, model.state_dict(), info)
    return str(path)
