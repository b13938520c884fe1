"""Checkpoints load strictly or not at all, whatever layout they are in, and hostile ones do nothing."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import foveal
import golden
from foveal.errors import CheckpointError, ConfigError, FovealError
from foveal.info import Labels, ModelInfo, Preprocess, info_of
from foveal.weights import read_state, save_checkpoint
from spoil import spoil


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


def test_published_file_becomes_ours(tmp_path: Path) -> None:
    """The authors' names, in a wrapped .pt, to a model, to our file with its description, to another model."""
    state = golden.state(golden.read("efficientvit_keys")["mit-seg-b0-cityscapes"])
    torch.save({"epoch": 1, "state_dict": {key: value.float() for key, value in state.items()}}, tmp_path / "b0.pt")
    first, second = (foveal.create_model("efficientvit_b0", "segment") for _ in range(2))
    report = foveal.load_checkpoint(first, tmp_path / "b0.pt")
    assert (report.loaded, report.layout) == (len(state), "efficientvit")
    save_checkpoint(tmp_path / "b0.safetensors", first.state_dict(), info_of(first))
    report = foveal.load_checkpoint(second, tmp_path / "b0.safetensors")
    assert (report.loaded, report.layout, report.info) == (len(state), "foveal", info_of(first))
    assert same(second.state_dict(), first.state_dict())
    stem = "backbone.input_stem.op_list.0.conv.weight"
    assert second.state_dict()["backbone.stem.0.conv.weight"].equal(state[stem].float())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "ema.module."])
def test_prefixes_of_wrapped_training_are_stripped(segmenter: nn.Module, prefix: str) -> None:
    model = fresh()
    foveal.load_checkpoint(model, {f"{prefix}{key}": value for key, value in segmenter.state_dict().items()})
    assert same(model.state_dict(), segmenter.state_dict())


def test_tensors_beside_the_weights_do_not_confuse(segmenter: nn.Module, tmp_path: Path) -> None:
    """A loss kept as a tensor, an empty average, a configuration under "model": the state dict is found."""
    content = {"loss": torch.tensor(0.5), "ema": {}, "model": {"name": "b0"}, "module": segmenter.state_dict()}
    torch.save(content, tmp_path / "run.pt")
    model = fresh()
    foveal.load_checkpoint(model, tmp_path / "run.pt")
    assert same(model.state_dict(), segmenter.state_dict())


