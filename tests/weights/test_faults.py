"""Bad checkpoint files and settings, numbered as in docs/bad_input.md: a one-line error, and no other effect."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import foveal
from foveal import cli
from foveal.config import read_yaml
from foveal.errors import CheckpointError, ConfigError, FovealError
from foveal.info import KEY, ModelInfo
from foveal.weights.checkpoints import read_state, save_checkpoint
from helpers.hostile_weights import (
    BOMBS,
    HOSTILE_SAFETENSORS,
    Evil,
    bomb,
    bytearray_bomb,
    flipped,
    safetensors_file,
    zip_archive,
)
from helpers.memory import peak_growths
from helpers.spoil import spoil

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def fresh() -> nn.Module:
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_31_pickled_code_does_not_run(tmp_path: Path) -> None:
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": Evil(tmp_path / "executed")}, file)
    torch.save({"weight": torch.zeros(2), "evil": Evil(tmp_path / "executed")}, tmp_path / "evil2.pt")
    torch.save(Evil(tmp_path / "executed"), tmp_path / "evil3.pth", _use_new_zipfile_serialization=False)
    for name in ("evil.pt", "evil2.pt", "evil3.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}: not a checkpoint of plain tensors") as error:
            read_state(tmp_path / name)
        assert "\n" not in str(error.value)
        with pytest.raises(SystemExit) as end:
            cli.main(["convert", str(tmp_path / name), str(tmp_path / "out.safetensors")])
        assert end.value.code == 2
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("hiding", ["plain", "far inside", "before an archive", "compressed", "upper case"])
def test_32_byte_arrays_are_refused_wherever_they_hide(tmp_path: Path, hiding: str) -> None:
    """None of the 256 MiB is allocated: after a megabyte of text, and in a file that two readers read differently."""
    array = bytearray_bomb(256 << 20)
    content = {
        "plain": array,
        "far inside": bytearray_bomb(256 << 20, before=b"-" * (3 << 20)),
        "before an archive": array + zip_archive(data_pkl=b"\x80\x02}."),
        "compressed": zip_archive(data_pkl=array, version=b"3\n"),
        "upper case": zip_archive(DATA_pkl=array, version=b"3\n").replace(b".pkl", b".PKL"),
    }[hiding]
    (tmp_path / "bomb.pt").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"bomb\.pt: asks to allocate a byte array"):
            read_state(tmp_path / "bomb.pt")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


class Call:
    """Unpickled as what a function returns, which then gets a state."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def maker(value: Any) -> Callable[..., Any]:
    """The function that a pickle of NumPy calls to make ``value``."""
    return value.__reduce__()[0]


def tower() -> list[Any]:
    """Lists that are a few bytes in a pickle and 100 MiB as a text."""
    lists: list[Any] = ["x"]
    for _ in range(8):
        lists = [lists] * 8
    return lists


CALLS = {
    "text of lists": Call(str, tower()),
    "array": Call(np.ndarray, (1 << 24,), "O"),
    "array to be filled": Call(maker(np.zeros(1)), np.ndarray, (1 << 28,), b"b"),
    "number": Call(maker(np.float32(1)), np.dtype("S268435456")),
}


