"""Microsoft's EfficientViT-M: equal to the published networks, forward and backward, and usable at any size."""

from __future__ import annotations

import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import foveal
from foveal.config import build_config
from foveal.errors import CheckpointError, ConfigError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.layers.attention import CascadedGroupAttention
from foveal.layers.conv import InvertedResidual, SqueezeExcite
from foveal.layers.linear import NormLinear
from foveal.models.efficientvit_m import EfficientViTMBlock, convert
from foveal.prediction.exported import NetworkRunner
from foveal.prediction.onnx_runner import onnx_network
from foveal.progress import Progress
from foveal.training.classify import ClassifyJob
from foveal.training.config import TrainConfig
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.golden import largest

GAIN = 0.7
NAMES = [f"efficientvit_m{i}" for i in range(6)]
#: Reference, the model of ours that it is, how that one is built, and whose keys it has.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "msra-m0": ("efficientvit_m0", {}, "msra-m0-distill"),
    "msra-m0-distill": ("efficientvit_m0", {"distilled": True}, "msra-m0-distill"),
    "msra-m2": ("efficientvit_m2", {}, "msra-m2"),
    "timm-m1": ("efficientvit_m1", {}, "timm-m1"),
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
SIZES = st.tuples(st.integers(32, 150), st.integers(32, 150))


def published(reference: str) -> dict[str, torch.Tensor]:
    """Return the state dict of the reference, in float64."""
    name = MODELS[reference][2]
    state = golden.state(golden.read("efficientvit_m_keys")[name], GAIN)
    return {key: value for key, value in state.items() if name == reference or not key.startswith("head_dist.")}


def poured(reference: str) -> Any:
    """Return our model with the weights of the reference, in float64."""
    name, options, _ = MODELS[reference]
    model = create_model(name, **options).double().eval()
    load_checkpoint(model, published(reference))
    return model


def filled(name: str = "efficientvit_m0", *arguments: Any, **options: Any) -> Any:
    return golden.fill(create_model(name, *arguments, **options), GAIN)


@torch.no_grad()
@pytest.mark.parametrize("reference", MODELS)
def test_equals_the_published_network(reference: str) -> None:
    """Output and all maps agree with the reference; the model is identified by the keys of its state dict."""
    model = poured(reference)
    expected = golden.read("efficientvit_m_models")[reference]
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    result = identify(published(reference))
    assert (result.model, result.options, result.licence) == (*MODELS[reference][:2], "MIT")
    x = golden.image_input(expected["input"])
    for precision, tolerance in TOLERANCE.items():
        dtype = getattr(torch, precision)
        model.to(dtype)
        assert golden.difference(model(x.to(dtype)), expected[precision]["output"]) <= tolerance
        for map_, brief in zip(model.backbone(x.to(dtype)), expected[precision]["stages"], strict=True):
            assert golden.difference(map_, brief) <= tolerance


@torch.no_grad()
def test_two_classifiers() -> None:
    """Both classifiers equal the published ones; the output is a pair in training, their mean in evaluation."""
    model = poured("msra-m0-distill")
    expected = golden.read("efficientvit_m_models")["msra-m0-distill"]["float64"]
    features = model.backbone(golden.image_input((1, 3, 224, 224)).double())[-1]
    heads = [layer(features.mean((2, 3))) for layer in (model.head.classifier, model.head.classifier_distilled)]
    for head, brief in zip(heads, expected["heads"], strict=True):
        assert golden.difference(head, brief) <= 1e-9
    assert torch.equal(model.head(features), (heads[0] + heads[1]) / 2)
    pair = model.train()(torch.randn(2, 3, 64, 64).double())
    assert [tuple(logits.shape) for logits in pair] == [(2, 1000), (2, 1000)]


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [n if n in ("efficientvit_m0", "efficientvit_m5") else pytest.param(n, marks=pytest.mark.long) for n in NAMES],
)
def test_equals_timm(name: str) -> None:
    """timm's own network gives the same logits and maps with the same weights; in float32 M5 is within 1e-4."""
    peer = golden.fill(timm.create_model(name, pretrained=False, num_classes=10), GAIN)
    ours: Any = create_model(name, num_classes=10).eval()
    assert load_checkpoint(ours, peer.state_dict()).layout == "efficientvit_m"
    x = golden.image_input((2, 3, 224, 224))
    expected = peer(x)
    tolerance = 1e-4 if name == "efficientvit_m5" else 1e-5
    assert largest(expected[0] - expected[1]) > 0.005 * largest(expected), "a peer that ignores its input"
    assert largest(ours(x) - expected) <= tolerance * largest(expected)
    theirs = peer.forward_intermediates(x, intermediates_only=True)
    for map_, other in zip(ours.backbone(x), theirs, strict=True):
        assert largest(map_ - other) <= tolerance * largest(other)


