"""An exported file computes what the model computes, at any size, and describes itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import foveal
from foveal.data.synthetic import NAMES
from foveal.exporting.formats import FORMATS, Format
from foveal.exporting.graph import Graph, Options, RunFile, Written, trace
from foveal.info import KEY, ModelInfo, attach, info_of
from foveal.layers.linear_attention import MultiScaleLinearAttention
from foveal.prediction.exported import NetworkRunner
from foveal.prediction.onnx_runner import onnx_network
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from foveal.training.train import TrainResult
from foveal.weights.checkpoints import save_checkpoint
from helpers import golden
from helpers.commands import Command
from helpers.narrow import Plain, narrow


@pytest.mark.parametrize("size", [(1, 32, 32), (1, 33, 200), (3, 97, 61), (2, 128, 96), (1, 257, 511)])
def test_any_batch_and_size(run: TrainResult, exported: Path, size: tuple[int, int, int]) -> None:
    """Dynamic means dynamic: sizes that were not traced, odd and below the traced one, and other batches."""
    image = torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0))
    model = foveal.load_model(run.best)
    with torch.inference_mode():
        expected = model(image, upsample=False).numpy()
    found = NetworkRunner(onnx_network(exported))(image.numpy())
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_description_is_inside(exported: Path) -> None:
    """Preprocessing, names, palette and licence travel with the file, in JSON and in plain text."""
    metadata = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    info = ModelInfo.from_json(metadata[KEY])
    assert (info.model, info.task, info.output_stride) == ("efficientvit_b0", "segment", 8)
    assert info.labels.names == NAMES
    assert metadata["names"] == "ground, disc, square, triangle"
    assert metadata["palette"].startswith("#5a5a5a")
    assert metadata["ignore_index"] == str(json.loads(metadata[KEY])["ignore_index"]) == "255"
    assert metadata["mean"].startswith("0.485")
    onnx.checker.check_model(onnx.load(exported), full_check=True)


def test_nothing_of_this_machine_is_inside(exported: Path) -> None:
    """The tracer notes source files and lines on every node: a tenth of the file, and nobody else's business."""
    content = exported.read_bytes()
    for note in (b".py", b"site-packages", b"pkg.torch", str(Path.cwd()).encode(), str(exported.parent).encode()):
        assert note not in content


def test_inputs_and_outputs_are_named(exported: Path) -> None:
    graph = onnx.load(exported).graph
    (image,), (logits,) = (
        [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]
        for values in (graph.input, graph.output)
    )
    assert image == ("image", ["batch", 3, "height", "width"])
    assert logits == ("logits", ["batch", 4, "height/8", "width/8"])


def test_attention_keeps_its_epsilon(exported: Path) -> None:
    """Optimisers take 1e-15 for zero; without it, queries with no positive feature become 0/0."""
    graph = onnx.load(exported).graph
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    constants += [
        onnx.numpy_helper.to_array(attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    assert any(array.size == 1 and array.dtype == np.float32 and 0 < float(array.min()) < 1e-14 for array in constants)
    assert np.isfinite(NetworkRunner(onnx_network(exported))(np.zeros((1, 3, 64, 64), np.float32))).all()


@pytest.mark.long  # the conversion of others; Foveal's own: tests/exporting/test_half.py
def test_graph_survives_conversion_to_float16(tmp_path: Path) -> None:
    """Runtimes convert float32 graphs by themselves: sums of keys must stay in range, queries of zeros must give 0.

    Queries and keys 16 times as large leave the model's output as it is and make the sums those of a large image.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = foveal.load_model("efficientvit_b0.camvid_scratch")
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):
            heads = module.qkv.weight.data.unflatten(0, (-1, 3, module.head_dim))
            heads[:, :2] *= 16
    report = foveal.export(model, output=tmp_path / "large.onnx", size=(96, 128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter says that it cannot hold the epsilon: that is the point
        half = convert_float_to_float16(onnx.load(report), keep_io_types=True)
    onnx.save(half, tmp_path / "half.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 160, 224)).astype(np.float32)
    expected, found = (
        NetworkRunner(onnx_network(report.path))(image),
        NetworkRunner(onnx_network(tmp_path / "half.onnx"))(image),
    )
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_upsampling_can_be_in_the_graph(upsampling: Path) -> None:
    """Other clients then get logits at the image's size; Foveal reads both kinds alike."""
    model = golden.fill(narrow("segment", 19, attention=False))
    session = onnxruntime.InferenceSession(upsampling, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, 75, 90)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image)).numpy()
    (found,) = session.run(None, {"image": image})
    assert np.asarray(found).shape == (1, 19, 75, 90)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    # At other sizes the graph interpolates towards the padding, where the predictor repeats the edge.
    photo = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    here, there = Predictor(TorchRunner(model), model.foveal_info, "torch")(photo), foveal.load(upsampling)(photo)
    assert np.abs(there.scores - here.scores).max() < 1e-4
    assert (there.mask == here.mask).mean() > 0.999


