"""ONNX files of others: refused in one line before ONNX Runtime reads them; and its usage events are off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import foveal
from foveal import assets
from foveal.errors import CheckpointError, FovealError
from foveal.info import KEY
from foveal.prediction import onnx_file
from foveal.prediction.onnx_file import check_onnx

GOOD = assets.path("efficientvit_sr.x2", ".onnx").read_bytes()
SEGMENTS = assets.path("efficientvit_b0.camvid", ".onnx").read_bytes()


def test_the_metadata_of_a_good_file() -> None:
    expected = {entry.key: entry.value for entry in onnx.load_from_string(GOOD).metadata_props}
    assert check_onnx(GOOD, "a.onnx") == expected
    assert check_onnx(assets.path("efficientvit_sr.x2", ".onnx"), "a.onnx") == expected


def add_node(operator: str, inputs: int, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        names = [f"in{i}" for i in range(inputs)]
        for name in names:
            model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20]), name))
        model.graph.node.append(helper.make_node(operator, names, ["made"], **attributes))

    return change


def body() -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [])


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def huge(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 31, 1 << 31])


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def constant(model: onnx.ModelProto) -> None:
    value = helper.make_tensor("huge", TensorProto.FLOAT, [1], [0.0])
    value.dims[0] = 1 << 40
    model.graph.node.append(helper.make_node("Constant", [], ["made"], value=value))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.extend([1 << 31])


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_node("Loop", 2, body=body()), "has the operator Loop; loops and branches may not end"),
        (add_node("Scan", 1, body=body(), num_scan_inputs=1), "has the operator Scan"),
        (add_node("If", 1, then_branch=body(), else_branch=body()), "has the operator If"),
        (add_node("Other", 1, body=body()), "has a graph inside its operator 'Other'"),
        (add_node("ConstantOfShape", 1), "its operator ConstantOfShape makes a tensor of 1099511627776 values"),
        (add_node("Expand", 2), "its operator Expand makes a tensor"),
        (external, "has weights in another file"),
        (huge, r"has the shape \[2147483648, 2147483648\], but only \d+ bytes: damaged"),
        (negative, r"has the shape \[-1, .*damaged"),
        (constant, r"has the shape \[1099511627776\], but only"),
        (sparse, "has sparse weights"),
        (function, "has functions of its own"),
    ],
)
def test_what_exports_do_not_need(change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path) -> None:
    model = onnx.load_from_string(GOOD)
    change(model)
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=rf"a\.onnx: {message}|a\.onnx: its tensor '.*' {message}") as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace(b"CC-BY", b"CC\xff\xfeY").replace(b"Apache", b"Ap\xff\xfehe"), "its metadata is not UTF-8"),
        (GOOD[:1000], "not an ONNX file, or truncated"),
        (b"", "it is empty"),
        (b"\x00" * 5000, "not an ONNX file"),
        (b"<!DOCTYPE html>" * 50, "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a Git LFS pointer"),
    ],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.onnx: {message}"):
        foveal.load(path)


def test_a_description_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for content, old, new, message in (
        (SEGMENTS, '"num_classes": 11', '"num_classes": 12', "11 class names for num_classes=12"),
        (GOOD, '"in_chans": 3', '"in_chans": 4', "its description says 4 channels, its 'image' is a"),
        (GOOD, '"task": "upscale"', '"task": "up"', r"a\.onnx: .*task 'up'"),
    ):
        model = onnx.load_from_string(content)
        entry = next(entry for entry in model.metadata_props if entry.key == KEY)
        assert old in entry.value
        entry.value = entry.value.replace(old, new)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(FovealError, match=message):
            foveal.load(path)


def test_mutated_files_never_fail_untyped(tmp_path: Path) -> None:
    """A few bytes are changed, inserted or cut: the file is refused in one line, or accepted."""
    random, path = np.random.default_rng(0), tmp_path / "a.onnx"
    messages = []
    for _ in range(80):
        content = bytearray(GOOD)
        at = int(random.integers(0, 4000 if random.random() < 0.5 else len(content)))
        content[at : at + int(random.integers(0, 3))] = random.bytes(int(random.integers(0, 3)))
        path.write_bytes(content)
        try:
            check_onnx(path, "a.onnx")
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message]


def test_many_small_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_PARTS", 5000)
    check_onnx(GOOD, "a.onnx")
    with pytest.raises(CheckpointError, match="has more than 5000 parts"):
        check_onnx(b"\x08\x00" * 5001, "a.onnx")


def test_usage_events_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("off"))
    foveal.load("efficientvit_sr.x2", runtime="onnxruntime")
    assert calls