@pytest.mark.parametrize("kind", CALLS)
def test_32_calls_with_large_results_take_no_memory(tmp_path: Path, kind: str) -> None:
    """Of functions that ordinary checkpoints call with other arguments; none of the 100 MiB or more is allocated."""
    torch.save(CALLS[kind], tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"bomb\.pt: ") as error:
            read_state(tmp_path / "bomb.pt")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_32_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    """NumPy allocates memory for the size that their state claims, whatever the file holds."""
    array = Call(maker(np.zeros(1)), np.ndarray, (0,), b"b", state=(1, (1,), Call(np.dtype, "O"), False, [0]))
    torch.save({**STATE, "objects": array}, tmp_path / "objects.pt")
    with pytest.raises(CheckpointError, match=r"objects\.pt: not a checkpoint of plain tensors"):
        read_state(tmp_path / "objects.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
def test_32_bombs_take_no_memory(tmp_path: Path) -> None:
    """At most 64 MB more than before, each in its own process."""
    paths = [tmp_path / f"{kind}.{'safetensors' if kind in ('header', 'claim') else 'pt'}" for kind in BOMBS]
    for kind, path in zip(BOMBS, paths, strict=True):
        path.write_bytes(bomb(kind))
    for path, (message, growth) in zip(
        paths, peak_growths("foveal.weights.checkpoints", "read_state", paths), strict=True
    ):
        assert message.startswith(f"{path}: ")
        assert "refused" in message or path.suffix == ".safetensors"
        assert growth <= 61, message


def test_32_a_view_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    """One number, repeated 2 ** 40 times by a stride of 0: a copy would take four terabytes."""
    torch.save({"head.classifier.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "view.pt")
    with pytest.raises(CheckpointError, match=r"view\.pt: head\.classifier\.weight .* is larger than the whole file"):
        read_state(tmp_path / "view.pt")


@pytest.mark.parametrize("kind", HOSTILE_SAFETENSORS)
def test_33_hostile_headers_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(HOSTILE_SAFETENSORS[kind])
        with pytest.raises(CheckpointError, match=path.name) as error:
            read_state(path)
        assert "\n" not in str(error.value)


def test_33_metadata_may_be_null_but_not_nonsense(tmp_path: Path) -> None:
    tensor = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file({"__metadata__": None, **tensor}, b"1234"))
    assert read_state(path)[1] is None
    good = json.loads(ModelInfo().to_json())
    for nonsense in (
        {},
        {**good, "num_classes": "5"},
        {**good, "options": []},
        {**good, "colour": 1},
        {**good, "ignore_index": 0},
        [1],
    ):
        path.write_bytes(safetensors_file({"__metadata__": {"foveal": json.dumps(nonsense)}, **tensor}, b"1234"))
        with pytest.raises(ConfigError, match="model description cannot be read"):
            read_state(path)


def test_34_a_flipped_bit_of_any_byte_is_noticed(tmp_path: Path) -> None:
    """A flipped bit in each byte: refused, or the content is unchanged (for example in padding)."""
    info = ModelInfo(model="efficientvit_b0", tag="mine")
    save_checkpoint(tmp_path / "good.safetensors", STATE, info)
    good, path = (tmp_path / "good.safetensors").read_bytes(), tmp_path / "flipped.safetensors"
    mismatches = 0
    for place in range(len(good)):
        path.write_bytes(flipped(good, place))
        try:
            state, found = read_state(path)
        except FovealError as error:
            mismatches += "SHA-256 mismatch" in str(error)
        else:
            assert same(state, STATE)
            assert found in (info, None)
    assert mismatches >= sum(value.numel() * value.element_size() for value in STATE.values())


def test_34_the_digest_is_as_documented(tmp_path: Path) -> None:
    """Computed here: description, then name, type, shape and bytes of each tensor, sorted by name."""
    state = {"b": torch.tensor(1.5), "a": torch.arange(4, dtype=torch.bfloat16).reshape(2, 2).T, "c": torch.zeros(0)}
    save_checkpoint(tmp_path / "model.safetensors", state, ModelInfo(tag="mine"))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    expected = hashlib.sha256(metadata[KEY].encode())
    expected.update(b"\na torch.bfloat16 (2, 2)\n" + struct.pack("<4H", 0, 0x4000, 0x3F80, 0x4040))
    expected.update(b"\nb torch.float32 ()\n" + struct.pack("<f", 1.5) + b"\nc torch.float32 (0,)\n")
    assert metadata[f"{KEY}.sha256"] == expected.hexdigest()
    assert same(read_state(tmp_path / "model.safetensors")[0], state)


def test_34_files_are_the_same_to_the_byte_each_time(tmp_path: Path) -> None:
    """In another process, where hashes of strings differ, as in this one; safetensors itself reads the files."""
    code = (
        "import sys, torch\nfrom foveal.info import ModelInfo\nfrom foveal.weights.checkpoints import save_checkpoint\n"
        "save_checkpoint(sys.argv[1], {'ü': torch.zeros(3), 'b': torch.ones(1)}, ModelInfo(tag='ß'))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "one.safetensors"], check=True)
    save_checkpoint(tmp_path / "two.safetensors", {"ü": torch.zeros(3), "b": torch.ones(1)}, ModelInfo(tag="ß"))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["b", "ü"]
        assert file.get_tensor("b").equal(torch.ones(1))
    assert read_state(tmp_path / "one.safetensors")[1] == ModelInfo(tag="ß")


def test_34_a_lost_digest_is_noticed(tmp_path: Path) -> None:
    """The name of the digest and a tensor are damaged together."""
    save_checkpoint(tmp_path / "model.safetensors", STATE, ModelInfo())
    good = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(good.replace(b"foveal.sha256", b"foveal.sha255")[:-1] + b"\x40")
    with pytest.raises(CheckpointError, match="SHA-256 mismatch"):
        read_state(tmp_path / "model.safetensors")


def test_34_files_without_a_digest_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "theirs.safetensors")
    save_file(STATE, tmp_path / "older.safetensors", metadata={KEY: ModelInfo(tag="mine").to_json()})
    assert read_state(tmp_path / "theirs.safetensors")[1] is None
    assert read_state(tmp_path / "older.safetensors")[1] == ModelInfo(tag="mine")


def test_34_flipped_bits_in_archives_of_torch_are_noticed(tmp_path: Path) -> None:
    """torch itself reads them without an error: nothing but the checksum shows a change in the bytes of a tensor."""
    torch.save(STATE, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    start = good.index(STATE["a.weight"].numpy().tobytes())
    path = tmp_path / "flipped.pt"
    for place in range(start, start + 48):
        path.write_bytes(flipped(good, place))
        assert torch.load(path, weights_only=True)
        with pytest.raises(CheckpointError, match=r"flipped\.pt: damaged: .* does not have its checksum"):
            read_state(path)
    for place in range(len(good)):
        path.write_bytes(flipped(good, place))
        with suppress(FovealError):
            assert same(read_state(path)[0], STATE)


def test_35_mismatches_are_listed_and_nothing_is_loaded(segmenter: nn.Module) -> None:
    """Missing, unexpected and mis-shaped keys by name; the model is unchanged."""
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


def test_35_almost_our_layout_lists_what_is_wrong(segmenter: nn.Module) -> None:
    """If a backbone's own file lacks one tensor, the error names it instead of an unknown layout."""
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    state = {key: value for key, value in backbone.state_dict().items() if key != "stem.0.conv.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing: stem\.0\.conv\.weight"):
        foveal.load_checkpoint(backbone, state)


def test_35_an_incomplete_file_of_unknown_origin_is_one_line(tmp_path: Path) -> None:
    """Its options would be read from the shapes of tensors that are missing."""
    state = foveal.create_model("vit_tiny", num_classes=3, shared_layers=2).state_dict()
    missing = "backbone.stages.0.0.attention.qkv."
    torch.save({key: value for key, value in state.items() if not key.startswith(missing)}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="vit: an incomplete or damaged state dict") as error:
        foveal.load_model(tmp_path / "part.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["meta", "complex", "sparse"])
def test_35_tensors_that_are_no_numbers_are_refused_whole(segmenter: nn.Module, kind: str) -> None:
    """Copying them would fail or lose a part, after other tensors were copied into the model."""
    state = {key: value + 1 for key, value in segmenter.state_dict().items()}
    last = state["head.classifier.weight"]
    odd = {"meta": last.to("meta"), "complex": last.to(torch.complex64), "sparse": last.to_sparse()}
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 not of plain numbers: head\.classifier\.weight"):
        foveal.load_checkpoint(model, {**state, "head.classifier.weight": odd[kind]})
    assert same(model.state_dict(), before)


def test_convert_names_tensors_with_nan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = foveal.create_model("efficientvit_sr", "upscale")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    foveal.save_pretrained(model, tmp_path / "nan")
    with pytest.raises(SystemExit) as done:
        cli.main(["convert", str(tmp_path / "nan"), str(tmp_path / "x.safetensors")])
    assert done.value.code == 0
    name = next(iter(dict(model.named_parameters())))
    assert f"nan: NaN or infinite values in {name}, which are kept" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 2", "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("epochs: three", "epochs: expected int, got 'three'"),
        ("epochs: 0", "epochs=0 is out of range"),
        ("seed: -1", "seed=-1 is out of range"),
        ("epochs: 3\nlr: 1e-3\nepochs: 5", "key 'epochs' is there twice"),
        ("epochs: [", "while parsing a flow"),
        ("seed: 2020-99-99", "month must be in 1..12"),
        ("x: " + "[" * 500, "parsing a flow node"),
        ("a: \x00", "control characters are not allowed"),
        ("- 1", "expected 'key: value' lines"),
    ],
)
def test_36_recipes_with_mistakes(tmp_path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With the command: exit code 2, one line with the file's name, no run folder."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(tmp_path), "--config", str(recipe), "--out", str(tmp_path / "run")])
    out, err = capfd.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_36_recipes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"epochs: \xff\xfe")
    for name in ("recipe.yaml", "missing.yaml", "."):
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
            read_yaml(tmp_path / name)


def _fuzz(tmp_path: Path, kind: str, count: int) -> None:
    if kind == "safetensors":
        save_checkpoint(tmp_path / "good", STATE, ModelInfo())
    else:
        torch.save({"state_dict": STATE}, tmp_path / "good", _use_new_zipfile_serialization=kind == "zip")
    good, rng = (tmp_path / "good").read_bytes(), random.Random(0)
    messages = []
    for _ in range(count):
        (tmp_path / "spoilt").write_bytes(spoil(good, rng))
        try:
            state, _ = read_state(tmp_path / "spoilt")
        except FovealError as error:
            messages.append(str(error))
        else:
            assert kind == "legacy" or same(state, STATE)  # that format has no checksum
    assert not [message for message in messages if "\n" in message]
    assert len(messages) > count / 4


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_give_another_error(tmp_path: Path, kind: str) -> None:
    """A thousand files with changed, removed or truncated bytes: read as written, or refused in one line."""
    _fuzz(tmp_path, kind, 334)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_give_another_error_many(tmp_path: Path, kind: str) -> None:
    _fuzz(tmp_path, kind, 33_334)
