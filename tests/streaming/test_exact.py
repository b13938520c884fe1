"""Networks in pieces give what the whole image gives in one pass, and margins are what the network reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foveal
from foveal.errors import ConfigError, InputError
from foveal.models.efficientvit import Config, EfficientViT
from foveal.streaming.passes import coarsest_stride, plan
from foveal.streaming.run import run
from foveal.streaming.trace import SOURCE, derive
from helpers.streams import XL, ArrayInput, B, L, compare, randomised, segmenter


@pytest.mark.parametrize(("config", "passes"), [(B, 3), (L, 3), (XL, 3)], ids=["B", "L", "XL"])
@pytest.mark.parametrize("optimised", [False, True], ids=["plain", "optimised"])
def test_segmentation_equals_the_whole_image(config: Config, passes: int, optimised: bool) -> None:
    model = segmenter(config, every_class=False)
    model = foveal.optimize(model) if optimised else model
    torch.manual_seed(2)
    for size, sides in (((75, 101), (2, 3)), ((64, 33), (1, None))):
        assert compare(model, torch.randn(1, 3, *size), sides, upsample=False) == passes


def test_one_piece_and_one_place_wide_pieces_agree() -> None:
    """A map of one row, and pieces as small as the coarsest stride."""
    compare(segmenter(B, every_class=False), torch.randn(1, 3, 32, 90), (1, None), upsample=False)


@pytest.mark.parametrize("options", [{"scales": ()}, {"global_attention": False}, {"output_stride": 8}], ids=str)
def test_options_of_the_backbone(options: dict[str, Any]) -> None:
    compare(segmenter(B, every_class=False, **options), torch.randn(1, 3, 75, 60), (3,), upsample=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv3_small_100", {"task": "segment"}),  # means of squeeze-and-excitation
        ("tf_efficientnet_lite0", {"features_only": True}),  # paddings that depend on the size
        ("mobilenetv2_100", {}),  # a classifier: the last map is a mean
    ],
    ids=["mobilenetv3", "efficientnet", "mobilenetv2"],
)
def test_convolutional_families(name: str, options: dict[str, Any]) -> None:
    model = foveal.optimize(randomised(foveal.create_model(name, **options)))
    call: dict[str, Any] = {"upsample": False} if "task" in options else {}
    compare(model, torch.randn(1, 3, 67, 90), (2,), **call)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mambavision_t", {"neutral_padding": False}),
        ("mambavision_t", {"neutral_padding": True}),
        ("efficientvit_m0", {}),
    ],
    ids=str,
)
def test_attention_and_scans_in_windows(name: str, options: dict[str, Any]) -> None:
    if name.startswith("mamba"):
        narrow = {"embed_dim": 8, "depths": (1, 1, 2, 2), "num_heads": (2, 2), "stem_dim": 8, "window_size": (5, 3)}
        options = options | narrow
    model = foveal.optimize(randomised(foveal.create_model(name, task="segment", **options)))
    compare(model, torch.randn(1, 3, 131, 90), (2,), upsample=False)


def test_classifier_and_features_of_efficientvit() -> None:
    torch.manual_seed(0)
    backbone = randomised(EfficientViT(B, 3))
    assert compare(backbone, torch.randn(1, 3, 70, 99), (3,)) == 3


def test_super_resolution_keeps_what_later_passes_read() -> None:
    model = foveal.create_model("efficientvit_sr", task="upscale", scale=2).eval()
    compare(model, torch.rand(1, 3, 45, 61), (16,))


def test_margins_are_what_the_network_reads() -> None:
    """Pixels just outside of what a piece reads do not reach it, and the outermost rows and columns inside do."""
    torch.manual_seed(0)
    model = randomised(EfficientViT(B, 3, global_attention=False)).double()
    x = torch.randn(1, 3, 480, 480, dtype=torch.float64)
    program = derive(model, 480, 480)
    divided = plan(program, side=coarsest_stride(program) * 10)
    (part,) = divided.passes
    centre = part.grid.columns + 1
    reads = divided.needs(part, centre)[SOURCE]
    assert 0 < reads.top < reads.bottom < 480

    def changes(rows: slice, columns: slice) -> bool:
        moved = x.clone()
        moved[:, :, rows, columns] += 10
        places = [part.grid.piece(centre, program.steps[name].extent) for name in program.outputs]  # pyright: ignore
        with torch.inference_mode():
            return any(
                not torch.equal(
                    after[:, :, p.top : p.bottom, p.left : p.right], before[:, :, p.top : p.bottom, p.left : p.right]
                )
                for after, before, p in zip(model(moved), model(x), places, strict=True)
            )

    every = slice(None)
    assert not changes(slice(0, reads.top), every)
    assert not changes(slice(reads.bottom, None), every)
    assert not changes(every, slice(0, reads.left))
    assert not changes(every, slice(reads.right, None))
    assert changes(slice(reads.top, reads.top + 1), every)
    assert changes(slice(reads.bottom - 1, reads.bottom), every)
    assert changes(every, slice(reads.left, reads.left + 1))
    assert changes(every, slice(reads.right - 1, reads.right))


def test_passes_with_wide_margins_are_divided() -> None:
    """Many convolutions without a sum: with small pieces, maps in between are kept, and the result is the same."""
    torch.manual_seed(0)
    model = randomised(EfficientViT(dataclasses.replace(B, depths=(2, 2, 2, 2)), 3, global_attention=False))
    x = torch.randn(1, 3, 160, 130)
    program = derive(model, 160, 130)
    one, several = plan(program), plan(program, memory=1 << 18)
    assert (len(one.passes), one.overhead(one.passes[0])) == (1, 1)
    assert len(several.passes) > 1
    with torch.inference_mode():
        expected = model(x)
    for value, truth in zip(run(several, ArrayInput(x)).arrays(), expected, strict=True):
        assert np.abs(value - truth[0].numpy()).max() <= 1e-5 * np.abs(truth.numpy()).max()


def test_small_maps_are_kept() -> None:
    """Of attention the input is kept, not q, k and v; of the head's levels the maps that it reads."""
    program = derive(segmenter(B), 256, 256, upsample=False)
    divided = plan(program)
    channels = [[program.steps[name].channels for name in part.keeps] for part in divided.passes]
    assert channels == [[8, 16, 16], [16], [5]]
    assert [len(part.sums) for part in divided.passes] == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            "mambavision_t",
            {"window_size": "whole", "embed_dim": 8, "num_heads": (2, 2)},
            r"backbone\.stages\.2: it mixes",
        ),
        ("vit_tiny", {}, r"backbone\.stem\.\d: no rule for computing _positions"),
    ],
)
def test_other_models_are_refused_in_one_line(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be streamed exactly: {reason}"):
        derive(foveal.create_model(name, task="segment", **options).eval(), 256, 256, upsample=False)


@pytest.mark.parametrize(
    ("index", "refused"),
    [
        ((slice(None), slice(None), slice(0, 40), slice(0, 30)), False),
        ((..., slice(0, 40), slice(0, 30)), False),
        ((slice(None), slice(0, 2)), True),
        ((slice(None), slice(0, 2), slice(0, 40), slice(0, 30)), True),
        ((slice(None), slice(None), slice(0, 40)), True),
        ((slice(0, 1),), True),
    ],
)
def test_parts_of_a_map(index: tuple[Any, ...], refused: bool) -> None:
    """Of height and width only: a part of the channels must not be taken for one of the places."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)[index]

    if refused:
        with pytest.raises(ConfigError, match="it takes the part"):
            derive(Part().eval(), 64, 64)
    else:
        compare(Part().eval(), torch.randn(1, 3, 64, 64), (16, None))


def test_images_below_the_smallest_size_are_refused() -> None:
    with pytest.raises(InputError, match="31x64"):
        derive(segmenter(B), 31, 64, upsample=False)
