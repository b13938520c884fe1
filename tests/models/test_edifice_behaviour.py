"""Edifice's models as any of ours: documented behaviour, training, precisions, checkpoints, identification, export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import foveal
from foveal.errors import CheckpointError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.factory.load_model import load_model
from foveal.models.edifice import EfficientViT, MambaVision
from foveal.models.edifice.mambavision import MambaMixer, MambaVisionConfig, TokenStage
from foveal.models.registry import Backbone
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.edifice import (
    ALL_KINDS,
    CLASSES,
    EFFICIENT,
    KINDS,
    MAMBA,
    filled,
    shapes_of,
)
from helpers.golden import largest

# Documented behaviour: EfficientViT


@torch.no_grad()
def test_feed_forward_convolves_the_grid() -> None:
    """The learned convolution connects tokens above and below, but not the last of a row with the first of the next."""
    ffn = filled("efficient").backbone.stages[0].blocks[0].ffn
    assert ffn.depthwise.weight.requires_grad
    x = torch.randn(1, 4, 5, 32)
    other = x.clone()
    other[0, 1, 4] += 1
    changed = (ffn(x) - ffn(other)).abs().amax(-1)[0] > 1e-6
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[:3, 3:] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
@pytest.mark.parametrize(("downsample", "strides"), [("spatial", [8, 16, 32]), ("channels", [8, 8, 8])])
def test_downsampling(downsample: str, strides: list[int]) -> None:
    """2x2 tokens are merged (sides rounded up), or the grid keeps its size as in Edifice; channels double."""
    options = {"patch_size": 8, "embed_dim": 16, "depths": [1, 1, 1], "downsample": downsample}
    backbone = golden.fill(create_model("edifice_efficient_vit", features_only=True, **options))
    assert [tuple(info) for info in backbone.feature_info] == list(zip([16, 32, 64], strides, strict=True))
    maps = backbone(torch.randn(1, 3, 75, 40))
    assert [m.shape[-2:] for m in maps] == [(-(-75 // stride), 40 // stride + bool(40 % stride)) for stride in strides]


# Documented behaviour: MambaVision


def token_stage(**options: Any) -> Any:
    config = MambaVisionConfig(dim=8, depths=(1, 1, 2, 2), num_heads=(1, 1, 4, 4), **options)
    return golden.fill(TokenStage(2, config, [0.0, 0.0]))


@torch.no_grad()
def test_heads_split_and_windows_separate() -> None:
    """The number of heads changes the output, and a change in one window does not affect other windows."""
    x = torch.randn(1, 16, 16, 16)
    one = golden.fill(TokenStage(2, MambaVisionConfig(dim=8, num_heads=(1, 1, 1, 1)), [0.0, 0.0]))
    assert largest(one(x) - token_stage()(x)) > 1e-3
    stage = token_stage(window_size=(4, 4))
    stage.downsample = nn.Conv2d(16, 32, 1)
    other = x.clone()
    other[..., 5, 9] += 1
    changed = (stage(x) - stage(other)).abs().amax(1)[0] > 1e-6
    assert changed[4:8, 8:12].any()
    changed[4:8, 8:12] = False
    assert not changed.any()


@torch.no_grad()
def test_scan_comes_first_and_goes_forward() -> None:
    """With an odd number of blocks there is one more mixer. The outputs of a mixer depend on the tokens before."""
    blocks = MambaVision.build(**{**MAMBA, "depths": [1, 1, 3, 1]}).eval().backbone.stages[2].blocks
    assert [hasattr(block.mixer, "A_log") for block in blocks] == [True, True, False]
    mixer = golden.fill(blocks[0].mixer)
    x = torch.randn(1, 12, 64)
    other = x.clone()
    other[:, 6] += 1
    changed = (mixer(x) - mixer(other)).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 5 + [True] * 7  # the convolution is centred: one token earlier


def test_dropout_is_drop_path() -> None:
    """Rates rise from the first block to the last, act only in training, and have no effect in Edifice."""
    model = MambaVision.build(**MAMBA, dropout=0.4)
    rates = [m.rate for m in model.backbone.modules() if hasattr(m, "rate")]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert all(m.rate == 0 for m in MambaVision(**MAMBA, dropout=0.4, compat=True).modules() if hasattr(m, "rate"))
    x = torch.randn(4, 3, 32, 32)
    stage = model.backbone.stages[3]
    with torch.no_grad():
        x = torch.randn(64, 64, 2, 2)
        assert torch.equal(stage.eval()(x), stage(x))
        torch.manual_seed(0)
        assert not torch.equal(stage.train()(x), stage(x))


# Common behaviour of all models


@torch.no_grad()
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_class_and_create_model_build_the_same(kind: str) -> None:
    name, options = ALL_KINDS[kind]
    model = CLASSES["EfficientViT" if "efficient" in name else "MambaVision"].build(**options, num_classes=5).eval()
    other = filled(kind)
    load_checkpoint(model, other.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), other(x))
    assert model.foveal_info.options == other.foveal_info.options


@torch.no_grad()
@settings(max_examples=20)
@example((32, 32), "efficient")
@example((33, 95), "mamba, small windows")
@given(st.tuples(st.integers(32, 100), st.integers(32, 100)), st.sampled_from(list(KINDS)))
def test_any_size(size: tuple[int, int], kind: str) -> None:
    """Finite logits that depend on one image only; maps as in ``feature_info``; masks of the size of the image."""
    model = filled(kind)
    x = torch.randn(2, 3, *size)
    output = model(x)
    assert output.shape == (2, 5)
    assert output.isfinite().all()
    assert largest(model(x[1:])[0] - output[1]) < 1e-4
    backbone: Backbone = model.backbone
    for output, info in zip(backbone(x), backbone.feature_info, strict=True):
        assert output.shape == (2, info.channels, *(-(-side // info.stride) for side in size))
    name, options = KINDS[kind]
    assert create_model(name, "segment", num_classes=3, **options).eval()(x).shape == (2, 3, *size)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_channel_and_corner_affects_the_output(kind: str) -> None:
    model = filled(kind, in_chans=4)
    x = torch.randn(1, 4, 45, 61)
    for place in ((0, 0, 0), (3, 44, 60), (1, 0, 60), (2, 44, 0)):
        other = x.clone()
        other[(0, *place)] += 3
        assert largest(model(x) - model(other)) > 1e-5


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_training_step(kind: str) -> None:
    """Every parameter has a gradient; after a step every parameter is finite and changed."""
    torch.manual_seed(0)
    name, options = ALL_KINDS[kind]
    if kind == "mamba, compat":
        options = {**options, "image_size": 64}
    model = golden.fill(create_model(name, num_classes=4, **options)).train()
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(4, 3, 64, 64)
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still or kind == "mamba, compat"  # its last norm leaves two columns nothing but a sign
    optimiser.step()
    after = model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not all(torch.equal(after[key], before[key]) for key in after)
    assert model(x).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    model = filled(kind)
    x = golden.image_input((2, 3, 64, 72))
    expected = model(x)
    output = copy.deepcopy(model).to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert largest(output.float() - expected) <= (0.02 if dtype == torch.float16 else 0.15) * largest(expected)
    with torch.autocast("cpu", dtype):
        assert largest(model(x).float() - expected) <= (0.02 if dtype == torch.float16 else 0.15) * largest(expected)


@torch.no_grad()
@pytest.mark.parametrize("task", ["classify", "segment", "features"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_checkpoints_carry_their_options(kind: str, task: str, tmp_path: Path) -> None:
    """Saved and loaded by path: the same model with the same outputs."""
    name, options = ALL_KINDS[kind]
    arguments = {"features_only": True} if task == "features" else {"task": task, "num_classes": 3}
    model = golden.fill(create_model(name, **arguments, **options))
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), model.foveal_info)
    loaded = load_model(tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 32, 32)
    expected, output = model(x), loaded(x)
    for one, other in zip(*([y] if isinstance(y, Tensor) else y for y in (expected, output)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model", [EfficientViT, MambaVision])
def test_classes_of_other_channels_can_be_opened_again(model: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = (
        {"embed_dim": 16, "depths": (1,), "num_heads": (2,)} if model is EfficientViT else {"dim": 16}
    )
    built: Any = model.build(in_channels=4, num_classes=2, **sizes).eval()
    save_checkpoint(tmp_path / "four.safetensors", built.state_dict(), built.foveal_info)
    loaded: Any = load_model(tmp_path / "four.safetensors")
    x = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), built(x))
    assert loaded.foveal_info.preprocess.mean == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_inferred_from_shapes(kind: str) -> None:
    """All options that shapes show are inferred. With ``compat`` they do not show the heads, which the user gives."""
    name, options = KINDS[kind]
    model = create_model(name, num_classes=3, in_chans=2, **options)
    if "compat" in options:
        with pytest.raises(CheckpointError, match="build it with create_model and its options"):
            identify(model.state_dict())
        return
    result = identify(model.state_dict())
    rebuilt = create_model(result.model, num_classes=result.num_classes, in_chans=result.in_chans, **result.options)
    assert (result.model, result.num_classes, result.in_chans) == (name, 3, 2)
    assert shapes_of(rebuilt) == shapes_of(model)
    assert result.options.get("downsample", "spatial") == options.get("downsample", "spatial")


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        pytest.param(  # stride 64: one row at 33 pixels
            "edifice_efficient_vit", "classify", {"embed_dim": 32, "depths": [1, 1, 1]}, marks=pytest.mark.long
        ),
        pytest.param("edifice_efficient_vit", "classify", {}, marks=pytest.mark.long),
        pytest.param(
            "edifice_efficient_vit",
            "segment",
            {**EFFICIENT, "cascade": "input", "downsample": "channels"},
            marks=pytest.mark.long,
        ),
        pytest.param("edifice_mamba_vision", "classify", {**MAMBA, "window_size": (3, 2)}, marks=pytest.mark.long),
        pytest.param("edifice_efficient_vit", "classify", {**EFFICIENT, "compat": True}, marks=pytest.mark.long),
        pytest.param("edifice_mamba_vision", "segment", {**MAMBA, "compat": True}, marks=pytest.mark.long),
    ],
)
def test_exports(name: str, task: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Export itself compares the file with the model at three sizes."""
    model = golden.fill(create_model(name, task, num_classes=4, **options))
    assert foveal.export(model, output=tmp_path / "model.onnx").max_difference <= 1e-5


def test_copies_and_formats() -> None:
    """Deep copies and channels-last inputs give the same output; the class builds under ``torch.device('meta')``."""
    for kind in ALL_KINDS:
        model = filled(kind)
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model)(x), model(x))
            last = copy.deepcopy(model).to(memory_format=torch.channels_last)
            assert largest(last(x.to(memory_format=torch.channels_last)) - model(x)) <= 1e-5 * largest(model(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", range(1, 6))
def test_mixers_are_centred(kernel: int) -> None:
    """As many tokens come out as go in, at the places of torch's own padding."""
    mixer = MambaMixer(8, 2, kernel).double()
    x, convs = torch.randn(2, 9, 8, dtype=torch.float64), (mixer.ssm_conv, mixer.sym_conv)
    found = mixer(x)
    for conv in convs:
        conv.padding = "same"
        conv.kernel_size = (1,)  # the mixer cuts nothing off
    torch.testing.assert_close(found, mixer(x), rtol=0, atol=1e-14)
