"""Every family is recorded by ``torch.export`` (with free batch and sides), ``torch.jit.trace`` and ``torch.fx``."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import foveal.timm  # noqa: F401 - registers the models
from foveal.exporting.export import _smallest_traced_side
from foveal.exporting.graph import Graph, trace
from foveal.factory.create import create_model
from foveal.info import ModelInfo
from foveal.models import efficientvit_m, tinyvit, vit
from foveal.models.registry import FAMILIES
from foveal.tasks.classify import ClassificationModel
from foveal.tasks.segment import SegmentationHead, SegmentationModel
from helpers.covered import covered
from helpers.mambavisions import SHALLOW, small

_TINY = tinyvit.Config((8, 8, 16, 16), (1, 1, 1, 1), (1, 2, 2, 2), (3, 3, 5, 3))
_MAMBA = {"dim": 16, "depths": (1, 1, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": (4, 3)}
_PATCHES = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (2, 2, 2)}


def _model(backbone: Any, head: Callable[[int, int], nn.Module], task: str) -> nn.Module:
    if task == "segment":
        return SegmentationModel(backbone, SegmentationHead(backbone.feature_info, 5, width=8, depth=1))
    return ClassificationModel(backbone, head(backbone.feature_info[-1].channels, 5))


def _vit(task: str, attention: str = "softmax") -> nn.Module:
    return _model(vit.ViT(vit.Config(24, 3, depth=1), attention=attention), vit.ClassifierHead, task)


def _efficientvit_m(task: str, stages: int = 3) -> nn.Module:
    config = efficientvit_m.Config(*(sizes[:stages] for sizes in ((16, 24, 32), (1, 1, 1), (2, 2, 2))))
    backbone = efficientvit_m.EfficientViTM(config, window_sizes=(4, 3, 2)[:stages])
    return _model(backbone, efficientvit_m.ClassifierHead, task)


#: Family and what is special, task -> model. All are narrow.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "efficientvit classify": partial(covered, "efficientvit_b classify"),
    "efficientvit segment": partial(covered, "efficientvit_b segment"),
    "efficientvit_l segment": partial(covered, "efficientvit_l segment"),
    "efficientvit_m one stage classify": partial(_efficientvit_m, "classify", stages=1),
    "efficientvit_m classify": partial(_efficientvit_m, "classify"),
    "efficientvit_m segment": partial(_efficientvit_m, "segment"),
    "mobilenet classify": partial(covered, "tf_mobilenetv3"),
    "mobilenet segment": partial(covered, "mobilenetv2 segment"),
    "efficientnet classify": partial(covered, "efficientnet"),
    "mambavision classify": partial(small, "classify", config=SHALLOW),
    "mambavision neutral classify": partial(small, "classify", config=SHALLOW, neutral_padding=True),
    "mambavision segment": partial(small, "segment", config=SHALLOW),
    "tinyvit segment": lambda: _model(tinyvit.TinyViT(_TINY), vit.ClassifierHead, "segment"),
    **{f"vit {kind} classify": partial(_vit, "classify", kind) for kind in vit.ATTENTIONS},
    "vit softmax segment": partial(_vit, "segment"),
    "edifice_efficient_vit classify": partial(create_model, "edifice_efficient_vit", num_classes=5, **_PATCHES),
    "edifice_efficient_vit segment": partial(create_model, "edifice_efficient_vit", "segment", **_PATCHES),
    "edifice_mamba_vision classify": partial(create_model, "edifice_mamba_vision", num_classes=5, **_MAMBA),
    "edifice_mamba_vision segment": partial(create_model, "edifice_mamba_vision", "segment", **_MAMBA),
    "efficientvit_sr upscale": partial(covered, "efficientvit_sr x2"),
    "realtime_sr upscale": partial(covered, "realtime_sr x3"),
}
#: One model of each family; the others are long tests.
SHORT = {
    *("efficientvit segment", "efficientvit_m one stage classify", "mobilenet classify", "mambavision classify"),
    *("tinyvit segment", "vit gqa classify", "edifice_efficient_vit classify", "edifice_mamba_vision classify"),
    *("efficientnet classify", "efficientvit_sr upscale", "realtime_sr upscale"),
}
NAMES = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in MODELS]
#: Sizes that differ from that of the traced image, :data:`IMAGE`: odd, with one window or several, larger.
IMAGE, SIZES = (2, 3, 96, 128), ((1, 3, 77, 150), (3, 3, 201, 133))


def build(name: str) -> nn.Module:
    """The model in evaluation mode, with norms that let every branch pass."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def graph_of(model: nn.Module) -> Graph:
    sides = ("batch", "", "height", "width")
    example = (torch.zeros(IMAGE),)
    return Graph("", model, model, ModelInfo("traced", "classify"), example, {"image": sides}, {"out": ("batch",)}, ())


