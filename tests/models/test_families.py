"""What every architecture for images does, the ones that arrive later included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.models.registry import variants


def on_meta(name: str, **arguments: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


@pytest.mark.parametrize("name", list_models(task="segment"))
def test_a_file_is_told_by_its_keys_and_shapes(name: str) -> None:
    """Classifier, every segmentation head, promptable, pooled features, the backbone alone; with one's own channels."""
    family, variant = variants()[name]
    heads = variant.segment_heads or [""]
    cases: list[dict[str, Any]] = [{"task": "segment", "num_classes": 7} | ({"head": h} if h else {}) for h in heads]
    cases += [{"features_only": True}]
    if variant is next(iter(family.variants.values())):  # the parts around the backbone are the same for all
        cases += [{"task": "prompt", "in_chans": 4}]
    if variant.classifier is not None:
        cases += [{"num_classes": 5, "in_chans": 4}, {"num_classes": 0}]
    for arguments in cases:
        state = on_meta(name, **arguments).state_dict()
        found = identify({f"module.model.{key}": value for key, value in state.items()})
        task = "features" if "features_only" in arguments else arguments.get("task", "classify")
        assert found.model in (name, *variant.twins)
        assert found.task == task
        assert found.in_chans == arguments.get("in_chans", 3)
        assert found.options.get("head", "") == arguments.get("head", "")
        assert found.num_classes == arguments.get("num_classes", 0)


@pytest.mark.parametrize("name", list_models(task="segment"))
def test_any_size(name: str) -> None:
    """Maps at their strides, and logits of the image's size, at the least size and at odd ones."""
    backbone, model = on_meta(name, features_only=True), on_meta(name, task="segment", num_classes=3)
    for h, w in ((32, 32), (65, 97), (224, 160)):
        image = torch.empty(2, 3, h, w, device="meta")
        maps = backbone(image)
        assert [tuple(m.shape) for m in maps] == [
            (2, channels, -(-h // stride), -(-w // stride)) for channels, stride in backbone.feature_info
        ]
        assert model(image).shape == (2, 3, h, w)
