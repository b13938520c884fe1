"""Our models in timm and in libraries on top of it, with the properties that timm's own tests check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

import foveal.timm  # registers the models
from foveal.errors import ConfigError
from foveal.factory.create import create_model, list_models
from foveal.info import info_of
from foveal.models.registry import FAMILIES
from foveal.weights.checkpoints import save_checkpoint

NAMES = [f"foveal_{name}" for name in list_models(task="classify")]


#: Smallest and largest classifier of the families whose variants do not begin and end with them.
UNORDERED = {
    "efficientnet": ("efficientnet_lite0", "efficientnet_b7"),
    "mobilenet": ("mobilenetv3_small_100", "mobilenetv3_large_100"),
}


def ends(family: str) -> list[str]:
    """The family's smallest and largest classifier, if there are two; to build all of them would take seconds."""
    names = [name for name, variant in FAMILIES[family].variants.items() if variant.classifier is not None]
    return [f"foveal_{name}" for name in UNORDERED.get(family, dict.fromkeys((*names[:1], *names[-1:])))]


BY_SIZE = [names for family in FAMILIES if (names := ends(family))]
SMALLEST = [names[0] for names in BY_SIZE]
#: Of each family the smallest classifier, and the largest as a long test.
ENDS = [*SMALLEST, *(pytest.param(names[-1], marks=pytest.mark.long) for names in BY_SIZE if len(names) > 1)]
#: Models that begin with patches of 16 pixels.
PATCHES = ["foveal_edifice_efficient_vit"]


