"""Requirements on every image architecture, later ones included ("Adding a model family" in CONTRIBUTING.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.errors import InputError
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.info import info_of
from foveal.models.registry import variants
from foveal.tasks.builders import BUILDERS
from foveal.weights.layouts import DECODER_PARTS, IMAGE_ENCODER


def on_meta(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **arguments)


def is_first(name: str) -> bool:
    return name == next(iter(variants()[name][0].variants))


@pytest.mark.parametrize(
    "name",
    [name if is_first(name) else pytest.param(name, marks=pytest.mark.long) for name in list_models(task="segment")],
)
def test_a_file_is_identified_by_its_keys_and_shapes(name: str) -> None:
    """Classifier and segmentation heads; of the first variant also promptable, pooled features and backbone alone.

    Keys have their prefixes, ``convert`` leaves them alone, and ``Family.stem`` names the first convolution.
    """
    family, variant = variants()[name]
    heads = variant.segment_heads or [""]
    cases: list[dict[str, Any]] = [{"task": "segment", "num_classes": 7} | ({"head": h} if h else {}) for h in heads]
    first = variant is next(iter(family.variants.values()))  # the parts around the backbone are the same for all
    if variant.classifier is not None:
        cases += [{"task": "classify", "num_classes": 5, "in_chans": 4}]
    if first:
        cases += [{"features_only": True}, {"task": "prompt", "in_chans": 4}, cases[0] | {"task": "regress"}]
    if first and variant.classifier is not None:
        cases += [{"task": "classify", "num_classes": 0}]
    for arguments in cases:
        state = on_meta(name, **arguments).state_dict()
        info = identify({f"module.model.{key}": value for key, value in state.items()})
        task = "features" if "features_only" in arguments else arguments["task"]
        assert info.model in (name, *variant.twins)
        assert info.task == task
        assert info.in_chans == arguments.get("in_chans", 3)
        assert info.options.get("head", "") == arguments.get("head", "")
        assert info.num_classes == arguments.get("num_classes", 0)
        if task == "features":
            state = {f"backbone.{key}": value for key, value in state.items()}
        elif task == "prompt":
            assert all(key.startswith((IMAGE_ENCODER, *DECODER_PARTS)) for key in state)
            continue
        assert all(key.startswith(("backbone.", "head.")) for key in state)
        assert state[family.stem].shape[1] == info.in_chans
        assert (family.convert(state) or {}).keys() == state.keys()


@pytest.mark.parametrize("name", [name for name in list_models(task="segment") if is_first(name)])
@pytest.mark.parametrize("task", ["segment", "features"])
def test_an_image_without_its_batch_is_one_line(name: str, task: str) -> None:
    model = on_meta(name, **({"features_only": True} if task == "features" else {"task": task}))
    with pytest.raises(InputError, match=r"images of shape \(3, 64, 64\): give \(B, C, H, W\)"):
        model(torch.empty(3, 64, 64, device="meta"))


@torch.no_grad()
@pytest.mark.parametrize("name", list_models(task="segment"))
def test_any_size(name: str) -> None:
    """Feature maps at their strides, rounded up, and logits of the image's size, at the smallest size and odd ones.

    In evaluation mode, since norms in training mode take most of the time on the meta device.
    """
    model = on_meta(name, task="segment", num_classes=3).eval()
    for h, w in ((32, 32), (65, 97), (224, 160)) if is_first(name) else ((65, 97),):
        image = torch.empty(2, 3, h, w, device="meta")
        maps = model.backbone(image)
        assert [tuple(m.shape) for m in maps] == [
            (2, channels, -(-h // stride), -(-w // stride)) for channels, stride in model.backbone.feature_info
        ]
        if is_first(name):  # all variants of a family share their code
            assert model(image).shape == (2, 3, h, w)
        else:
            padded = [
                torch.empty(2, channels, 128 // stride, 128 // stride, device="meta")
                for channels, stride in model.backbone.feature_info
            ]
            assert model.head(padded).shape == (2, 3, 128 // model.stride, 128 // model.stride)


@pytest.mark.parametrize("task", BUILDERS)
def test_the_tasks_of_a_family_can_be_built(task: str) -> None:
    """With the published number of classes; the first variant of each family that the task lists."""
    first = {variants()[name][0].name: name for name in reversed(list_models(task=task))}
    for name in first.values():
        assert info_of(on_meta(name, task=task)).task == task
