"""Parameters and multiply-accumulates against the authors' tables, to the printed digit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


def printed(macs: int, like: str) -> str:
    return f"{macs / 1e9:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("row", CLASSIFIERS.split("\n")[1:-1])
def test_macs_of_classifiers(row: str) -> None:
    name, size, macs = row.split()
    with torch.device("meta"):
        model = create_model(name).eval()
    assert printed(count(model, 3, (int(size), int(size))).macs, macs) == macs


@pytest.mark.parametrize("row", SEGMENTERS.split("\n")[1:-1])
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
        assert count(create_model(name).eval(), 3, (224, 224)).params == params


def test_closed_forms() -> None:
    """A convolution, grouped and strided; a linear layer; resizing is free."""
    with torch.device("meta"):
        assert count(nn.Conv2d(4, 6, 3, 2, 1, groups=2), 4, (8, 10)) == (6 * 2 * 9 + 6, 6 * 2 * 9 * 4 * 5)
        assert count(nn.Linear(10, 3), 4, (8, 10)).macs == 4 * 8 * 10 * 3
        assert count(nn.Sequential(BicubicUpsample(2)), 1, (8, 10)).macs == 0
