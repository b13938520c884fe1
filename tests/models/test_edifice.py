"""Edifice's models: its outputs with ``compat``, its names and shapes, and otherwise its documented behaviour.

``goldens/edifice.json`` has outputs of Edifice 0.2.0 (Elixir 1.18, Axon 0.8, Nx 0.13): options, names and
shapes of the parameters, and outputs in full. The input is ``default_rng(0).standard_normal``.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import foveal
from foveal.errors import CheckpointError, ConfigError, InputError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.factory.load_model import load_model
from foveal.models.edifice import EfficientViT, MambaVision
from foveal.models.edifice.efficientvit import TokenBlur
from foveal.models.edifice.mambavision import MambaMixer, MambaVisionConfig, TokenStage
from foveal.models.registry import Backbone
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.golden import largest

CLASSES: dict[str, Any] = {"EfficientViT": EfficientViT, "MambaVision": MambaVision}
CASES = golden.read("edifice")
#: Options of Edifice's own tests.
EFFICIENT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depths": [1, 2], "num_heads": [4, 4]}
MAMBA: dict[str, Any] = {
    "image_size": 32, "dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "mlp_ratio": 2, "d_state": 4,
}  # fmt: skip
#: One small model of each kind, by the name and options of create_model.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "efficient": ("edifice_efficient_vit", EFFICIENT),
    "efficient, input cascade": ("edifice_efficient_vit", {**EFFICIENT, "cascade": "input"}),
    "efficient, channels": ("edifice_efficient_vit", {**EFFICIENT, "downsample": "channels"}),
    "efficient, compat": ("edifice_efficient_vit", {**EFFICIENT, "compat": True}),
    "mamba": ("edifice_mamba_vision", MAMBA),
    "mamba, small windows": ("edifice_mamba_vision", {**MAMBA, "window_size": (3, 2)}),
}
ALL_KINDS = {**KINDS, "mamba, compat": ("edifice_mamba_vision", {**MAMBA, "compat": True})}


def parameter(name: str, shape: list[int]) -> Tensor:
    """Return parameter ``layer.name`` of the golden in Axon's layout, by rules like those of :func:`golden.weight`."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    n = np.random.default_rng(seed).standard_normal(tuple(shape))
    kind = name.rpartition(".")[2]
    if kind == "kernel":
        fan_in = {2: shape[:1], 3: shape[:-1], 4: shape[1:]}[len(shape)]
        n = 1.4 * n / np.sqrt(np.prod(fan_in))
    elif kind == "gamma":
        n = 1 + 0.1 * n
    elif kind == "var":
        n = 0.5 + 0.5 * np.abs(n)
    else:
        n = 0.1 * n
    return torch.from_numpy(n)


def parameters(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: parameter(name, shape) for name, shape in case["manifest"].items()}


def filled(kind: str, **options: Any) -> Any:
    """A small model in evaluation mode, with weights that all affect the output."""
    name, own = ALL_KINDS[kind]
    return golden.fill(create_model(name, **{"num_classes": 5, **own, **options}))


def numbers(model: nn.Module) -> int:
    """Count parameters and batch norm statistics, which Axon counts together."""
    return sum(v.numel() for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked"))


# What Edifice's code computes


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_compat_equals_edifice(name: str, dtype: torch.dtype) -> None:
    """With Edifice's parameters, loaded by its names: the same outputs and as many parameters."""
    case = CASES[name]
    model = CLASSES[case["module"]].build(**case["options"], compat=True).to(dtype).eval()
    report = load_checkpoint(model, parameters(case))
    assert report.layout == model.name
    assert numbers(model) == case["params"]
    output = model(golden.normal_input(case["input"]).to(dtype))
    assert largest(output.double() - torch.tensor(case["output"], dtype=torch.float64)) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("evit_tests", lambda model: setattr(model.backbone.stages[0].blocks[0].attention, "num_heads", 2)),
        ("evit_tests", lambda model: setattr(model.backbone.stages[1].blocks[1].ffn, "depthwise", nn.Identity())),
        ("mv_tests64_cls", lambda model: model.backbone.stages[2].blocks[0].mixer.decay.sub_(0.1)),
        ("mv_tests64_cls", lambda model: setattr(model.backbone.stages[2].blocks[1].mixer, "scale", 1.0)),
    ],
)
def test_goldens_detect_errors(name: str, break_it: Any) -> None:
    case = CASES[name]
    model = CLASSES[case["module"]].build(**case["options"], compat=True).eval()
    load_checkpoint(model, parameters(case))
    break_it(model)
    output = model(golden.normal_input(case["input"]))
    assert largest(output - torch.tensor(case["output"])) > 1e-5


