"""MambaVision: equal to the published networks, for any size, window and precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import foveal
from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model
from foveal.info import ModelInfo, info_of
from foveal.layers.drop_path import DropPath, drop_path_rates
from foveal.models.mambavision import CONFIGS, Block, ClassifierHead, MambaMixer, MambaVision, WindowStage
from foveal.training.parameter_groups import parameter_groups
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.golden import largest
from helpers.mambavisions import SMALL, built, published_state, small

TOLERANCE = 5e-5  # of the standard deviation: half of what the least mistake changes
SIZES = st.tuples(st.integers(32, 150), st.integers(32, 150))


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    return published_state("mambavision_t")


@pytest.fixture(scope="module")
def tiny(tiny_state: dict[str, torch.Tensor]) -> Any:
    """MambaVision-T with the reference's weights."""
    model = create_model("mambavision_t").eval()
    load_checkpoint(model, tiny_state)
    return model


# ---- parity


def traced(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the intermediate outputs of the network, with the names of the reference."""
    result: dict[str, torch.Tensor] = {}
    stages = model.backbone.stages
    places = {"patch_embed": model.backbone.stem, "level3_out_after_downsample": stages[3]}
    for i, stage in enumerate(stages):
        kind = "_windows" if i > 1 else ""
        places |= {f"level{i}_block0{kind}": stage.blocks[0], f"level{i}_lastblock{kind}": stage.blocks[-1]}
        places |= {f"level{i - 1}_out_after_downsample": stage.downsample} if i else {}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: result.__setitem__(name, output))
        for name, part in places.items()
    ]
    with torch.no_grad():
        result["logits"] = model(x)
        result["features"] = model.head.norm(result["level3_out_after_downsample"]).mean((2, 3))
    for hook in hooks:
        hook.remove()
    return result


def differences(model: Any, case: dict[str, Any]) -> dict[str, float]:
    dtype = next(model.parameters()).dtype
    output = traced(model, golden.normal_input(case["input"]).to(dtype))
    expected = {**case["stages"], "logits": case["logits"], "features": case["features"]}
    assert output.keys() == expected.keys()
    return {key: golden.spread_difference(output[key], expected[key]) for key in expected}


@pytest.mark.parametrize("index", range(3))
def test_equals_the_published_network(tiny: Any, index: int) -> None:
    """Every stage, the pooled features and the logits: with padding, without padding, and at an odd size."""
    case = golden.read("mambavision_models")["mambavision_t"]["cases"][index]
    result = differences(tiny, case)
    assert max(result.values()) <= TOLERANCE, result


def test_equals_the_published_network_with_layer_scale() -> None:
    """In float64: its 48 blocks round in float32 by up to 5e-5, depending on the processor."""
    model = create_model("mambavision_l").eval()
    load_checkpoint(model, published_state("mambavision_l"))
    model.double()
    for case in golden.read("mambavision_models")["mambavision_l"]["cases"]:
        result = differences(model, case)
        assert max(result.values()) <= TOLERANCE, result


def test_equals_the_published_network_in_float64(tiny: Any) -> None:
    model = copy.deepcopy(tiny).double()
    for case in golden.read("mambavision_models")["mambavision_t"]["cases"][:1]:
        with torch.no_grad():
            output = model(golden.normal_input(case["input"]).double())
        assert golden.spread_difference(output, case["logits_float64"]) <= 1e-6  # its digits


def _norms(model: Any, kind: type, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, kind):
            module.eps = eps


def _double_bias_once(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, MambaMixer):
            forward, bias = module.dt_proj.forward, module.dt_proj.bias
            module.dt_proj.forward = lambda input, f=forward, b=bias: f(input) - b


def _windows(model: Any) -> None:
    model.backbone.stages[3].window_size = 14


@pytest.mark.parametrize(
    "mistake",
    [
        lambda model: _norms(model, torch.nn.LayerNorm, 1e-6),
        lambda model: _norms(model.backbone.stem, torch.nn.BatchNorm2d, 1e-5),
        lambda model: _norms(model.head, torch.nn.BatchNorm2d, 1e-3),
        _double_bias_once,
        _windows,
    ],
)
def test_goldens_notice_mistakes(tiny: Any, mistake: Any) -> None:
    model = copy.deepcopy(tiny)
    mistake(model)
    case = golden.read("mambavision_models")["mambavision_t"]["cases"][0]
    with torch.no_grad():
        logits = model(golden.normal_input(case["input"]))
    assert golden.spread_difference(logits, case["logits"]) > 3 * TOLERANCE


#: Parameters, blocks that scan and attend, heads, windows, drop path, layer scale, as published.
TABLE = {
    "t": (31_794_248, "4+4 2+2", (8, 16), (14, 7), 0.2, None),
    "t2": (35_104_008, "6+5 2+2", (8, 16), (14, 7), 0.2, None),
    "s": (50_140_584, "4+3 3+2", (8, 16), (14, 7), 0.2, None),
    "b": (97_685_288, "5+5 3+2", (8, 16), (14, 7), 0.3, 1e-5),
    "l": (227_961_048, "5+5 3+2", (16, 32), (14, 7), 0.3, 1e-5),
    "l2": (241_554_824, "6+6 3+2", (16, 32), (14, 7), 0.3, 1e-5),
    "l3": (739_570_472, "10+10 5+5", (16, 32), (16, 8), 0.5, 1e-5),
}


@pytest.mark.parametrize("variant", TABLE)
def test_variants_are_the_published_ones(variant: str) -> None:
    """Build on the meta device, without memory or computation."""
    params, mixers, heads, windows, rate, scale = TABLE[variant]
    with torch.device("meta"):
        model: Any = create_model(f"mambavision_{variant}")
    assert sum(p.numel() for p in model.parameters()) == params
    stages = list(model.backbone.stages)[2:]
    for stage, kinds, number, window in zip(stages, mixers.split(), heads, windows, strict=True):
        scanning = [isinstance(block.mixer, MambaMixer) for block in stage.blocks]
        assert scanning == [True] * int(kinds.split("+")[0]) + [False] * int(kinds.split("+")[1])
        assert stage.blocks[-1].mixer.num_heads == number
        assert stage.window_size == window
    drops = [part.rate for part in model.modules() if isinstance(part, DropPath)]
    assert (drops[0], drops[-1]) == (0, pytest.approx(rate))
    assert drops == sorted(drops)
    gammas = [key for key in model.state_dict() if "gamma" in key]
    assert len(gammas) == (2 * sum(len(stage.blocks) for stage in stages) if scale else 0)
    assert CONFIGS[f"mambavision_{variant}"].layer_scale == scale


def test_fresh_weights_are_initialised_as_published() -> None:
    model = MambaVision(SMALL)
    mixer: Any = next(part for part in model.modules() if isinstance(part, MambaMixer))
    assert torch.equal(mixer.A_log, torch.arange(1, 9).float().log().expand(32, 8))
    assert torch.equal(mixer.D, torch.ones(32))
    assert not mixer.dt_proj.bias.any()
    weights = torch.cat([part.weight.flatten() for part in model.modules() if isinstance(part, torch.nn.Linear)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    block: Any = next(part for part in model.modules() if isinstance(part, Block))
    assert torch.equal(block.gamma_1, torch.full((64,), 0.5))


# ---- any size, any window


@torch.no_grad()
@settings(max_examples=12)
@example((32, 32))
@example((33, 47))
@given(SIZES)
def test_features_at_any_size(size: tuple[int, int]) -> None:
    backbone = built("features")
    assert [(info.channels, info.stride) for info in backbone.feature_info] == [(16, 4), (32, 8), (64, 16), (128, 32)]
    for output, info in zip(backbone(torch.randn(2, 3, *size)), backbone.feature_info, strict=True):
        assert output.shape == (2, info.channels, *(-(-side // info.stride) for side in size))
        assert output.isfinite().all()


@torch.no_grad()
@settings(max_examples=12)
@given(SIZES)
def test_classifies_and_segments_at_any_size(size: tuple[int, int]) -> None:
    """Logits depend on one image of the batch only; the logits of a segmenter have the size of the image."""
    x = torch.randn(2, 3, *size)
    output = built("classify")(x)
    assert output.shape == (2, 7)
    assert largest(output[0] - output[1]) > 1e-3
    assert largest(built("classify")(x[1:])[0] - output[1]) < 1e-4 * largest(output)
    assert built("segment")(x).shape == (2, 5, *size)


@torch.no_grad()
@settings(max_examples=20)
@given(size=st.integers(2, 9), height=st.integers(2, 24), width=st.integers(2, 24))
def test_neutral_padding_is_no_padding(size: int, height: int, width: int) -> None:
    """A window at the edge gives the same result as the stage on that part of the map alone, as one window."""
    stage: WindowStage = built("features", neutral_padding=True).stages[2]
    whole: WindowStage = built("features", window_size="whole").stages[2]
    x = torch.randn(2, 64, height, width)
    stage, part = copy.copy(stage), copy.copy(whole)
    stage.window_size = size
    stage._modules = {**stage._modules, "downsample": torch.nn.Identity()}
    part._modules = {**part._modules, "downsample": torch.nn.Identity()}
    output = stage(x)
    for top in range(0, height, size):
        for left in range(0, width, size):
            area = (..., slice(top, top + size), slice(left, left + size))
            assert largest(output[area] - part(x[area])) < 1e-4 * largest(output)


@torch.no_grad()
def test_neutral_padding_makes_the_window_irrelevant() -> None:
    """With neutral padding, all windows that contain the whole map give the same result; as published, they differ."""
    x = torch.randn(1, 3, 70, 90)
    windows = [(6, 3), (8, 5), (11, 7)]
    whole = small(window_size="whole")(x)
    neutral = [small(window_size=window, neutral_padding=True)(x) for window in windows]
    default = [small(window_size=window)(x) for window in windows]
    assert all(largest(output - whole) < 1e-4 * largest(whole) for output in neutral)
    assert all(largest(output - whole) > 1e-2 * largest(whole) for output in default)
    divisible = torch.randn(1, 3, 96, 96)
    same = small(neutral_padding=True)(divisible) - small()(divisible)
    assert largest(same) < 1e-4 * largest(whole), "where nothing is padded, nothing changes"


def test_padding_gets_no_gradient_when_neutral() -> None:
    """The gradient of the map is finite and equal to that without windows."""
    x = torch.randn(1, 3, 64, 64)
    gradients = []
    for window, neutral in (((6, 3), True), ("whole", False)):
        model = small(window_size=window, neutral_padding=neutral).double()
        model(x.double()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert largest(gradients[0] - gradients[1]) < 1e-9 * largest(gradients[1])


@pytest.mark.parametrize("window", [(5, "whole"), [5, "whole"], (8, 8, 5, "whole")])
def test_windows_are_given_in_many_ways(window: Any) -> None:
    model: Any = create_model("mambavision_t", features_only=True, window_size=window)
    assert [stage.window_size for stage in model.stages[2:]] == [5, "whole"]
    assert ModelInfo.from_json(info_of(model).to_json()).options == {"window_size": list(window)}


@pytest.mark.parametrize("window", [0, -7, 2.5, "all", (14,), (14, 7, 3), (14, True), (), 257, 20_000])
def test_impossible_windows_are_refused(window: Any) -> None:
    with pytest.raises(ConfigError, match=r"window_size=.*give 1 to 256"):
        create_model("mambavision_t", window_size=window)


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match="drop_path_rate=1"):
        create_model("mambavision_t", drop_path_rate=1)
    with pytest.raises(ConfigError, match="window_size"):
        create_model("mambavision_t", windows_size=7)
    with pytest.raises(InputError, match=r"31x64 \(H x W\) is smaller"):
        small()(torch.zeros(1, 3, 31, 64))


@torch.no_grad()
def test_a_size_of_ones_own(tmp_path: Path) -> None:
    sizes = {"embed_dim": 12, "stem_dim": 16, "depths": [1, 2, 4, 2], "num_heads": [4, 8]}
    model = create_model("mambavision_t", "segment", num_classes=3, head_width=24, head_depth=1, **sizes).eval()
    assert [info.channels for info in model.backbone.feature_info] == [12, 24, 48, 96]
    assert [len(stage.blocks) for stage in model.backbone.stages] == [1, 2, 4, 2]
    assert model.backbone.stem[0].conv.out_channels == 16
    assert model.backbone.stages[3].blocks[1].mixer.num_heads == 8
    assert (model.head.laterals[0].conv.out_channels, len(model.head.blocks)) == (24, 1)
    again = foveal.from_pretrained(foveal.save_pretrained(model, tmp_path / "small")).eval()
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"depths": [1, 2]}, "give 4 numbers"),
        ({"depths": 3}, "give 4 numbers"),
        ({"num_heads": [2, 4, 8, 16]}, "give 2 numbers"),
        ({"num_heads": [7, 8]}, "7"),
        ({"embed_dim": [80]}, "give one number"),
        ({"embed_dim": "80"}, "give one number"),
        ({"embed_dim": 0}, "positive whole"),
        ({"stem_dim": 8.5}, "positive whole"),
        ({"head_width": 0}, "1 or more"),
        ({"head_depth": True}, "1 or more"),
    ],
)
def test_impossible_sizes_are_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        create_model("mambavision_t", "segment", **option)
    assert next(iter(option)) in str(caught.value)


def test_other_channels_and_no_classes() -> None:
    model = small(in_chans=4)
    x = torch.randn(1, 4, 40, 72)
    for channel in range(4):
        other = x.clone()
        other[:, channel] += 1
        assert largest(model(x) - model(other)) > 1e-3
    pooled = ClassifierHead(128, 0).eval()
    load_checkpoint(pooled, {"norm." + key: value for key, value in model.head.norm.state_dict().items()})
    features = pooled(model.backbone(x)[-1])
    assert features.shape == (1, 128) == (1, pooled.num_features)
    assert torch.equal(model.head(model.backbone(x)[-1], pre_logits=True), features)
    assert largest(model.head.classifier(features) - model(x)) < 1e-5


# ---- precision, training


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neutral", [False, True])
def test_half_precision_runs(dtype: torch.dtype, neutral: bool) -> None:
    model = small(neutral_padding=neutral)
    x = golden.image_input((2, 3, 96, 104))
    expected = model(x)
    result = copy.deepcopy(model).to(dtype)(x.to(dtype))
    with torch.autocast("cpu", dtype):
        mixed = model(x)
    assert result.dtype == mixed.dtype == dtype
    tolerance = 0.02 if dtype == torch.float16 else 0.15
    for output in (result, mixed):
        assert largest(output.float() - expected) <= tolerance * largest(expected)


@torch.no_grad()
def test_layout_of_memory_does_not_matter() -> None:
    model, x = small("segment"), torch.randn(2, 3, 70, 66)
    expected = model(x)
    output = copy.deepcopy(model).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert largest(output - expected) < 1e-5 * largest(expected)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_gradients_reach_every_parameter(task: str) -> None:
    model = small(task).train()
    output = model(torch.randn(2, 3, 64, 96))
    (output * torch.randn_like(output)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_drop_path_leaves_out_whole_images_in_training_only() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    output = drop(x)
    assert output.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert torch.equal(output.amin((1, 2)), output.amax((1, 2)))
    assert output.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    assert drop_path_rates(0.3, (1, 3)) == [[0], pytest.approx([0.1, 0.2, 0.3])]
    model = small(drop_path_rate=0.9).train()
    image = torch.randn(2, 3, 64, 64)
    assert largest(model(image) - model(image)) > 1e-3
    assert torch.equal(model.eval()(image), model(image))


def test_states_do_not_decay() -> None:
    """Weight decay on A_log would pull the decay rates of the scan towards 1."""
    model = small()
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.05))
    assert {key.rpartition(".")[2] for key in decayed} == {"weight"}
    assert any(key.endswith("A_log") for key in others)
    assert len(decayed) + len(others) == len(names)
