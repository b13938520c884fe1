"""Parameters and multiply-accumulates against the authors' tables, to the printed digit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from foveal.errors import InputError
from foveal.factory.create import create_model
from foveal.layers.resample import BicubicUpsample
from foveal.measuring.costs import count

CLASSIFIERS = """
efficientvit_b0 224 0.100
efficientvit_b1 224 0.519
efficientvit_b1 256 0.677
efficientvit_b1 288 0.856
efficientvit_b2 224 1.585
efficientvit_b2 256 2.068
efficientvit_b2 288 2.614
efficientvit_b3 224 3.954
efficientvit_b3 256 5.162
efficientvit_b3 288 6.530
efficientvit_l1 224 5.258
efficientvit_l2 224 6.950
efficientvit_l2 256 9.073
efficientvit_l2 288 11.48
efficientvit_l2 320 14.17
efficientvit_l2 384 20.40
efficientvit_l3 224 27.59
efficientvit_l3 256 36.02
efficientvit_l3 288 45.57
efficientvit_l3 320 56.25
efficientvit_l3 384 80.98
efficientvit_m0 224 0.079
efficientvit_m1 224 0.167
efficientvit_m2 224 0.201
efficientvit_m3 224 0.263
efficientvit_m4 224 0.299
efficientvit_m5 224 0.522
"""
SEGMENTERS = """
efficientvit_b0 cityscapes 4.39
efficientvit_b1 cityscapes 25.1
efficientvit_b2 cityscapes 73.6
efficientvit_b3 cityscapes 179.2
efficientvit_l1 cityscapes 282.5
efficientvit_l2 cityscapes 396.1
efficientvit_b1 ade20k 3.09
efficientvit_b2 ade20k 9.08
efficientvit_b3 ade20k 22.2
efficientvit_l1 ade20k 36.3
efficientvit_l2 ade20k 45.2
"""


def _some(table: str) -> list[Any]:
    """The rows; those of all but the smallest variants are long tests."""
    rows = table.split("\n")[1:-1]
    return [row if row.split()[0][-1] in "01" else pytest.param(row, marks=pytest.mark.long) for row in rows]


def printed(macs: int, like: str) -> str:
    return f"{macs / 1e9:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("row", _some(CLASSIFIERS))
def test_macs_of_classifiers(row: str) -> None:
    name, size, macs = row.split()
    with torch.device("meta"):
        model = create_model(name).eval()
    assert printed(count(model, 3, (int(size), int(size))).macs, macs) == macs


@pytest.mark.parametrize("row", _some(SEGMENTERS))
def test_macs_of_segmentation_models(row: str) -> None:
    name, head, macs = row.split()
    with torch.device("meta"):
        model = create_model(name, task="segment", head=head).eval()
    assert printed(count(model, 3, (1024, 2048) if head == "cityscapes" else (512, 512)).macs, macs) == macs


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("efficientvit_m0", 2_349_436),
        ("efficientvit_m1", 2_980_560),
        ("efficientvit_m2", 4_187_554),
        ("efficientvit_m3", 6_900_722),
        ("efficientvit_m4", 8_804_228),
        ("efficientvit_m5", 12_473_772),
    ],
)
def test_parameters_of_classifiers(name: str, params: int) -> None:
    with torch.device("meta"):
        assert count(create_model(name).eval(), 3, (32, 32)).params == params


def test_closed_forms() -> None:
    """A convolution, grouped and strided; a linear layer; resizing is free."""
    with torch.device("meta"):
        assert count(nn.Conv2d(4, 6, 3, 2, 1, groups=2), 4, (8, 10)) == (6 * 2 * 9 + 6, 6 * 2 * 9 * 4 * 5)
        assert count(nn.Linear(10, 3), 4, (8, 10)).macs == 4 * 8 * 10 * 3
        assert count(nn.Sequential(BicubicUpsample(2)), 1, (8, 10)).macs == 0


def held(model: nn.Module) -> nn.Module:
    """The model with values."""
    return model.to_empty(device="cpu")


class Holds(nn.Module):
    """A convolution with what models hold besides: buffers that are read, results of operations, caches by size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("position", torch.ones(1, 4, 10, 10))
        self.gain = torch.ones(4, requires_grad=True) * 2
        self.cache: dict[Any, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x) * self.gain[:, None, None]
        if self.position.min().item() < 0:
            return x
        if x.shape not in self.cache:
            self.cache[x.shape] = torch.arange(x.shape[-1]).float()
        position = nn.functional.interpolate(self.position, x.shape[-2:], mode="bilinear")
        return (x + position + self.cache[x.shape]) @ torch.randn(x.shape[-1], 7)


@pytest.mark.parametrize(
    "change",
    [
        held,
        lambda model: held(model).half(),
        lambda model: copy.deepcopy(held(model)).train(),
        lambda model: nn.DataParallel(held(model)),
        pytest.param(
            lambda model: torch.compile(model), marks=pytest.mark.long
        ),  # importing the compiler takes seconds
    ],
    ids=["values", "half", "training", "parallel", "compiled"],
)
def test_a_model_counts_the_same_with_values(change: Callable[[nn.Module], nn.Module]) -> None:
    with torch.device("meta"):
        model = create_model("efficientvit_b0").eval()
    expected = count(model, 3, (64, 64))
    changed = change(model)
    before = {key: value.is_meta for key, value in changed.state_dict().items()}
    assert count(changed, 3, (64, 64)) == expected
    assert {key: value.is_meta for key, value in changed.state_dict().items()} == before


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_model_that_holds_other_values() -> None:
    model = Holds().eval()
    conv = 4 * 3 * 9 * 30 * 30
    assert count(model, 3, (32, 32)) == (4 * 3 * 9 + 4, conv + 4 * 30 * 30 * 7)
    assert not model.cache
    with torch.inference_mode():
        assert count(Holds().eval(), 3, (32, 32)).macs == conv + 4 * 30 * 30 * 7
    script = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    assert count(script, 3, (32, 32)).macs == conv


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "chans", "size", "message"),
    [
        (Decides(), 3, (8, 8), r"Decides cannot be counted on an input of shape \(1, 3, 8, 8\) without values"),
        (nn.Conv2d(4, 4, 3), 3, (8, 8), r"Conv2d cannot be counted on an input of shape \(1, 3, 8, 8\)"),
        (nn.LazyConv2d(4, 3), 3, (8, 8), "LazyConv2d has parameters whose shape its first input decides: run it once"),
        (nn.Identity(), 3, 8, r"in_chans=3, size=8: give the number of channels and \(H, W\)"),
        (nn.Identity(), 0, (8, 8), r"in_chans=0, size=\(8, 8\): give"),
    ],
)
def test_what_cannot_be_counted(model: nn.Module, chans: int, size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        count(model, chans, size)
    assert "\n" not in str(caught.value)