def on_meta(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def test_every_classifier_is_registered() -> None:
    assert sorted(timm.list_models("foveal_*")) == sorted(NAMES)
    published = list_models(task="classify", pretrained=True)
    assert sorted(timm.list_models("foveal_*", pretrained=True)) == sorted(
        f"foveal_{ref}" for ref in published if ref not in foveal.assets.WEIGHTS
    )


@pytest.mark.parametrize("name", ENDS)
def test_shapes_of_features_and_heads(name: str) -> None:
    """Channels, reductions and modules are as stated; the head can be replaced, removed and bypassed."""
    x = torch.empty(2, 3, 96, 128, device="meta")
    model = on_meta(name, num_classes=7)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features == model.feature_info[-1]["num_chs"]
    assert model(x).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    assert model.prune_intermediate_layers(1) == [len(model.feature_info) - 1]
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == features.shape
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    modules = dict(model.named_modules())
    assert all(info["module"] in modules for info in model.feature_info)
    for key in ("first_conv", "classifier"):
        assert model.default_cfg[key] in modules


@pytest.mark.parametrize("name", ENDS)
def test_pyramids(name: str) -> None:
    net = on_meta(name, features_only=True, in_chans=4)
    x = torch.empty(1, 4, 192, 256, device="meta")
    maps = net(x)
    # Libraries on top of timm assume one of these; a stem of patches has no finer feature map than the patches.
    assert net.feature_info.reduction()[0] in (2, 4) or name in PATCHES
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert [192 // m.shape[2] for m in maps] == net.feature_info.reduction()
    assert not any(".classifier" in key for key, _ in net.named_parameters())
    chosen = on_meta(name, features_only=True, in_chans=4, out_indices=(1, -1))
    assert [m.shape for m in chosen(x)] == [maps[1].shape, maps[-1].shape]
    last, all_maps = on_meta(name, in_chans=4).forward_intermediates(x)
    assert last.shape == maps[-1].shape
    assert len(all_maps) == len(maps)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if "edifice" in name else []) for name in SMALLEST]
)
def test_equals_our_own_model_and_has_gradients(name: str, tmp_path: Path) -> None:
    """Same keys and logits, with our file as ``pretrained_cfg_overlay``; every parameter has a gradient."""
    ours = create_model(name.removeprefix("foveal_"), "classify", num_classes=5).eval()
    save_checkpoint(tmp_path / "ours.safetensors", ours.state_dict(), info_of(ours))
    model: Any = timm.create_model(
        name, pretrained=True, num_classes=5, pretrained_cfg_overlay={"file": str(tmp_path / "ours.safetensors")}
    ).eval()
    assert model.state_dict().keys() == ours.state_dict().keys()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x), ours(x))
        assert torch.equal(model.forward_head(model.forward_features(x)), ours(x))
    model.train()
    model(x).square().mean().backward()
    plain = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(grad.isfinite().all() for grad in plain.values())
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups.keys() == plain.keys()
    assert len(set(groups.values())) > 3


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if "mamba" in name else []) for name in SMALLEST]
)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=3).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    found = []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert found[0].abs().max() > 0
    assert all(torch.allclose(g, found[0], rtol=1e-9, atol=1e-12) for g in found[1:])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("foveal_efficientvit_b0", "foveal_vit_tiny") else [pytest.mark.long])
        for name in SMALLEST
        if name not in PATCHES
    ],
)
def test_a_unet_of_another_library_learns(name: str) -> None:
    """The loss on one synthetic image falls by 40 % in 20 steps."""
    torch.manual_seed(0)
    channels = (32, 16, 16, 8) if "tinyvit" in name else (32, 16, 16, 8, 8)  # its maps end at stride 16
    depth = len(channels)
    net = smp.Unet(f"tu-{name}", depth, encoder_weights=None, classes=2, decoder_channels=channels)
    image = torch.randn(2, 3, 64, 64)
    mask = (image.mean(1) > 0).long()
    mask[:, :, 32:] = 1
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize("name", ["foveal_efficientvit_b0", "foveal_mobilenetv3_small_100"])
@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_decoders_of_another_library(name: str, decoder: str) -> None:
    """Five maps from stride 2 on, and dilated stages, which these decoders ask for."""
    with torch.device("meta"):
        net = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, in_channels=4, classes=2).eval()
    x = torch.empty(1, 4, 128, 192, device="meta")
    assert net(x).shape == (1, 2, 128, 192)
    stride = {"Unet": 32, "DeepLabV3": 8}.get(decoder, 16)
    assert [128 // m.shape[2] for m in net.encoder(x)] == [min(1 << i, stride) for i in range(6)]


def test_rates_and_sizes() -> None:
    """``drop_rate`` and ``drop_path_rate`` act in training only; ``img_size`` goes into the description."""
    for name in ("efficientvit_b0", "mobilenetv3_small_100"):  # without and with a dropout of its own
        torch.manual_seed(0)
        model: Any = timm.create_model(f"foveal_{name}", num_classes=3, drop_rate=0.5)
        x = torch.randn(2, model.num_features, 2, 2)
        model.reset_classifier(3)
        assert torch.equal(model.eval().forward_head(x), model.forward_head(x))
        model.head.train()
        for part in model.head.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        assert not torch.equal(model.forward_head(x), model.forward_head(x))
    plain: Any = timm.create_model(
        "foveal_mobilenetv3_small_100", drop_rate=0.0, drop_path_rate=0.3, img_size=(96, 160)
    )
    assert (plain.head.dropout.p, plain.backbone.stages[-1][-2].drop_path.rate) == (0, pytest.approx(0.3 * 10 / 11))
    assert (plain.default_cfg["input_size"], plain.default_cfg["pool_size"]) == ((3, 96, 160), (3, 5))
    assert timm.data.resolve_data_config(model=plain)["input_size"] == (3, 96, 160)
    wide = on_meta("foveal_efficientvit_b0", features_only=True, img_size=100, output_stride=16)
    assert (wide.default_cfg["input_size"], wide.default_cfg["pool_size"]) == ((3, 100, 100), (7, 7))


def test_both_classifiers_of_a_distilled_model_are_replaced() -> None:
    model = on_meta("foveal_efficientvit_m0", num_classes=3, distilled=True)
    x = torch.empty(2, 3, 64, 64, device="meta")
    model.reset_classifier(0)
    for training in (True, False):
        assert model.train(training)(x).shape == (2, model.num_features)
    model.reset_classifier(5)
    assert [logits.shape for logits in model.train()(x)] == [(2, 5), (2, 5)]
    assert model.eval()(x).shape == (2, 5)


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_parameters_of_a_mambavision(coarse: bool) -> None:
    """What is outside the blocks belongs to a stage, too, and nothing comes after the head."""
    sizes: dict[str, Any] = {"embed_dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 2), "num_heads": (2, 4)}
    model = on_meta("foveal_mambavision_t", num_classes=3, out_norm=True, **sizes)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert max(groups.values()) == groups["head.classifier.weight"]
    first = groups["backbone.stages.2.blocks.0.mixer.A_log"]
    assert groups["backbone.stages.2.downsample.weight"] == groups["backbone.out_norms.2.weight"] == first
    assert first < groups["head.classifier.weight"]
    last = {name.rpartition(".")[2] for name in model.no_weight_decay()}
    assert last == {"A_log", "D"}
    assert all(name in model.no_weight_decay() for name in groups if name.endswith(".A_log"))


@pytest.mark.parametrize("in_chans", [1, 4])
def test_the_stem_of_weights_is_adapted_as_timm_does(in_chans: int, tmp_path: Path) -> None:
    ours: Any = create_model("mobilenetv3_small_100")
    save_checkpoint(tmp_path / "ours.safetensors", ours.state_dict(), info_of(ours))
    overlay = {"file": str(tmp_path / "ours.safetensors")}
    model: Any = timm.create_model(
        "foveal_mobilenetv3_small_100", pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay
    )
    adapted = timm.models.adapt_input_conv(in_chans, ours.backbone.stem[0].conv.weight.detach())
    torch.testing.assert_close(model.backbone.stem[0].conv.weight.detach(), adapted)


def test_weights_for_other_classes_are_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = create_model("efficientvit_b0", num_classes=5)
    save_checkpoint(tmp_path / "five.safetensors", ours.state_dict(), info_of(ours))
    overlay = {"file": str(tmp_path / "five.safetensors")}
    line = "weights for 5 classes, model for 1000: head.classifier keeps its initial values\n"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, line),
        ({"num_classes": 5}, ""),
        ({"num_classes": 3}, ""),
        ({"features_only": True}, ""),
    )
    for options, stated in cases:
        timm.create_model("foveal_efficientvit_b0", pretrained=True, pretrained_cfg_overlay=overlay, **options)
        assert capsys.readouterr().err == stated


def test_mistakes_are_one_line() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"drop_rates": 0.1}, "no option 'drop_rates'"),
        ({"drop_rate": 1.5}, "drop_rate=1.5"),
        ({"drop_path_rate": 0.1}, "no option 'drop_path_rate'"),
        ({"img_size": 0}, "img_size=0"),
        ({"output_stride": 12}, "output_stride=12: give one of 4, 8, 16, 32"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"scale": (3,)}, "did you mean 'scales'"),
    )
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            timm.create_model("foveal_efficientvit_b0", **arguments)
    with pytest.raises(ConfigError, match="no published weights"):
        timm.create_model("foveal_efficientvit_l0", pretrained=True)