LAYERS: dict[str, tuple[Any, str, str]] = {
    "msra_cga_7": (
        partial(CascadedGroupAttention, 64, 4, kernel_sizes=(7, 5, 3, 3)),
        "blocks1.0.mixer.m.attn.",
        "backbone.stages.0.0.attention.",
    ),
    "msra_window_14": (
        partial(CascadedGroupAttention, 64, 4),
        "blocks1.0.mixer.m.",
        "backbone.stages.0.0.attention.",
    ),
    "msra_window_16_padded": (
        partial(CascadedGroupAttention, 64, 4),
        "blocks1.0.mixer.m.",
        "backbone.stages.0.0.attention.",
    ),
    "msra_window_4_small": (
        partial(CascadedGroupAttention, 64, 4, window_size=4),
        "blocks1.0.mixer.m.",
        "backbone.stages.0.0.attention.",
    ),
    "msra_patch_merging": (
        partial(InvertedResidual, 32, 48, 2, act=nn.ReLU, squeeze=partial(SqueezeExcite, reduced=32)),
        "blocks2.1.",
        "backbone.stages.1.0.merge.",
    ),
    "msra_block": (
        partial(EfficientViTMBlock, 64, 4, kernel_sizes=(5, 5, 5, 5), window_size=7),
        "blocks1.0.",
        "backbone.stages.0.0.",
    ),
    "msra_bn_linear": (partial(NormLinear, 64, 10), "head.", "head.classifier."),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_published_layer(name: str) -> None:
    """The outputs of the authors' layer, whose keys are converted as part of a model."""
    build, theirs, ours = LAYERS[name]
    expected = golden.read("efficientvit_m_layers")[name]
    tensors = golden.state(expected["state"], GAIN)
    placed = {"patch_embed.0.c.weight": torch.empty(0)} | {theirs + key: value for key, value in tensors.items()}
    state = {key.removeprefix(ours): v for key, v in (convert(placed) or {}).items() if key.startswith(ours)}
    layer = build().double().eval()
    layer.load_state_dict(state)
    x = golden.normal_input(expected["input"])
    assert golden.difference(layer(x.double()), expected["float64"]) <= 1e-9
    assert golden.difference(layer.float()(x), expected["float32"]) <= 1e-5


def test_training_step_equals_the_published_one() -> None:
    """Loss, gradients of input and parameters, and running variances after one float64 step in training mode."""
    expected = golden.read("efficientvit_m_training")
    model = poured("msra-m0").train()
    x = golden.image_input(expected["input"]).double().requires_grad_()
    output = model(x)
    loss = output.square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    assert golden.difference(output, expected["output"]) <= 1e-9
    assert x.grad is not None
    assert golden.difference(x.grad, expected["input_grad"]) <= 1e-9
    norms = {key: float(p.grad.norm()) for key, p in model.named_parameters()}
    total = torch.tensor(list(norms.values())).double().norm().item()
    assert total == pytest.approx(expected["grad_l2_total"], rel=1e-6)  # the norms went through float32 lists
    for key, norm in expected["grad_l2"].items():
        assert norms[our_key(key)] == pytest.approx(norm, rel=1e-9, abs=1e-13)
    buffers = dict(model.named_buffers())
    for key, brief in expected["running_var_after"].items():
        assert golden.difference(buffers[our_key(key)], brief) <= 1e-9


def our_key(key: str) -> str:
    """Return our name of the tensor that the authors call ``key``."""
    converted = convert({"patch_embed.0.c.weight": torch.zeros(()), key: torch.ones(())}) or {}
    return next(name for name, value in converted.items() if value)


@cache
def built(task: str) -> Any:
    options: dict[str, Any] = {"features": {"features_only": True}, "classify": {"num_classes": 7}}.get(task, {})
    return filled(**options or {"task": "segment", "num_classes": 5})


@torch.no_grad()
@settings(max_examples=4)
@example((32, 32))
@example((33, 113))
@given(SIZES)
def test_any_size(size: tuple[int, int]) -> None:
    """Maps at strides 16, 32, 64; logits of classes and of pixels; each depends on one image of the batch only."""
    x = torch.randn(2, 3, *size)
    maps = built("features")(x)
    assert [tuple(map_.shape) for map_ in maps] == [
        (2, channels, *(-(-side // stride) for side in size)) for channels, stride in ((64, 16), (128, 32), (192, 64))
    ]
    logits = built("classify")(x)
    assert logits.shape == (2, 7)
    assert largest(built("classify")(x[1:])[0] - logits[1]) <= 1e-5 * largest(logits)
    pixels = built("segment")(x)
    assert pixels.shape == (2, 5, *size)
    assert all(output.isfinite().all() for output in (*maps, logits, pixels))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 21), (3, 9), (15, 8)])
def test_windows(height: int, width: int) -> None:
    """Windows are independent: the result for a map is that of its windows one by one, zero-padded at the edge."""
    layer = golden.fill(CascadedGroupAttention(32, 4)).double()
    x = torch.randn(2, 32, height, width, dtype=torch.float64)
    output = layer(x)
    for top in range(0, height, 7):
        for left in range(0, width, 7):
            window = x[..., top : top + 7, left : left + 7]
            h, w = window.shape[-2:]
            alone = layer(F.pad(window, (0, 7 - w, 0, 7 - h)))[..., :h, :w]
            assert largest(output[..., top : top + 7, left : left + 7] - alone) < 1e-12


@torch.no_grad()
def test_heads_are_cascaded_and_positions_biased() -> None:
    """A split of the channels affects its own head and later heads; biases can exclude distant positions."""
    layer = golden.fill(CascadedGroupAttention(32, 4)).double()
    layer.project = nn.Identity()
    x = torch.randn(1, 32, 7, 7, dtype=torch.float64)
    before = layer(x)
    for head in range(4):
        other = x.clone()
        other[:, 8 * head : 8 * head + 8] += 1
        changed = (layer(other) - before).abs().amax((0, 2, 3)).reshape(4, 8).amax(1) > 1e-6
        assert changed.tolist() == [i >= head for i in range(4)]
    layer.position_biases.view(4, 7, 7)[:, 1:] = -1e9  # other rows
    layer.query_convs = nn.ModuleList(nn.Identity() for _ in range(4))  # they would look at the rows beside
    before, other = layer(x), x.clone()
    other[..., 3, :] += 1
    rows = (layer(other) - before).abs().amax((0, 1, 3)) > 1e-9
    assert rows.tolist() == [row == 3 for row in range(7)]


@torch.no_grad()
def test_the_bias_is_never_stale() -> None:
    """After a first pass in evaluation mode, changed weights change the output: no bias is cached."""
    x = golden.image_input((1, 3, 96, 128))
    model, other = filled(num_classes=5), filled(num_classes=5)
    for p in other.parameters():
        p.mul_(1.1)
    before, expected = model(x), other(x)
    assert largest(before - expected) > 1e-3 * largest(expected)
    clone = copy.deepcopy(model)
    clone.load_state_dict(other.state_dict())
    assert torch.equal(clone(x), expected)
    assert torch.equal(model(x), before)
    save = {key: value for key, value in other.state_dict().items() if "position_biases" in key}
    model.load_state_dict(save, strict=False)
    assert largest(model(x) - before) > 1e-6 * largest(before)
    for dtype in (torch.float64, torch.bfloat16):
        never_run = create_model("efficientvit_m0", num_classes=5).eval()
        never_run.load_state_dict(other.state_dict())
        assert torch.equal(other.to(dtype)(x.to(dtype)), never_run.to(dtype)(x.to(dtype)))
    with torch.device("meta"):
        empty = create_model("efficientvit_m0", num_classes=5).eval()
    empty = empty.to_empty(device="cpu")
    load_checkpoint(empty, clone.state_dict())
    assert torch.equal(empty(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """16-bit models compute in their type, and their outputs are close to float32."""
    model = filled("efficientvit_m0", "segment", num_classes=8)
    x = golden.image_input((2, 3, 96, 104))
    with torch.no_grad():
        expected = model(x)
        output = copy.deepcopy(model).to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert largest(output.float() - expected) <= (0.02 if dtype == torch.float16 else 0.1) * largest(expected)


@pytest.mark.parametrize("name", ["efficientvit_m0", *(pytest.param(n, marks=pytest.mark.long) for n in NAMES[1:])])
@pytest.mark.parametrize("options", [{"task": "segment"}, {"distilled": True}])
def test_trains(name: str, options: dict) -> None:
    """Every parameter has a gradient, and a step changes the output, which stays finite."""
    torch.manual_seed(0)
    model = filled(name, num_classes=3, **options).train()
    x = torch.randn(2, 3, 64, 96)
    output = model(x)
    output = torch.cat(output) if isinstance(output, tuple) else output
    (output * torch.randn_like(output)).mean().backward()
    without = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unmoved = [k for k, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not without
    assert not unmoved
    torch.optim.SGD(model.parameters(), 1e-3).step()
    with torch.no_grad():
        assert model.eval()(x).isfinite().all()


@torch.no_grad()
def test_fresh_blocks_pass_their_input_on() -> None:
    """The norms at the end of residual branches start at 0, except in the first layers around the downsampling."""
    x = torch.randn(2, 64, 9, 9)
    block = EfficientViTMBlock(64, 4, kernel_sizes=(5, 5, 5, 5), window_size=7)
    assert torch.equal(block(x), x)
    backbone = create_model("efficientvit_m0", features_only=True)
    down: Any = backbone.stages[1][0]
    assert down.conv1.norm.weight.eq(1).all()
    assert down.mlp2[1].norm.weight.eq(0).all()


def test_pooled_features_are_the_mean() -> None:
    """Pooled features as in the authors' code; a checkpoint with a classifier also loads into such a model."""
    model, x = filled(num_classes=0), torch.randn(2, 3, 64, 50)
    with torch.no_grad():
        assert model(x).shape == (2, model.head.num_features) == (2, 192)
        assert largest(model(x) - model.backbone(x)[-1].mean((2, 3))) < 1e-5


def test_matrices_and_prefixes(tmp_path: Path) -> None:
    """1x1 kernels saved as matrices, a "model" wrapper and a "module." prefix load into the same model."""
    state = published("msra-m0")
    expected = poured("msra-m0").state_dict()
    flat = {k: v[..., 0, 0] if v.ndim == 4 and v.shape[-1] == 1 else v for k, v in state.items()}
    assert sum(v.ndim == 2 for v in flat.values()) > sum(v.ndim == 2 for v in state.values())
    torch.save({"model": {f"module.{key}": value for key, value in flat.items()}}, tmp_path / "m0.pth")
    model = foveal.load_model(tmp_path / "m0.pth").double()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key].float(), expected[key].float()) for key in expected)
    assert model.foveal_info.preprocess.crop_ratio == 0.875  # pyright: ignore[reportAttributeAccessIssue]


def test_round_trip_with_options(tmp_path: Path) -> None:
    """Options are read from the description of our checkpoint, and inferred from its tensors without one."""
    model = filled(num_classes=4, in_chans=2, distilled=True, window_sizes=(7, 7, 6))
    save_checkpoint(tmp_path / "mine.safetensors", model.state_dict(), model.foveal_info)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    x = torch.randn(1, 2, 70, 90)
    for name in ("mine", "bare"):
        loaded = foveal.load_model(tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))
    fresh = create_model("efficientvit_m0", num_classes=9, in_chans=2, weights=tmp_path / "mine.safetensors")
    assert fresh.head.classifier_distilled.weight.shape == (9, 192)  # pyright: ignore[reportAttributeAccessIssue]
    features = create_model("efficientvit_m0", in_chans=2, features_only=True, weights=tmp_path / "mine.safetensors")
    with torch.no_grad():
        assert torch.equal(features.eval()(x)[-1], model.backbone(x)[-1])


