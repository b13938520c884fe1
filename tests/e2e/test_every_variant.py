"""Every EfficientViT, the largest included: a training step, features, and an exported file that computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import foveal


@pytest.mark.long
@pytest.mark.parametrize("task", ["classify", "segment"])
@pytest.mark.parametrize("name", foveal.list_models("efficientvit_[bmlx]*"))
def test_trains_and_exports(name: str, task: str, tmp_path: Path) -> None:
    """Gradients reach every parameter and are finite; the export is compared with the model before it is written."""
    torch.manual_seed(0)
    model = foveal.create_model(name, task, num_classes=5)
    image = torch.randn(2, 3, 128, 96)
    target = torch.randint(5, (2,) if task == "classify" else (2, 128, 96))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model(image), target).backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    # A segmentation head reads the three coarsest maps, which leaves no parameter of a backbone out.
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    maps = model.eval().backbone(image)
    assert [m.shape[1] for m in maps] == [info.channels for info in model.backbone.feature_info]
    report = foveal.export(model, output=tmp_path / "model.onnx", size=(128, 192))
    assert report.path.stat().st_size > 0