def check(recorded: Callable[[Tensor], Tensor], model: nn.Module, *sizes: tuple[int, ...], limit: float = 0.0) -> None:
    """The recorded model computes what the model does, to ``limit`` times the largest output."""
    for size in sizes:
        x = torch.randn(size)
        with torch.no_grad():
            expected = model(x)
            assert (recorded(x) - expected).abs().max() <= limit * expected.abs().max(), size


def test_every_family_is_traced() -> None:
    families = {name.partition(" ")[0] for name in MODELS}
    assert {name for name, family in FAMILIES.items() if family.takes_images} <= families
    assert {name.partition(" ")[0] for name in SHORT} == families - {"efficientvit_l"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if "one stage" in name else pytest.mark.long) for name in MODELS],
)
def test_exported_program_takes_any_batch_and_size(name: str) -> None:
    """Also where windows are one at the traced size and several at another, and the reverse."""
    model = build(name)
    program = trace(graph_of(model))
    # Where a convolution reads a transposed map, torch assumes from its layout that batch and sides are above 1. Such
    # guards do not change what is computed, and they are not part of exported files.
    guarded = not name.startswith(("mambavision", "edifice"))
    check(program.module(check_guards=guarded), model, *SIZES, limit=1e-5)
    if not name.startswith("edifice_efficient_vit"):  # from 65 pixels on: a map of one position has another layout
        smallest = 33 if name == "mambavision segment" or name.startswith("edifice") else 32
        sizes = ((1, 3, 33, 64), (1, 3, smallest, smallest))
        check(program.module(check_guards=False), model, *sizes, limit=1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "efficientvit_l segment" else pytest.mark.long) for name in MODELS],
)
def test_a_program_traced_at_the_smallest_size_takes_smaller_images(name: str) -> None:
    """In them, the last maps have one row or column, or both; the program is bound to no least side above theirs."""
    model = build(name)
    side = _smallest_traced_side(model)
    example = (torch.zeros(2, 3, side, side),)
    program = trace(dataclasses.replace(graph_of(model), example=example))
    # A convolution that reads a transposed map makes the tracer assume more than one position; files have no bound.
    bounds = {"edifice_efficient_vit": 65, "edifice_mamba_vision": 33, "mambavision segment": 33}
    smallest = min(side, bounds.get(name.partition(" ")[0], bounds.get(name, 32)))
    sizes = ((1, 3, smallest, smallest), (1, 3, smallest, 200), (3, 3, 77, 150))
    check(program.module(check_guards=False), model, *sizes, limit=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_equals_the_model_at_other_sizes(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        traced: Any = torch.jit.trace(model, torch.zeros(IMAGE), check_trace=False)
    check(traced, model, SIZES[0], limit=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_fx_graph_equals_the_model(name: str) -> None:
    """At several sizes, and after pickling."""
    model = build(name)
    fixed = {"upsample": True} if isinstance(model, SegmentationModel) else None
    recorded = torch.fx.symbolic_trace(model, concrete_args=fixed)
    check(pickle.loads(pickle.dumps(recorded)), model, (2, 3, 77, 64))


#: Of each family a small classifier in timm. Its own tests record models in this way.
IN_TIMM = {
    "efficientvit": {},
    "efficientvit_m": {},
    "mobilenet": {},
    "efficientnet": {},
    "mambavision": {"embed_dim": 16, "depths": (1, 1, 2, 2), "num_heads": (2, 2)},
    "vit": {"attention": "gqa"},
    "edifice_efficient_vit": _PATCHES,
    "edifice_mamba_vision": _MAMBA,
}


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing:UserWarning")
@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.long] if f != "vit" else []) for f in IN_TIMM])
def test_timm_extracts_features_from_the_fx_graph(family: str) -> None:
    """As timm's own tests do: the output is the same, every parameter has a gradient, inner nodes can be had."""
    name = f"foveal_{next(iter(FAMILIES[family].variants))}"
    settings = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    model: Any = timm.create_model(name, num_classes=7, **IN_TIMM[family]).eval()
    x = torch.randn(2, 3, 64, 64)
    nodes, _ = get_graph_node_names(model, tracer_kwargs=settings)
    wanted = [*(info["module"] for info in model.feature_info), nodes[-1]]
    extractor = create_feature_extractor(model, wanted, tracer_kwargs=settings)
    with torch.no_grad():
        *maps, logits = extractor(x).values()
        assert torch.equal(logits, model(x))
    if family != "edifice_efficient_vit":  # channels are last inside
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    extractor.train()(x)[nodes[-1]].square().mean().backward()
    assert all(p.grad is not None for p in extractor.parameters())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", MODELS)
def test_core_ml_converts_the_exported_program(name: str) -> None:
    """At a fixed size; Core ML runs on Apple's systems only, so what the file computes is not compared here."""
    coremltools = pytest.importorskip("coremltools")
    with torch.no_grad():
        program = torch.export.export(build(name), (torch.zeros(1, 3, 96, 128),)).run_decompositions({})
    converted = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18, skip_model_load=True)
    assert converted.get_spec().WhichOneof("Type") == "mlProgram"