def test_a_dictionary_inside_itself_ends(tmp_path: Path) -> None:
    content: dict = {}
    content["model"] = content["state_dict"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_state(tmp_path / "loop.pt")


def test_almost_our_layout_lists_what_is_wrong(segmenter: nn.Module) -> None:
    """A backbone's own file with one tensor too few is not called unknown: the tensor is named."""
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    state = {key: value for key, value in backbone.state_dict().items() if key != "stem.0.conv.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing: stem\.0\.conv\.weight"):
        foveal.load_checkpoint(backbone, state)


@pytest.mark.parametrize("kind", ["meta", "complex", "sparse"])
def test_tensors_that_are_no_numbers_are_refused_whole(segmenter: nn.Module, kind: str) -> None:
    """Copying them would fail or lose half of it, with other tensors already in the model."""
    state = {key: value + 1 for key, value in segmenter.state_dict().items()}
    last = state["head.classifier.weight"]
    odd = {"meta": last.to("meta"), "complex": last.to(torch.complex64), "sparse": last.to_sparse()}
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 not of plain numbers: head\.classifier\.weight"):
        foveal.load_checkpoint(model, {**state, "head.classifier.weight": odd[kind]})
    assert same(model.state_dict(), before)


def test_half_precision_weights_load_into_full(segmenter: nn.Module) -> None:
    model = fresh()
    foveal.load_checkpoint(model, {key: value.half() for key, value in segmenter.state_dict().items()})
    key = "head.classifier.weight"
    assert model.state_dict()[key].dtype == torch.float32
    assert model.state_dict()[key].equal(segmenter.state_dict()[key].half().float())


def test_pooled_features_and_maps_from_a_classifiers_file(tmp_path: Path) -> None:
    classifier = foveal.create_model("efficientvit_b0", num_classes=3)
    path = tmp_path / "classifier.safetensors"
    save_checkpoint(path, classifier.state_dict(), info_of(classifier).replace(preprocess=Preprocess(size=(96, 96))))
    pooled = foveal.create_model("efficientvit_b0", num_classes=0, weights=path)
    maps = foveal.create_model("efficientvit_b0", features_only=True, weights=path)
    ours = classifier.state_dict()
    assert all(value.equal(ours[key]) for key, value in pooled.state_dict().items())
    assert all(value.equal(ours[f"backbone.{key}"]) for key, value in maps.state_dict().items())
    same_task = foveal.create_model("efficientvit_b0", weights=path)
    assert (info_of(same_task).num_classes, info_of(same_task).preprocess.size) == (3, (96, 96))


def _bytearray_bomb(size: int, before: bytes = b"") -> bytes:
    """A pickle that builds a bytearray of ``size``, after a string that is dropped again."""
    string = b"X" + struct.pack("<I", len(before)) + before + b"0" if before else b""
    return b"\x80\x02" + string + b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", size) + b"\x85R."


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl')}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("hiding", ["plain", "far inside", "before an archive", "compressed"])
def test_byte_arrays_are_refused_wherever_they_hide(tmp_path: Path, hiding: str) -> None:
    """Nothing of the 256 MiB is allocated: neither behind a megabyte of text, nor where two readers see two files."""
    bomb = _bytearray_bomb(256 << 20)
    content = {
        "plain": bomb,
        "far inside": _bytearray_bomb(256 << 20, before=b"-" * (3 << 20)),
        "before an archive": bomb + _zip(data_pkl=b"\x80\x02}."),
        "compressed": _zip(data_pkl=bomb, version=b"3\n"),
    }[hiding]
    (tmp_path / "bomb.pt").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"bomb\.pt: asks to allocate a byte array"):
            read_state(tmp_path / "bomb.pt")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_resource_bombs_are_refused(tmp_path: Path) -> None:
    """A kilobyte that asks for gigabytes, and an archive that grows on reading."""
    (tmp_path / "bytes.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(20 << 20))
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
        _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),  # a hole
        _safetensors(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        _safetensors(b'{"\xff": 1}'),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name) as error:
            read_state(path)
        assert "\n" not in str(error.value)


def test_metadata_may_be_null_but_not_nonsense(tmp_path: Path) -> None:
    tensor = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(_safetensors({"__metadata__": None, **tensor}, b"1234"))
    assert read_state(path)[1] is None
    good = json.loads(ModelInfo().to_json())
    for nonsense in ({}, {**good, "num_classes": "5"}, {**good, "options": []}, {**good, "colour": 1}, [1]):
        path.write_bytes(_safetensors({"__metadata__": {"foveal": json.dumps(nonsense)}, **tensor}, b"1234"))
        with pytest.raises(ConfigError, match="model description cannot be read"):
            read_state(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_give_another_error(tmp_path: Path, kind: str) -> None:
    """400 files with bytes changed, cut out or lost at the end: read, or refused in one line."""
    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3)}
    if kind == "safetensors":
        save_checkpoint(tmp_path / "good", state, ModelInfo())
    else:
        torch.save({"state_dict": state}, tmp_path / "good", _use_new_zipfile_serialization=kind == "zip")
    good, rng = (tmp_path / "good").read_bytes(), random.Random(0)
    messages = []
    for _ in range(400):
        (tmp_path / "spoilt").write_bytes(spoil(good, rng))
        try:
            read_state(tmp_path / "spoilt")
        except FovealError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not [message for message in messages if "\n" in message]


def test_hub_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own offline switch stands for a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"hub id nobody/nothing: .*a local path works offline") as error:
        foveal.create_model("efficientvit_b0", weights="nobody/nothing")
    assert "\n" not in str(error.value)


def test_folders_are_training_runs_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no best\.safetensors in this folder"):
        foveal.create_model("efficientvit_b0", weights=tmp_path)


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
    assert foveal.list_models("*_b0.*", pretrained=True, task="segment") == [
        "efficientvit_b0.camvid",
        "efficientvit_b0.cityscapes",
    ]
    assert foveal.list_models("efficientvit_b1.*", pretrained=True, task="classify") == [
        f"efficientvit_b1.r{size}_in1k" for size in (224, 256, 288)
    ]
    assert foveal.list_models("nothing*") == []
    with pytest.raises(ConfigError, match="did you mean 'segment'"):
        foveal.list_models(task="segmentation")