@pytest.mark.parametrize(
    ("variant", "params"),
    [("tiny", 31_778_678), ("small", 50_065_086), ("base", 97_522_342)],
)
def test_compat_has_the_size_of_edifices_variants(variant: str, params: int) -> None:
    options = getattr(MambaVision, f"{variant}_config")()
    with torch.device("meta"):
        model = MambaVision.build(**options, num_classes=1000, compat=True)
    assert numbers(model) == params


def test_size_of_efficient_vit() -> None:
    with torch.device("meta"):
        assert numbers(EfficientViT.build(compat=True)) == 2_906_880
        assert numbers(EfficientViT.build()) == 2_547_968


@torch.no_grad()
def test_compat_mamba_vision_ignores_the_image() -> None:
    """With ``compat`` the output is constant at 32 pixels, as documented; without it, it is not."""
    x = torch.randn(2, 3, 32, 32)
    for kind, constant in (("mamba, compat", True), ("mamba", False)):
        output = filled(kind, num_classes=0)(x)
        assert (largest(output - output[0, 0]) < 1e-6) is constant


@torch.no_grad()
def test_compat_takes_only_its_image_size() -> None:
    model = filled("mamba, compat", image_size=64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(InputError, match="64x64 pixels only"):
        model(torch.randn(1, 3, 96, 96))
    # Without the classifier there is no such norm.
    name, options = ALL_KINDS["mamba, compat"]
    assert create_model(name, "segment", num_classes=4, **options)(torch.randn(2, 3, 45, 70)).shape == (2, 4, 45, 70)


def test_token_blur_runs_over_row_ends() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 0, 3] = 1
    expected = torch.tensor([[0, 0, 0.25, 0.5], [0.25, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(TokenBlur()(x)[0, 0], expected)


# Names, options and shapes


@torch.no_grad()
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(
    ("model", "options", "length"),
    [
        (EfficientViT, EFFICIENT, 64),
        (EfficientViT, {**EFFICIENT, "num_classes": 10}, 10),
        (EfficientViT, {**EFFICIENT, "depths": [2], "num_heads": [4]}, 32),
        (EfficientViT, {**EFFICIENT, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 1, 1]}, 64),
        (EfficientViT, {**EFFICIENT, "depths": [1], "num_heads": [2]}, 32),
        (EfficientViT, {**EFFICIENT, "in_channels": 1, "num_classes": 0}, 64),
        (MambaVision, MAMBA, 128),
        (MambaVision, {**MAMBA, "num_classes": 10}, 10),
        (MambaVision, {"dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "image_size": 32}, 64),
        (MambaVision, {**MAMBA, "image_size": 64, "in_channels": 4}, 128),
    ],
)
def test_shapes_of_edifices_tests(model: Any, options: dict[str, Any], length: int, compat: bool) -> None:
    """The library's own acceptance tests, and its functions that compute sizes from options."""
    options = {**options, "compat": compat}
    net = model.build(**options).eval()
    shape = model.input_shape(**options)
    assert shape == (None, options.get("in_channels", 3), options["image_size"], options["image_size"])
    x = torch.rand(2, *shape[1:])
    output = net(x)
    assert output.shape == (2, length) == (2, model.output_size(**options))
    assert output.isfinite().all()
    features = model.build_backbone(**options).eval()(x)
    assert features.shape == (2, model.feature_size(**options))


def test_defaults_are_edifices() -> None:
    assert EfficientViT.output_size() == 256
    assert MambaVision.output_size() == 640
    assert EfficientViT.input_shape() == MambaVision.input_shape() == (None, 3, 224, 224)
    with torch.device("meta"):
        for model, explicit in (
            (EfficientViT, {"patch_size": 16, "embed_dim": 64, "depths": [1, 2, 3], "num_heads": [4, 4, 4]}),
            (MambaVision, {"dropout": 0.0, "d_state": 8, "d_conv": 3, "mlp_ratio": 4, **MambaVision.tiny_config()}),
        ):
            output, expected = model.build(), model.build(image_size=224, in_channels=3, num_classes=None, **explicit)
            assert shapes_of(output) == shapes_of(expected)


def shapes_of(model: nn.Module) -> dict[str, Any]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("variant", "dim", "params"),
    [("tiny", 80, 31_791_464), ("small", 96, 50_083_888), ("base", 128, 97_549_720)],
)
def test_variants(variant: str, dim: int, params: int) -> None:
    options = getattr(MambaVision, f"{variant}_config")()
    assert options.keys() == {"dim", "depths", "num_heads"}
    assert options["dim"] == dim
    with torch.device("meta"):
        model = MambaVision.build(**options, num_classes=1000)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert numbers(model) == params


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([None, 0, 7]),
    st.sampled_from(["spatial", "channels"]),
)
def test_output_size_is_that_of_the_model(depths: list[int], width: int, num_classes: Any, downsample: str) -> None:
    """Any number of stages, also without blocks, and maps down to a single token."""
    options: dict[str, Any] = {
        "depths": depths, "embed_dim": 4 * width, "num_heads": [2] * 4, "num_classes": num_classes,
        "patch_size": 8, "downsample": downsample,
    }  # fmt: skip
    with torch.device("meta"):
        output = EfficientViT.build(**options)(torch.empty(1, 3, 40, 33))
    assert output.shape == (1, EfficientViT.output_size(**options))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EfficientViT.build(dephts=[1]), "unknown key 'dephts'; did you mean 'depths'"),
        (lambda: EfficientViT.output_size(embed_dims=3), "did you mean 'embed_dim'"),
        (lambda: MambaVision.build(patch_size=16), "MambaVision: unknown key 'patch_size'"),
        (lambda: MambaVision.build(depths=[1]), "depths: expected 4 values, got 1"),
        (lambda: MambaVision.build(num_heads=[2, 4, 7, 16]), "7 does not divide 320 channels"),
        (lambda: MambaVision.build(dropout=1.0), "dropout=1.0 is out of range: give 0 or more, and less"),
        (lambda: MambaVision.build(depths=[1, 1, 0, 1], compat=True), "depth of 0"),
        (lambda: EfficientViT.build(depths=[1, 1, 1, 1]), "for 4 stages"),
        (lambda: EfficientViT.build(num_heads=[4, 4, 5]), "5 does not divide 256 channels"),
        (lambda: EfficientViT.build(depths=[0], compat=True), "depth of 0"),
        (lambda: EfficientViT.build(image_size=100, compat=True), "does not divide image_size"),
        (lambda: EfficientViT.build(compat=True, cascade="input"), "compat=True has no cascade"),
        (lambda: EfficientViT.build(cascade="inputs"), "did you mean 'input'"),
        (lambda: EfficientViT.build(embed_dim="wide"), "embed_dim: expected int"),
        (lambda: create_model("edifice_efficient_vit", in_channels=3), "no option 'in_channels'"),
        (lambda: create_model("edifice_mamba_vision", dim=0), "dim=0 is out of range: give 1 or more"),
    ],
)
def test_wrong_options_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_images_below_32_need_a_smaller_image_size() -> None:
    for model in (EfficientViT, MambaVision):
        small = {**(EFFICIENT if model is EfficientViT else MAMBA), "patch_size": 4, "image_size": 16}
        small = {key: value for key, value in small.items() if hasattr(model.config, key)}
        assert model.build_backbone(**small).eval()(torch.rand(1, 3, 16, 20)).isfinite().all()
        with pytest.raises(InputError, match="minimum of 16x16"):
            model.build(**small)(torch.rand(1, 3, 15, 20))
        with pytest.raises(InputError, match="minimum of 32x32"):
            model.build(**{**small, "image_size": 224})(torch.rand(1, 3, 16, 20))


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
def test_edifices_parameters_make_a_backbone_too() -> None:
    """A checkpoint of Edifice's with a classifier loads into a backbone, without the classifier."""
    case = CASES["evit_tests_cls"]
    options = {k: v for k, v in case["options"].items() if k not in ("in_channels", "num_classes")}
    backbone: Any = create_model("edifice_efficient_vit", features_only=True, compat=True, **options).eval()
    report = load_checkpoint(backbone, parameters(case))
    assert set(report.ignored) == {
        "head.norm.weight",
        "head.norm.bias",
        "head.classifier.weight",
        "head.classifier.bias",
    }
    assert [m.shape for m in backbone(golden.normal_input(case["input"]))] == [(2, 32, 4, 4), (2, 64, 4, 4)]


@pytest.mark.parametrize("model", [EfficientViT, MambaVision])
def test_editors_see_the_options(model: Any) -> None:
    """Names and defaults are those of the options' dataclass, for the class and for all that takes options."""
    expected = {entry.name: entry.default for entry in dataclasses.fields(model.config)}
    functions = [model, model.build, model.build_backbone, model.output_size, model.feature_size, model.input_shape]
    for function in functions:
        parameters = inspect.signature(function).parameters
        assert {name: parameter.default for name, parameter in parameters.items()} == expected
        assert all(parameter.annotation is not parameter.empty for parameter in parameters.values())
        assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with torch.device("meta"):
        assert model.build(num_classes=3, compat=True).foveal_info.options == {"compat": True}
    for function in functions:
        with pytest.raises(ConfigError, match="unknown key 'num_head'; did you mean 'num_heads'"):
            function(num_head=[1])


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