def test_classifiers_export_too(tmp_path: Path) -> None:
    report = foveal.export(narrow(num_classes=7, attention=False), output=tmp_path / "classifier.onnx", size=(64, 96))
    result = foveal.load(report.path)(np.zeros((70, 50, 3), np.uint8))
    assert len(result.top(10)) == 7
    assert report.max_difference <= 1e-4
    assert report.bytes == report.path.stat().st_size


def test_refusals_leave_no_file(tmp_path: Path) -> None:
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    with pytest.raises(foveal.ConfigError, match=r"unknown format 'onxn'; did you mean 'onnx'\?"):
        foveal.export(model, to="onxn", output=tmp_path / "a.onnx")
    with pytest.raises(foveal.ConfigError, match="upsample is for segmentation and regression, efficientvit_b0 is"):
        foveal.export(foveal.create_model("efficientvit_b0"), output=tmp_path / "x.onnx", upsample=True)
    with pytest.raises(foveal.ConfigError, match="trace at 64 pixels or more"):
        foveal.export(model, output=tmp_path / "a.onnx", size=(32, 64))
    with pytest.raises(foveal.ConfigError, match="was not made by foveal"):
        foveal.export(torch.nn.Conv2d(3, 3, 1), output=tmp_path / "a.onnx")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(foveal.InputError, match="cannot write"):
        foveal.export(model, output=tmp_path / "file" / "a.onnx", size=(64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_models_of_one_name_do_not_replace_each_other(tmp_path: Path, cli: Command) -> None:
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.safetensors", model.state_dict(), info_of(model))
    done = cli("export", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "would be written to files of the same name, efficientvit_b0: export one at a time" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_tag_leads_into_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = narrow(attention=False)
    attach(model, info_of(model).replace(tag="/../../out"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = foveal.export(model, size=(64, 64))
    assert report.path.resolve().parent == tmp_path / "here"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_backbones_are_refused(tmp_path: Path) -> None:
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    with pytest.raises(foveal.ConfigError, match="for one of classify, segment, upscale, regress, prompt"):
        foveal.export(backbone, output=tmp_path / "a.onnx")


def test_a_further_format_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own program files as a format: written, compared, reported; refused where they differ."""

    def write(graph: Graph, files: Sequence[Path], options: Options) -> Written:
        torch.export.save(trace(graph), files[0])
        return Written()

    def open_program(files: Sequence[Path]) -> RunFile:
        network = torch.export.load(files[0]).module()
        return lambda feed: [network(*map(torch.from_numpy, feed.values())).detach().numpy() + offset]

    monkeypatch.setitem(FORMATS, "program", Format("program", (".pt2",), write, open_program))
    model, offset = Plain(), 1.0
    with pytest.raises(foveal.ExportError, match="differs from the model"):
        foveal.export(model, "program", output=tmp_path / "a.pt2", size=(64, 64))
    assert not list(tmp_path.iterdir())
    offset = 0.0
    report = foveal.export(model, "program", output=tmp_path / "a.pt2", size=(64, 64))
    assert (report.format, report.opset, report.max_difference <= 1e-4) == ("program", 0, True)
    assert "opset" not in str(report)
    with pytest.raises(foveal.ConfigError, match=r"unknown format 'progam'; did you mean 'program'\?"):
        foveal.export(model, "progam")


class _Branching(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))


def test_untraceable_models_are_refused(tmp_path: Path) -> None:
    """What depends on the pixels' values has no graph; one line says so."""
    model = _Branching()
    attach(model, ModelInfo(model="branching", task="classify", num_classes=3))
    with pytest.raises(foveal.ExportError, match=r"^branching: cannot be traced for ONNX") as caught:
        foveal.export(model, output=tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tolerance that rounding cannot meet, the check must refuse, whatever stood there before must stay."""
    from foveal.exporting import graph as module

    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    (tmp_path / "a.onnx").write_bytes(b"before")
    with pytest.raises(foveal.ExportError, match="differs from the model"):
        foveal.export(Plain(), output=tmp_path / "a.onnx", size=(64, 64))
    assert (tmp_path / "a.onnx").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1
