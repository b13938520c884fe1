"""EfficientViT B, L and XL: equal to the published networks, forward and backward, and usable at any size."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.weights.layouts import recognise
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.golden import largest

#: Reference, the name of our model, and its options.
MODELS = {
    "mit-cls-b0": ("efficientvit_b0", {}),
    "mit-cls-b0@128": ("efficientvit_b0", {}),  # where the authors' code takes its quadratic branch
    "mit-cls-b0@200x264": ("efficientvit_b0", {}),
    "mit-cls-b1": ("efficientvit_b1", {}),
    "mit-seg-b0-cityscapes": ("efficientvit_b0", {"task": "segment"}),
    "mit-seg-b1-ade20k": ("efficientvit_b1", {"task": "segment", "head": "ade20k"}),
    "mit-backbone-l0": ("efficientvit_l0", {"features_only": True}),
    "mit-cls-l1": ("efficientvit_l1", {}),
    "mit-cls-l1@160": ("efficientvit_l1", {}),
    "mit-seg-l1-cityscapes": ("efficientvit_l1", {"task": "segment"}),
    "timm-b1": ("efficientvit_b1", {"attention_eps": 1e-5}),
    "timm-l1": ("efficientvit_l1", {"attention_eps": 1e-5}),
}
#: Large models of which another one of the same blocks is compared as well.
LARGE_TWICE = ("mit-cls-l1@160", "mit-seg-l1-cityscapes")
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of the largest output
SIZES = st.tuples(st.integers(32, 120), st.integers(32, 120))


def poured(reference: str) -> Any:
    """Our model in float64 with the reference's weights, converted by our key names."""
    name, options = MODELS[reference]
    model = create_model(name, **options).double().eval()
    load_checkpoint(model, golden.state(golden.read("efficientvit_keys")[reference.partition("@")[0]]))
    return model


def logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of the published network: segmentation logits at its stride, or the last map of a backbone."""
    output = model(x, upsample=False) if hasattr(model, "stride") else model(x)
    return output[-1] if isinstance(output, list) else output


@pytest.mark.parametrize(
    "reference",
    [pytest.param(name, marks=[pytest.mark.long] if name in LARGE_TWICE else []) for name in MODELS],
)
def test_equals_the_published_network(reference: str) -> None:
    """Output and all maps of the backbone agree with the reference, in every precision that the reference has."""
    model = poured(reference)
    expected = golden.read("efficientvit_models")[reference]
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    x = golden.image_input(expected["input"])
    for precision in ("float64", "float32"):
        if precision not in expected:
            continue
        dtype = getattr(torch, precision)
        model.to(dtype)
        with torch.no_grad():
            output, maps = logits(model, x.to(dtype)), getattr(model, "backbone", model)(x.to(dtype))
        assert golden.difference(output, expected[precision]["output"]) <= TOLERANCE[precision]
        for result, brief in zip(maps, expected[precision]["stages"], strict=True):
            assert golden.difference(result, brief) <= TOLERANCE[precision]


def test_goldens_detect_a_wrong_epsilon() -> None:
    """With timm's attention epsilon instead of the official one, the outputs differ by far more than the tolerance."""
    model = poured("mit-cls-b1")
    for module in model.modules():
        if hasattr(module, "head_dim"):
            module.eps = 1e-5
    expected = golden.read("efficientvit_models")["mit-cls-b1"]
    with torch.no_grad():
        output = model(golden.image_input(expected["input"]).double())
    assert golden.difference(output, expected["float64"]["output"]) > 1e3 * TOLERANCE["float64"]


@pytest.mark.parametrize("reference", ["mit-cls-b0", "mit-seg-b0-cityscapes"])
def test_training_step_equals_the_published_one(reference: str) -> None:
    """Loss, gradients of input and parameters, and running variances after one float64 step in training mode."""
    expected = golden.read("efficientvit_training")[reference]
    model = poured(reference).train()
    x = golden.image_input(expected["input"]).double().requires_grad_()
    output = logits(model, x)
    loss = output.square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    assert golden.difference(output, expected["output"]) <= 1e-9
    assert x.grad is not None
    assert golden.difference(x.grad, expected["input_grad"]) <= 1e-9
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    norms = {key: float(g.norm()) for key, g in gradients.items() if g is not None}
    total = torch.tensor(list(norms.values())).double().norm().item()
    assert norms.keys() == gradients.keys()
    assert total == pytest.approx(expected["grad_l2_total"], rel=1e-7)  # the norms went through float32 lists
    shapes = golden.read("efficientvit_keys")[reference]
    for key, norm in expected["grad_l2"].items():
        assert norms[our_key(key, shapes)] == pytest.approx(norm, rel=1e-9, abs=1e-13)
    buffers = dict(model.named_buffers())
    for key, brief in expected["running_var_after"].items():
        assert golden.difference(buffers[our_key(key, shapes)], brief) <= 1e-9


