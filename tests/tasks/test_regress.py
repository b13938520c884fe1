"""The regression head: outputs by their formulas, units, sizes, identification, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.factory.identify import identify
from foveal.info import ModelInfo, Target, info_of
from foveal.tasks.regress import OUTPUTS, RegressionModel
from foveal.tasks.segment import SegmentationHead

SMALL: dict[str, Any] = {"head_width": 8, "head_depth": 1}


def model(output: str = "none", channels: int = 2) -> RegressionModel:
    torch.manual_seed(0)
    made = foveal.create_model("efficientvit_b0", "regress", out_chans=channels, output=output, **SMALL).eval()
    assert isinstance(made, RegressionModel)
    return made


@torch.no_grad()
@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_follow_their_formulas(output: str) -> None:
    net, image = model(output), torch.randn(2, 3, 65, 97)
    net.head.set_statistics([3.0, 500.0], [0.5, 200.0])
    mean, std = torch.tensor([3.0, 500.0])[:, None, None], torch.tensor([0.5, 200.0])[:, None, None]
    z = SegmentationHead.forward(net.head, net.maps(image))
    expected = {
        "none": mean + std * z,
        "sigmoid": 1 / (1 + torch.exp(-z)),
        "softplus": std * torch.log1p(torch.exp(z + mean / std)),
        "unit": mean + std * z,
    }[output]
    coarse = net(image, upsample=False)
    assert coarse.shape == (2, 2, 9, 13)
    torch.testing.assert_close(coarse, expected[..., :9, :13], rtol=1e-4, atol=1e-5)
    whole = F.interpolate(expected, scale_factor=8, mode="bilinear", align_corners=False)[..., :65, :97]
    if output == "unit":
        whole = F.normalize(whole, dim=1)
        assert net(image).norm(dim=1).sub(1).abs().max() < 1e-5
    torch.testing.assert_close(net(image), whole, rtol=1e-4, atol=1e-4)


def test_values_have_single_precision_under_autocast() -> None:
    """A depth of 8 m in bfloat16 has steps of 3 cm."""
    net = model("softplus", 1)
    net.head.set_statistics([8.0], [2.0])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = net(torch.randn(1, 3, 64, 64), upsample=False)
    assert values.dtype == torch.float32
    assert len(values.unique()) > len(values.bfloat16().unique())


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_bare_state_dict_shows_channels_and_output(output: str) -> None:
    with torch.device("meta"):
        made = foveal.create_model("efficientvit_b0", "regress", out_chans=3, output=output)
    info = identify({f"module.{key}": value for key, value in made.state_dict().items()})
    assert (info.task, info.num_classes, info.options.get("output", "none")) == ("regress", 3, output)


def test_description_keeps_the_target() -> None:
    info = info_of(model()).replace(target=Target("depth", "m", 0.001, 0.0))
    again = ModelInfo.from_json(info.to_json())
    assert again.target == Target("depth", "m", 0.001, 0.0)
    assert '"target"' not in ModelInfo("efficientvit_b0", "segment", 3).to_json()
    for wrong in ('"kind": "dept"', '"scale": -1', '"invalid": "x"', '"other": 1'):
        text = info.replace(target=Target("depth")).to_json().replace('"kind": "depth"', wrong)
        with pytest.raises(foveal.ConfigError, match="model description cannot be read"):
            ModelInfo.from_json(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "softplu"}, "output='softplu'; did you mean 'softplus'"),
        ({"out_chans": 0}, "out_chans=0: give a whole number, 1 or more"),
        ({"out_chans": 2, "num_classes": 3}, "out_chans=2, but there are 3 channels"),
        ({"output": "unit"}, "output='unit' is for vectors: give out_chans=3"),
        ({"chans": 2}, "has no option 'chans'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(foveal.ConfigError, match=message):
        foveal.create_model("efficientvit_b0", "regress", **options)


def test_wrong_statistics() -> None:
    with pytest.raises(foveal.ConfigError, match="give 2 of each, deviations above 0"):
        model().head.set_statistics([0.0, 0.0], [1.0, 0.0])
