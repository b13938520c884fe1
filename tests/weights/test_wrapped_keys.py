"""State dicts of every layout are recognised under every wrapper: any order, any nesting, also inside of keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import foveal
from foveal.errors import CheckpointError
from foveal.models.registry import FAMILIES
from foveal.weights.checkpoints import read_state, unwrap
from foveal.weights.layouts import recognise
from helpers import golden


def ours(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return foveal.create_model(name).state_dict()


def named(file: str, key: str) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in golden.read(file)[key].items()}


def from_timm(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False).state_dict()


def from_torchvision(name: str) -> dict[str, Tensor]:
    import torchvision

    with torch.device("meta"):
        return getattr(torchvision.models, name)().state_dict()


#: A state dict of each layout, with tensors on the meta device.
LAYOUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    **{f"ours-{family}": (lambda family=family: ours(next(iter(FAMILIES[family].variants)))) for family in FAMILIES},
    **{
        key: (lambda key=key: named("efficientvit_keys", key))
        for key in ("mit-cls-b0", "mit-seg-b0-cityscapes", "mit-seg-b1-ade20k", "mit-backbone-l0", "timm-b1")
    },
    **{key: (lambda key=key: named("efficientvit_m_keys", key)) for key in ("msra-m0-distill", "timm-m1")},
    "mambavision_t": lambda: named("mambavision_keys", "mambavision_t"),
    "mit-sam-l0": lambda: named("sam_keys", "mit-sam-l0"),
    **{
        f"timm-{n}": (lambda n=n: from_timm(n)) for n in ("mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0")
    },
    **{f"torchvision-{n}": (lambda n=n: from_torchvision(n)) for n in ("mobilenet_v2", "efficientnet_b0")},
}


@cache
def layout(name: str) -> dict[str, Tensor]:
    return LAYOUTS[name]()


def before(prefix: str) -> Callable[[str], str]:
    return lambda key: prefix + key


def inside(name: str, place: int) -> Callable[[str], str]:
    """Insert a name after the first ``place`` parts of a key, where a module was wrapped."""

    def insert(key: str) -> str:
        parts = key.split(".")
        return ".".join([*parts[:place], name, *parts[place:]]) if len(parts) > place + 1 else key

    return insert


WRAPPERS: dict[str, Callable[[str], str]] = {
    **{
        prefix: before(prefix)
        for prefix in (
            "module.",
            "_orig_mod.",
            "model.",
            "net.",
            "module.model.",
            "_orig_mod.module.",
            "ema.module._orig_mod.",
            "model._orig_mod.net.module.ema_model.",
            "_forward_module.model._fsdp_wrapped_module.",
        )
    },
    "middle _orig_mod": inside("_orig_mod", 1),
    "middle _checkpoint_wrapped_module": inside("_checkpoint_wrapped_module", 2),
    "model. and middle _orig_mod": lambda key: "model." + inside("_orig_mod", 1)(key),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised_under_every_wrapper(name: str) -> None:
    plain = layout(name)
    expected = recognise(plain)
    for wrapper, wrap in WRAPPERS.items():
        found = recognise({wrap(key): value for key, value in plain.items()})
        assert found.family is expected.family, wrapper
        assert found.options == expected.options, wrapper
        assert found.was_converted == expected.was_converted, wrapper
        assert {key: value.shape for key, value in found.state.items()} == {
            key: value.shape for key, value in expected.state.items()
        }, wrapper


def test_a_named_network_inside_the_backbone_is_recognised() -> None:
    for layout_name in ("ours-efficientvit", "mit-cls-b0"):
        plain = layout(layout_name)
        for name in ("model", "net"):
            found = recognise({inside(name, 1)(key): value for key, value in plain.items()})
            assert found.state.keys() == recognise(plain).state.keys()


def test_the_counter_of_averaged_models_is_no_weight() -> None:
    """``torch.optim.swa_utils.AveragedModel`` saves it next to the wrapped model."""
    plain = layout("ours-efficientvit")
    wrapped = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in plain.items()}}
    assert recognise(wrapped).state.keys() == plain.keys()


def test_keys_that_would_become_one_are_left_alone() -> None:
    state = {"module.a.weight": torch.zeros(1), "a.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"layout not recognised.*module\.a\.weight, a\.weight"):
        recognise(state)


STATE = {"a.weight": torch.zeros(2, 2), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "path",
    [
        ("state_dict",),
        ("model",),
        ("ema",),
        ("teacher",),
        ("model_state_dict",),
        ("params_ema",),
        ("ema", "module"),
        ("model", "state_dict", "module"),
        ("state_dict", "model", "ema", "teacher", "net", "module"),
    ],
)
def test_nested_state_dicts_are_found(path: tuple[str, ...], tmp_path: Path) -> None:
    content: dict = STATE
    for key in reversed(path):
        content = {"epoch": 3, "optimizer": {"state": {}}, key: content}
    torch.save(content, tmp_path / "run.pt")
    assert read_state(tmp_path / "run.pt")[0].keys() == STATE.keys()


AVERAGE = {key: torch.ones_like(value) for key, value in STATE.items()}


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("net", "ema"),
        ("params", "params_ema"),
    ],
)
def test_averaged_weights_come_first(plain: str, average: str, capsys: pytest.CaptureFixture[str]) -> None:
    """timm, torchvision, ultralytics and BasicSR read the average by default, too."""
    assert unwrap({plain: STATE, average: AVERAGE}, "run.pt") == AVERAGE
    assert capsys.readouterr().err == f"run.pt: the averaged weights {average!r} are read, not {plain!r}\n"
    counted = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in AVERAGE.items()}}
    assert unwrap({"last": {}, "state": {plain: STATE}, plain: STATE, average: {"module": counted}}, "x") == counted


def test_an_incomplete_average_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """One of the parameters alone, without the buffers, or none at all."""
    assert unwrap({"model": STATE, "ema": {"decay": torch.tensor(0.9)}}, "run.pt") == STATE
    assert capsys.readouterr().err == "run.pt: 'model' is read, not 'ema', which has another number of tensors\n"
    assert unwrap({"model": STATE, "ema": {}, "optimizer": {}}, "run.pt") == STATE
    assert unwrap({"ema": {"decay": 0.9}, "model": {"state_dict": STATE}}, "run.pt") == STATE
    assert capsys.readouterr().err == ""


def test_a_file_whose_parts_contain_each_other_is_searched_once() -> None:
    content: dict = {}
    for key in ("state_dict", "model", "ema", "module", "net", "teacher", "student", "params"):
        content[key] = content
    with pytest.raises(CheckpointError, match="no tensors"):
        unwrap(content, "file")
