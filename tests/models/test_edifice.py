"""Edifice's models: its outputs with ``compat``, and its names, options and shapes.

``goldens/edifice.json`` has outputs of Edifice 0.2.0 (Elixir 1.18, Axon 0.8, Nx 0.13): options, names and
shapes of the parameters, and outputs in full. The input is ``default_rng(0).standard_normal``.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model
from foveal.models.edifice import EfficientViT, MambaVision
from foveal.models.edifice.efficientvit import TokenBlur
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.edifice import (
    ALL_KINDS,
    CASES,
    CLASSES,
    EFFICIENT,
    MAMBA,
    filled,
    numbers,
    parameters,
    shapes_of,
)
from helpers.golden import largest

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
