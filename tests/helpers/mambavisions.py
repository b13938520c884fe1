"""What tests of MambaVision share: a little member of the family, and the reference's weights."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

from foveal.info import ModelInfo, attach
from foveal.models.mambavision import ClassifierHead, Config, MambaVision
from foveal.tasks.classify import ClassificationModel
from foveal.tasks.segment import SegmentationHead, SegmentationModel
from helpers import golden

GAIN = 1.4  # of the weights that the reference outputs were made with
SMALL = Config(16, (1, 1, 3, 2), (2, 4), stem_dim=8, drop_path_rate=0.0, layer_scale=0.5, window_size=(6, 3))
SHALLOW = dataclasses.replace(SMALL, depths=(1, 1, 2, 1))  # for tracing, whose time is in the number of operations
LICENCE = "CC-BY-NC-SA-4.0"


def published_state(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return golden.state(golden.read("mambavision_keys")[name], GAIN, dtype)


def small(task: str = "classify", in_chans: int = 3, config: Config = SMALL, **options: Any) -> Any:
    """A little member of the family, with layer scale, live weights and an odd number of blocks in a stage."""
    backbone = MambaVision(config, in_chans, **options)
    if task == "features":
        return golden.fill(backbone)
    if task == "segment":
        model = SegmentationModel(backbone, SegmentationHead(backbone.feature_info, 5, width=16, depth=1))
    else:
        model = ClassificationModel(backbone, ClassifierHead(128, 7))
    info = ModelInfo("mambavision_t", task, 7 if task == "classify" else 5, in_chans, licence=LICENCE)
    attach(model, info)
    return golden.fill(model)


built = cache(small)  # for properties: a function and no fixture, so that failures print their size and not the model
