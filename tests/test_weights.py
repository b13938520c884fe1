"""Checkpoints load strictly or not at all, whatever layout they are in, and hostile ones do nothing."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.errors import CheckpointError, ConfigError
from foveal.info import Labels, ModelInfo, info_of
from foveal.weights import read_state, save_checkpoint


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def fresh() -> nn.Module:
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_round_trip_with_description(segmenter: nn.Module, tmp_path: Path) -> None:
    info = info_of(segmenter).replace(labels=Labels(tuple("abcde")), tag="mine")
    save_checkpoint(tmp_path / "model.safetensors", segmenter.state_dict(), info)
    state, found = read_state(tmp_path / "model.safetensors")
    assert found == info
    assert ModelInfo.from_json(info.to_json()) == info
    model = fresh()
    report = foveal.load_checkpoint(model, tmp_path / "model.safetensors")
    assert same(model.state_dict(), segmenter.state_dict())
    assert (report.loaded, report.layout, report.ignored, report.reinitialized) == (len(state), "foveal", (), ())


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "ema", "module.", "nested"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_wrapped_and_prefixed_files(segmenter: nn.Module, tmp_path: Path, wrap: str, suffix: str) -> None:
    state = segmenter.state_dict()
    wrapped = {
        "bare": state,
        "module.": {f"module.{key}": value for key, value in state.items()},
        "nested": {"epoch": 3, "model": {"state_dict": state}},
    }.get(wrap, {wrap: state, "epoch": 3})
    torch.save(wrapped, tmp_path / f"model{suffix}")
    model = fresh()
    foveal.load_checkpoint(model, tmp_path / f"model{suffix}")
    assert same(model.state_dict(), state)


def test_mismatches_are_listed_and_nothing_is_loaded(segmenter: nn.Module) -> None:
    """Missing, unexpected and mis-shaped keys by name; the model stays as it was."""
    state = dict(segmenter.state_dict())
    del state["head.blocks.0.expand.conv.weight"]
    state["head.extra.weight"] = torch.zeros(3)
    state["head.classifier.weight"] = torch.zeros(7, 128, 1, 1)
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        foveal.load_checkpoint(model, state)
    message = str(error.value)
    assert "1 missing: head.blocks.0.expand.conv.weight" in message
    assert "1 unexpected: head.extra.weight" in message
    assert "head.classifier.weight (7, 128, 1, 1) instead of (5, 128, 1, 1)" in message
    assert same(model.state_dict(), before)


def test_backbone_takes_its_part_of_a_task_file(segmenter: nn.Module) -> None:
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    report = foveal.load_checkpoint(backbone, segmenter.state_dict())
    assert all(key.startswith("head.") for key in report.ignored)
    assert report.ignored
    assert backbone.state_dict()["stem.0.conv.weight"].equal(segmenter.state_dict()["backbone.stem.0.conv.weight"])


def test_other_classes_keep_everything_but_the_classifier(segmenter: nn.Module, tmp_path: Path) -> None:
    torch.save(segmenter.state_dict(), tmp_path / "model.pt")
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=9, weights=tmp_path / "model.pt")
    ours, theirs = segmenter.state_dict(), model.state_dict()
    changed = {key for key in ours if ours[key].shape != theirs[key].shape or not ours[key].equal(theirs[key])}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}


def test_another_task_gives_the_backbone_alone(segmenter: nn.Module, tmp_path: Path) -> None:
    torch.save(segmenter.state_dict(), tmp_path / "model.pt")
    model = foveal.create_model("efficientvit_b0", num_classes=3, weights=tmp_path / "model.pt")
    ours, theirs = segmenter.state_dict(), model.state_dict()
    assert all(ours[key].equal(theirs[key]) for key in ours if key.startswith("backbone."))
    with pytest.raises(CheckpointError, match="missing"):
        foveal.load_checkpoint(model, tmp_path / "model.pt")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": _Evil(tmp_path / "executed")}, file)
    torch.save({"weight": torch.zeros(2), "evil": _Evil(tmp_path / "executed")}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_resource_bombs_are_refused(tmp_path: Path) -> None:
    """A kilobyte that asks for gigabytes, and an archive that grows on reading."""
    (tmp_path / "bytes.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(200 << 20))
    for name in ("bytes.pt", "zip.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)


def _safetensors(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02\x03",
        b"PK\x03\x04 half an archive",
        _safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
        _safetensors(b'{"a": {"dtype"', b"", 1 << 40),
        _safetensors(b"{not json}"),
        _safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        ),
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name) as error:
            read_state(path)
        assert "\n" not in str(error.value)


def test_foreign_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="layout not recognised"):
        foveal.load_checkpoint(fresh(), {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no tensors"):
        foveal.load_checkpoint(fresh(), {})
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        foveal.load_checkpoint(fresh(), tmp_path / "missing.pt")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("efficentvit_b0",), {}, r"unknown model 'efficentvit_b0'; did you mean 'efficientvit_b0'\?"),
        (("efficientvit_b0", "segmnt"), {}, r"unknown task 'segmnt'; did you mean 'segment'\?"),
        (("efficientvit_b0",), {"scale": (3,)}, r"no option 'scale'; did you mean 'scales'\?"),
        (("efficientvit_b0",), {"head": "cityscapes"}, "no option 'head'"),
        (("efficientvit_b0", "segment"), {"head": "ade20k"}, "no published segmentation head 'ade20k'"),
        (("efficientvit_b1", "segment"), {"head": "ade2k"}, r"did you mean 'ade20k'\?"),
        (("efficientvit_b0",), {"scales": (4,)}, "kernel sizes must be odd"),
        (("efficientvit_b0",), {"in_chans": 0}, "in_chans=0"),
        (("efficientvit_b0",), {"num_classes": -1}, "num_classes=-1"),
        (("efficientvit_b0", "segment"), {"num_classes": 0}, "num_classes=0"),
    ],
)
def test_create_model_names_the_nearest(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        foveal.create_model(*arguments, **options)


def test_unknown_tags_name_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"camvdi.*did you mean 'camvid'\?"):
        foveal.create_model("efficientvit_b0", "segment", weights="camvdi")


def test_list_models() -> None:
    assert foveal.list_models("efficientvit_b*") == [f"efficientvit_b{i}" for i in range(4)]
    assert foveal.list_models(pretrained=True, task="segment") == ["efficientvit_b0.camvid"]
    assert foveal.list_models("nothing*") == []
    with pytest.raises(ConfigError, match="did you mean 'segment'"):
        foveal.list_models(task="segmentation")