def our_key(key: str, shapes: dict[str, list[int]]) -> str:
    """Return our name of the tensor that the published model calls ``key``."""
    marked = {name: torch.tensor(float(name == key)) for name in shapes}
    return next(name for name, value in recognise(marked).state.items() if value)


@pytest.mark.parametrize(
    "size", ["b0", "b1", "l1", *(pytest.param(size, marks=pytest.mark.long) for size in ("b2", "b3", "l2"))]
)
def test_equals_timm(size: str) -> None:
    """timm's own network gives the same logits and maps with the same weights."""
    peer = golden.fill(timm.create_model(f"efficientvit_{size}", pretrained=False, num_classes=10))
    ours: Any = create_model(f"efficientvit_{size}", num_classes=10, attention_eps=1e-5).eval()
    assert load_checkpoint(ours, peer.state_dict()).loaded == len(peer.state_dict())
    x = golden.image_input((2, 3, 96, 128))
    with torch.no_grad():
        expected, output = peer(x), ours(x)
        maps = zip(peer.forward_intermediates(x, intermediates_only=True), ours.backbone(x), strict=True)
    assert largest(expected[0] - expected[1]) > 0.02 * largest(expected), "a peer that ignores its input proves nothing"
    assert largest(output - expected) <= 1e-5 * largest(expected)
    for theirs, map_ in maps:
        assert largest(map_ - theirs) <= 1e-5 * largest(theirs)


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        ("efficientvit_b0", {"features_only": True}, 682_608),
        ("efficientvit_b1", {"features_only": True}, 4_643_936),
        ("efficientvit_b2", {"features_only": True}, 14_977_008),
        ("efficientvit_b3", {"features_only": True}, 38_997_440),
        ("efficientvit_l0", {"features_only": True}, 27_805_472),
        ("efficientvit_l1", {"features_only": True}, 38_037_280),
        ("efficientvit_l2", {"features_only": True}, 49_090_208),
        ("efficientvit_l3", {"features_only": True}, 193_998_144),
        ("efficientvit_xl0", {"features_only": True}, 96_622_752),
        ("efficientvit_xl1", {"features_only": True}, 167_266_976),
        ("efficientvit_b0", {}, 3_410_008),
        ("efficientvit_b1", {}, 9_102_024),
        ("efficientvit_b2", {}, 24_330_712),
        ("efficientvit_b3", {}, 48_646_056),
        ("efficientvit_l1", {}, 52_654_088),
        ("efficientvit_l2", {}, 63_707_016),
        ("efficientvit_l3", {}, 246_037_288),
        ("efficientvit_l1", {"task": "segment"}, 40_242_227),
        ("efficientvit_l2", {"task": "segment"}, 52_607_923),
        ("efficientvit_l1", {"task": "segment", "head": "ade20k"}, 40_409_526),
        ("efficientvit_l2", {"task": "segment", "head": "ade20k"}, 51_462_454),
        ("efficientvit_b0", {"task": "segment"}, 706_691),
        ("efficientvit_b1", {"task": "segment"}, 4_803_443),
        ("efficientvit_b2", {"task": "segment"}, 15_323_779),
        ("efficientvit_b3", {"task": "segment"}, 39_603_155),
        ("efficientvit_b1", {"task": "segment", "head": "ade20k"}, 4_791_414),
        ("efficientvit_b2", {"task": "segment", "head": "ade20k"}, 15_293_382),
        ("efficientvit_b3", {"task": "segment", "head": "ade20k"}, 39_546_198),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, options: dict, params: int) -> None:
    with torch.device("meta"):
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == params


