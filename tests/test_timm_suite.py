"""The contract that timm's own tests check, on every ``foveal_*`` model below 60 million parameters; long tests.

:func:`test_timms_own_suite` runs timm's tests themselves from a checkout of its repository, which is not part of this
one: ``FOVEAL_TIMM_CHECKOUT=/path/to/pytorch-image-models pytest -m long tests/test_timm_suite.py``. It takes all names
or those in ``FOVEAL_TIMM_NAMES``, separated by commas. The other tests check the same properties without the checkout.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import foveal.timm  # noqa: F401 - registers the models
from foveal.factory.create import list_models
from foveal.layers.drop_path import DropPath
from foveal.models.registry import variants

pytestmark = pytest.mark.long

#: Beginnings of the names of larger models.
LARGE = (
    "efficientvit_l2",
    "efficientvit_l3",
    "efficientvit_xl",
    "efficientnet_b7",
    "mambavision_b",
    "mambavision_l",
    "vit_base",
)
NAMES = [f"foveal_{name}" for name in list_models(task="classify") if not name.removeprefix("tf_").startswith(LARGE)]
#: Tests of timm that our models do not pass, and why.
EXCUSED = {
    "torchscript": "torch.jit.script compiles annotated Python of its own dialect; torch has deprecated it for export",
    "pretrained": "downloads the weights of every model; tests/test_timm.py loads a local file in this way",
}
#: Runs timm's tests with our names in place of its own. Arguments: its file of tests, names, words that exclude tests.
RUN = """
import fnmatch, sys
import pytest, timm
import foveal.timm

file, names, excused = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")

def list_models(filter="", module="", pretrained=False, exclude_filters="", name_matches_cfg=False, include_tags=None):
    filters = [filter] if isinstance(filter, str) else filter
    return [n for n in names if not any(filters) or any(fnmatch.fnmatch(n, f) for f in filters)]

timm.list_models, timm.list_pretrained = list_models, lambda *args, **options: []
words = " and ".join(["foveal", *(f"not {word}" for word in excused)])
options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "-W", "ignore", "--tb=short"]
sys.exit(pytest.main([*options, file, "-k", words]))
"""


def build(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def on_meta(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **arguments).eval()


def test_timms_own_suite() -> None:
    checkout = os.environ.get("FOVEAL_TIMM_CHECKOUT")
    if not checkout:
        pytest.skip("set FOVEAL_TIMM_CHECKOUT to a checkout of github.com/huggingface/pytorch-image-models")
    tests = Path(checkout) / "tests" / "test_models.py"
    names = os.environ.get("FOVEAL_TIMM_NAMES") or ",".join(NAMES)
    command = [sys.executable, "-c", RUN, str(tests), names, ",".join(EXCUSED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
def test_forward(name: str) -> None:
    """Finite logits, the same with checkpointing, in channels-last, and from copies through pickle."""
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) < 60e6
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (1, 1000)
        assert expected.isfinite().all()
        scale = expected.abs().max()
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        others.append(copy.deepcopy(model).to(memory_format=torch.channels_last))
        model.set_grad_checkpointing()
        for other in (model, *others):
            assert (other(x) - expected).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("name", NAMES)
def test_backward(name: str) -> None:
    model = build(name, num_classes=42).train()
    output = model(torch.randn(2, 3, 128, 128))
    assert output.shape == (2, 42)
    output.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_default_configuration(name: str) -> None:
    model = on_meta(name)
    config, state = model.default_cfg, model.state_dict()
    for key in ("first_conv", "classifier"):
        assert f"{config[key]}.weight" in state
    assert config["num_classes"] == 1000
    x = torch.empty(1, *config["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *config["pool_size"])
    inputs = model.forward_head(features, pre_logits=True)
    assert inputs.shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == inputs.shape
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    assert on_meta(name, num_classes=0, global_pool="")(x).shape == features.shape
    model.reset_classifier(5, "avg")
    assert model.get_classifier().out_features == 5
    assert model(x).shape == (1, 5)


@pytest.mark.parametrize("name", NAMES)
def test_features(name: str) -> None:
    net = on_meta(name, features_only=True)
    channels, strides = net.feature_info.channels(), net.feature_info.reduction()
    assert len(channels) >= 3
    x = torch.empty(2, 3, 96, 160, device="meta")
    maps = net(x)
    assert [m.shape[1] for m in maps] == channels
    assert [tuple(m.shape[2:]) for m in maps] == [(math.ceil(96 / s), math.ceil(160 / s)) for s in strides]
    few = on_meta(name, features_only=True, out_indices=(0, -1))
    assert [m.shape for m in few(x)] == [maps[0].shape, maps[-1].shape]
    model = on_meta(name)
    last, all_maps = model.forward_intermediates(x)
    assert last.shape == model.forward_features(x).shape
    assert [m.shape for m in all_maps] == [m.shape for m in maps]


@pytest.mark.parametrize("name", NAMES)
def test_options(name: str) -> None:
    """``in_chans``, ``img_size``, rates of dropout, and dilation and stochastic depth where the family has them."""
    x = torch.empty(1, 4, 96, 96, device="meta")
    model = on_meta(name, in_chans=4, img_size=96, drop_rate=0.3, drop_path_rate=0.0)
    assert model(x).shape == (1, 1000)
    assert model.default_cfg["input_size"][1:] == (96, 96)
    assert model.forward_features(x).shape[2:] == model.default_cfg["pool_size"]
    family, _ = variants()[name.removeprefix("foveal_")]
    if "drop_path_rate" in family.options:
        dropping = on_meta(name, drop_path_rate=0.25)
        rates = [part.rate for part in dropping.modules() if isinstance(part, DropPath)]
        assert 0.2 < max(rates) <= 0.25
    if "output_stride" in family.options:
        for stride in (8, 16):
            net = on_meta(name, in_chans=4, features_only=True, output_stride=stride)
            assert [96 // m.shape[2] for m in net(x)] == net.feature_info.reduction()
            assert max(net.feature_info.reduction()) == stride


DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet")


@pytest.mark.parametrize("name", ["foveal_efficientvit_b0", "foveal_mobilenetv3_small_100"])
@pytest.mark.parametrize("decoder", [*DECODERS, "Segformer"])
def test_decoders_of_another_library(name: str, decoder: str) -> None:
    """What segmentation_models_pytorch asks of an encoder: any number of channels and maps, gradients, compilation."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    net = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, in_channels=4, classes=2)
    x = torch.randn(2, 4, 128, 192)
    output = net(x)
    assert output.shape == (2, 2, 128, 192)
    output.mean().backward()
    # The encoder of PSPNet uses three maps only: the later stages have no gradients.
    used = [*net.decoder.parameters(), *net.encoder.model.model.backbone.stem.parameters()]
    assert all(p.grad is not None for p in used)
    encoder = smp.encoders.get_encoder(f"tu-{name}", in_channels=4, depth=3, weights=None).eval()
    maps = encoder(x)
    assert [m.shape[1] for m in maps] == encoder.out_channels
    assert [128 // m.shape[2] for m in maps] == [1, 2, 4, 8]
    compiled: Any = torch.compile(encoder, backend="eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(x), maps, strict=True))