def test_tables_fit_other_windows() -> None:
    """A model for 384 pixels interpolates the last table of biases as published (bicubic); the report names it."""
    state = published("msra-m0")
    model: Any = create_model("efficientvit_m0", window_sizes=(7, 7, 6)).double()
    report = load_checkpoint(model, state)
    keys = [f"backbone.stages.2.{i}.attention.position_biases" for i in (1, 2, 3)]
    assert list(report.resized) == keys
    own = model.state_dict()
    table = state["blocks3.3.mixer.m.attn.attention_biases"].view(1, 4, 4, 4)
    expected = F.interpolate(table, size=(6, 6), mode="bicubic", align_corners=False).view(4, 36)
    assert torch.equal(own[keys[0]], expected)
    assert load_checkpoint(create_model("efficientvit_m0"), state).resized == ()
    odd = {**state, "blocks3.3.mixer.m.attn.attention_biases": torch.zeros(4, 15)}
    with pytest.raises(CheckpointError, match=r"of another shape: backbone.stages.2.1.attention.position_biases"):
        load_checkpoint(create_model("efficientvit_m0"), odd)


def test_options_that_do_not_fit_are_refused() -> None:
    for windows in ((7, 7), (7, 7, 0), (1000, 1000, 1000)):
        with pytest.raises(ConfigError, match="give 3 sides of 1 to 64"):
            create_model("efficientvit_m0", window_sizes=windows)
    with pytest.raises(ConfigError, match="num_heads=5 does not divide 64 channels"):
        CascadedGroupAttention(64, 5)
    with pytest.raises(ConfigError, match="give one size for each of 4 heads"):
        CascadedGroupAttention(64, 4, kernel_sizes=(5,))
    with pytest.raises(ConfigError, match=r"no option 'distiled'.*'distilled'"):
        create_model("efficientvit_m0", distiled=True)
    for arguments in ({"task": "segment"}, {"features_only": True}):
        with pytest.raises(ConfigError, match="no option 'distilled'"):
            create_model("efficientvit_m0", distilled=True, **arguments)