@cache
def built(task: str) -> Any:
    """A B0 whose weights all affect the output; not a fixture, so that failures print the size and not the model."""
    options: dict[str, Any] = {"features": {"features_only": True}, "classify": {"num_classes": 7}}.get(task, {})
    return golden.fill(create_model("efficientvit_b0", **options or {"task": "segment", "num_classes": 5}))


@torch.no_grad()
@settings(max_examples=32)
@example((32, 32))
@example((33, 47))
@given(SIZES)
def test_features_at_any_size(size: tuple[int, int]) -> None:
    """Four maps with the strides and channels of ``feature_info``, sides rounded up."""
    backbone = built("features")
    maps = backbone(torch.randn(1, 3, *size))
    assert [(info.channels, info.stride) for info in backbone.feature_info] == [(16, 4), (32, 8), (64, 16), (128, 32)]
    for output, info in zip(maps, backbone.feature_info, strict=True):
        assert output.shape == (1, info.channels, *(-(-side // info.stride) for side in size))
        assert output.isfinite().all()


@torch.no_grad()
@settings(max_examples=32)
@example((32, 32))
@example((161, 33))
@given(SIZES)
def test_classifies_at_any_size(size: tuple[int, int]) -> None:
    """One row of finite logits per image, which depends on that image only."""
    classifier = built("classify")
    x = torch.randn(2, 3, *size)
    output = classifier(x)
    assert output.shape == (2, 7)
    assert output.isfinite().all()
    assert largest(output[0] - output[1]) > 1e-3
    assert largest(classifier(x[1:])[0] - output[1]) < 1e-5


@torch.no_grad()
@settings(max_examples=40)
@example((32, 32))
@example((65, 97))
@given(SIZES)
def test_segments_at_any_size(size: tuple[int, int]) -> None:
    """Equal to the cropped result for the padded image, both at the network's stride and after upsampling."""
    segmenter = built("segment")
    height, width = size
    x = torch.randn(1, 3, height, width)
    output, coarse = segmenter(x), segmenter(x, upsample=False)
    assert output.shape == (1, 5, height, width)
    assert coarse.shape == (1, 5, -(-height // 8), -(-width // 8))
    padded = F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
    whole = segmenter.head(segmenter.backbone(padded))
    assert torch.equal(coarse, whole[..., : coarse.shape[-2], : coarse.shape[-1]])
    full = F.interpolate(whole, scale_factor=8, mode="bilinear", align_corners=False)
    assert largest(output - full[..., :height, :width]) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 31), (1, 1), (8, 4096)])
@pytest.mark.parametrize("options", [{}, {"task": "segment"}, {"features_only": True}])
def test_too_small_images_are_refused(height: int, width: int, options: dict) -> None:
    model = create_model("efficientvit_b0", **options).eval()
    with pytest.raises(InputError, match=rf"{height}x{width} \(H x W\) is smaller than .*32x32"):
        model(torch.zeros(1, 3, height, width))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_other_channels(channels: int, task: str) -> None:
    """``in_chans`` changes only the stem, and all channels affect the output."""
    model = golden.fill(create_model("efficientvit_b0", task, num_classes=3, in_chans=channels))
    x = torch.randn(2, channels, 40, 72)
    for channel in range(channels):
        other = x.clone()
        other[:, channel] += 1
        assert largest(model(x) - model(other)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("name", "width"), [("efficientvit_b0", 1280), ("efficientvit_b1", 1600)])
def test_no_classes_gives_pooled_features(name: str, width: int) -> None:
    """The pooled features are the input of the classifier: with its weights, they give its logits."""
    model = golden.fill(create_model(name, num_classes=6))
    pooled = golden.fill(create_model(name, num_classes=0))
    x = torch.randn(2, 3, 64, 50)
    features = pooled(x)
    assert features.shape == (2, width) == (2, pooled.head.num_features)
    assert largest(model.head.classifier(features) - model(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "branches"),
    [({"scales": ()}, 0), ({"scales": (3,)}, 1), ({"scales": (3, 5, 7)}, 3), ({"global_attention": False}, 1)],
)
def test_ablations(options: dict, branches: int) -> None:
    """Any number of branches, and the paper's two ablations, change outputs and parameters but not shapes."""
    model, standard = (golden.fill(create_model("efficientvit_b0", features_only=True, **o)) for o in (options, {}))
    assert len(model.stages[3][1].attention.aggregate) == branches
    x = torch.randn(1, 3, 70, 64)
    for index, (output, other) in enumerate(zip(model(x), standard(x), strict=True)):
        assert output.shape == other.shape
        assert (largest(output - other) > 1e-3) is (index >= 2), "the first two stages have no attention"


@pytest.mark.parametrize(("name", "scale"), [("efficientvit_b0", 3), ("efficientvit_xl0", 5)])
def test_scales_of_other_variants_are_identified(name: str, scale: int) -> None:
    with torch.device("meta"):
        state = create_model(name, features_only=True, scales=(scale,)).state_dict()
    info = identify(state)
    assert (info.model, info.options) == (name, {"scales": [scale]})


def test_scales_must_be_odd() -> None:
    with pytest.raises(ConfigError, match=r"scales=\(3, 4\).*odd"):
        create_model("efficientvit_b0", scales=(3, 4))


@torch.no_grad()
def test_global_attention_reaches_everywhere() -> None:
    """A change in one corner affects the opposite corner with attention, but not without it."""
    x = torch.randn(1, 3, 256, 256)
    other = x.clone()
    other[..., :16, :16] += 5
    for attention in (True, False):
        model = golden.fill(create_model("efficientvit_b0", features_only=True, scales=(), global_attention=attention))
        before, after = (model(image)[2][..., -1, -1] for image in (x, other))
        assert (largest(before - after) > 1e-5) is attention


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_half_precision_runs(task: str, dtype: torch.dtype) -> None:
    """16-bit models compute in their type throughout, and their outputs are close to float32."""
    model = golden.fill(create_model("efficientvit_b0", task, num_classes=8))
    x = golden.image_input((2, 3, 96, 104))
    expected = model(x)
    output = copy.deepcopy(model).to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()
    tolerance = 0.01 if dtype == torch.float16 else 0.08
    assert largest(output.float() - expected) <= tolerance * largest(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_trains(dtype: torch.dtype, autocast: bool) -> None:
    """Gradients of all parameters together point where float32's do: in a 16-bit model and under autocast.

    With frozen statistics: those of a few positions alone would turn rounding into other directions.
    """
    model = golden.fill(create_model("efficientvit_b0", "segment", num_classes=3)).eval()
    x = golden.image_input((2, 3, 64, 72))
    gradients = []
    for kind in (torch.float32, dtype):
        net = copy.deepcopy(model) if autocast else copy.deepcopy(model).to(kind)
        with torch.autocast("cpu", dtype, enabled=autocast and kind == dtype):
            output = net(x if autocast else x.to(kind))
        output.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None]))
    assert gradients[1].isfinite().all()
    assert F.cosine_similarity(*gradients, dim=0) > (0.9999 if dtype == torch.float16 else 0.999)