def test_both_classifiers_learn_the_labels(tmp_path: Path) -> None:
    """Training without a teacher: the loss is the mean over both classifiers, and the best checkpoint loads."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for value, name in ((60, "dark"), (200, "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.clip(rng.normal(value, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    settings = {"task": "classify", "model": "efficientvit_m0", "options": {"distilled": True}, "crop": [64, 64]}
    job = ClassifyJob(tmp_path / "data", build_config(TrainConfig, settings), Progress(enabled=False))
    model = filled(num_classes=2, distilled=True).train()
    x, target = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 1])
    pair = model(x)
    expected = torch.stack([F.cross_entropy(logits, target, label_smoothing=job.smoothing) for logits in pair]).mean()
    assert torch.equal(job.loss(lambda _: pair, x, target), expected)  # pyright: ignore[reportArgumentType]
    run = foveal.train(tmp_path / "data", out=tmp_path / "run", epochs=2, batch_size=4, workers=0, **settings)
    best: Any = foveal.load_model(run.best)
    assert best.head.classifier_distilled.norm.running_mean.any()


@pytest.mark.long
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_onnx_equals_the_model(task: str, tmp_path: Path) -> None:
    """At sizes with one or several windows, with and without padding."""
    options: dict[str, Any] = {"distilled": True} if task == "classify" else {}
    model = filled("efficientvit_m0", task, num_classes=4, **options)
    file = foveal.export(model, output=tmp_path / "m0.onnx").path
    runner = NetworkRunner(onnx_network(file))
    for size in ((1, 32, 32), (2, 113, 240), (1, 448, 65)):
        x = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            expected = (model(x, upsample=False) if task == "segment" else model(x)).numpy()
        assert np.abs(runner(x.numpy()) - expected).max() <= 1e-4 * np.abs(expected).max()