def test_copies_are_independent() -> None:
    """A deep copy has the same outputs and description, and training it does not change the original."""
    segmenter = built("segment")
    x = torch.randn(2, 3, 64, 64)
    clone = copy.deepcopy(segmenter)
    with torch.no_grad():
        before = segmenter(x)
        assert torch.equal(clone(x), before)
    assert clone.foveal_info == segmenter.foveal_info
    clone.train()(x).square().mean().backward()
    torch.optim.SGD(clone.parameters(), 0.1).step()
    with torch.no_grad():
        assert torch.equal(segmenter(x), before)
        assert not torch.equal(clone.eval()(x), before)


@pytest.mark.parametrize("options", [{"num_classes": 4}, {"task": "segment", "num_classes": 4}])
def test_gradients_reach_every_parameter(options: dict) -> None:
    torch.manual_seed(0)
    model = create_model("efficientvit_b0", **options).train()
    output = model(torch.randn(2, 3, 64, 96))
    (output * torch.randn_like(output)).sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unmoved = [key for key, p in model.named_parameters() if p.grad is not None and not p.grad.abs().sum()]
    assert not without
    assert not unmoved


def test_timm_files_get_the_epsilon_of_timm() -> None:
    """The same tensors with the authors' names and with timm's names are two networks, with different epsilons."""
    names = timm.create_model("efficientvit_b1", pretrained=False, num_classes=3).state_dict()
    assert identify(names).options == {"attention_eps": 1e-5}
    assert identify(create_model("efficientvit_b1", num_classes=3).state_dict()).options == {}
