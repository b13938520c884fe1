"""A model of several files is exported whole, or no file is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveal.errors import ConfigError, ExportError, InputError
from foveal.exporting import onnx, openvino
from foveal.exporting.export import _write_all, export
from foveal.exporting.formats import find_format
from foveal.exporting.graph import Feed, Graph, Options, compare, exporter_errors
from foveal.exporting.image import _feeds
from foveal.exporting.report import ExportReport
from foveal.info import ModelInfo, attach
from foveal.prediction.input_limits import InputLimits
from helpers.commands import Command
from helpers.narrow import Plain, narrow

PARTS = ("encoder", "decoder", "prompts")


class Scale(nn.Module):
    """Multiply by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def graphs(**factors: float) -> list[Graph]:
    """Small networks, each of which doubles its input unless ``factors`` names another number for its part."""
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    return [
        Graph(
            part=part,
            network=Scale(factors.get(part, 2.0)),
            reference=Scale(2.0),
            info=ModelInfo("scale", "prompt"),
            example=(torch.zeros(2, 4),),
            inputs={"x": ("batch", "")},
            outputs={"y": ("batch", "")},
            feeds=(feed,),
        )
        for part in PARTS
    ]


def write(folder: Path, **factors: float) -> ExportReport:
    """Write the networks as ``a.PART.onnx``."""
    return _write_all(find_format("onnx"), graphs(**factors), folder / "a.onnx", Options())


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / f"a.{part}.onnx" for part in PARTS]
    report = write(tmp_path)
    assert (report.max_difference, report.agreement) == (0.0, 1.0)
    assert [report.path, *report.extra_files] == paths
    stored = tmp_path / "a.encoder.onnx.json"
    assert sorted(tmp_path.iterdir()) == sorted([*paths, stored])
    saved = json.loads(stored.read_text())
    assert [saved["path"], *saved["extra_files"]] == [path.name for path in paths]
    assert saved["bytes"] == sum(path.stat().st_size for path in paths)
    for path in (*paths, stored):
        path.unlink()
    paths[2].mkdir()  # in the way of the last file
    with pytest.raises(InputError, match=r"cannot write .*prompts\.onnx"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == [paths[2]]


@pytest.mark.parametrize("factor", [float("nan"), 2.001])
def test_no_file_is_left_if_one_differs(factor: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the decoder differs from the model by"):
        write(tmp_path, decoder=factor)
    assert not list(tmp_path.iterdir())


def test_no_size_can_be_chosen_where_every_size_fits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="native files take images of every size: leave the size out"):
        export(narrow(), "native", output=tmp_path / "a.foveal", input_size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--to onnx,native --size 64 --json", "native files take images of every size: leave the size out"),
        ("--to openvino,web --opset 18", "openvino files have no choice of ONNX's operator set: leave it out"),
        ("--to onnx,executorch --half", "executorch files have no float16: export to one of onnx"),
        ("--to onnx,native --int8 .", "native files have no int8: export to one of onnx, openvino"),
        ("--to onnx,samexporter", "samexporter files are of promptable models"),
        ("--to native,onnx --batch 2", "batch=2: native files take any batch: leave it out"),
        (
            "--to executorch,onnx --batch 2",
            "executorch files have a number of images with a fixed size only: give a size, too",
        ),
        ("--to onnx,openvino --output x.onnx", "--output x.onnx: several files are written, give a folder"),
    ],
)
def test_an_option_of_one_format_is_refused_before_the_first_file(
    options: str, message: str, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("export", "efficientvit_b0.camvid", *options.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_second_model_that_a_format_cannot_hold_is_refused_before_the_first_file(
    cli: Command, tmp_path: Path
) -> None:
    models = ("efficientvit_sr.x2", "tf_efficientnet_lite0.in1k")
    done = cli("export", *models, "--to", "web", "--output", tmp_path / "site")
    assert done.returncode == 2
    assert "web: the page has tools for" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ExportError("cannot be written")

    monkeypatch.setattr(onnx, "make_typed_onnx", fail)
    (tmp_path / "old").mkdir()
    for folder in ("old/new", "new/newer"):
        with pytest.raises(ExportError, match="cannot be written"):
            export(Plain(), output=tmp_path / folder / "a.onnx", size=(64, 64))
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


@pytest.mark.parametrize("batch", [0, -1])
def test_a_file_for_less_than_one_image_is_refused(batch: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch}: give 1 or more"):
        export(Plain(), output=tmp_path / "a.onnx", input_size=(64, 64), batch=batch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [1, 2])
def test_promptable_models_take_no_batch(batch: int, tmp_path: Path) -> None:
    model = Plain()
    attach(model, ModelInfo("plain", "prompt"))
    with pytest.raises(ConfigError, match=f"batch={batch}: a promptable model encodes one image at a time"):
        export(model, output=tmp_path / "a.onnx", batch=batch)
    assert not list(tmp_path.iterdir())


def test_errors_of_foveal_keep_their_type_and_text() -> None:
    for error in (InputError("cannot write a.onnx: No space left on device"), ConfigError("batch=0: give 1 or more")):
        with pytest.raises(type(error)) as raised, exporter_errors("plain", "ONNX"):
            raise error
        assert raised.value is error
    message = r"^plain: cannot be traced for ONNX \(no such operator\)$"
    with pytest.raises(ExportError, match=message), exporter_errors("plain", "ONNX"):
        raise ValueError("no such operator")


@pytest.mark.parametrize("width", [320, 2040, 2048])
def test_images_to_compare_with_are_within_the_limits(width: int) -> None:
    feeds = _feeds(1, (64, width), InputLimits((1024, 2048), 1))
    sizes = [feed["image"].shape for feed in feeds]
    assert sizes[:2] == [(1, 1, 64, width), (1, 1, 37, min(width + 13, 2048))]
    assert all(shape[2] <= 1024 and shape[3] <= 2048 for shape in sizes)


class TwoScores(nn.Module):
    """Two scores of each number, which differ by ``margin``, or by rounding in float32 if one is ``rough``."""

    def __init__(self, margin: float, rough: bool) -> None:
        super().__init__()
        self.margin, self.rough = margin, rough

    def forward(self, x: Tensor) -> Tensor:
        first = (x + 1024) - 1024 if self.rough else x + self.margin  # in steps of 1.2e-4
        return torch.stack([first, x], 1)


@pytest.mark.parametrize("rough", [True, False])
def test_only_ties_that_the_model_decides_by_rounding_do_not_count(rough: bool) -> None:
    """A file with the other class everywhere, whose values differ by less than the tolerance."""
    feed = {"x": np.random.default_rng(0).uniform(-4, 4, (3, 400)).astype(np.float32)}
    reference = TwoScores(1e-4, rough)
    graph = Graph(
        part="",
        network=reference,
        reference=reference,
        info=ModelInfo("scores", "segment"),
        example=(torch.zeros(2, 4),),
        inputs={"x": ("batch", "")},
        outputs={"y": ("batch", "")},
        feeds=(feed,),
        has_classes=True,
    )

    def run_file(feed: Feed) -> list[NDArray[np.float32]]:
        first, second = reference(torch.from_numpy(feed["x"])).unbind(1)
        return [torch.stack([second, first], 1).numpy()]

    if rough:
        assert compare(graph, run_file)[1] == 1
    else:
        with pytest.raises(ExportError, match=r"same class on 0\.000%"):
            compare(graph, run_file)


def test_more_weights_than_an_onnx_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX refuses them before a file is there. OpenVINO, whose weights are a file of their own, takes them."""
    pytest.importorskip("openvino")
    for module in (onnx, openvino):
        monkeypatch.setattr(module, "LARGEST", 1500)  # bytes: Plain has 1996
    with pytest.raises(ExportError, match=r"plain: an ONNX file holds at most 2 GiB, .* export in float16"):
        export(Plain(), output=tmp_path / "a.onnx", size=(64, 64))
    assert not list(tmp_path.iterdir())
    export(Plain(), "onnx", output=tmp_path / "a.onnx", size=(64, 64), half=True)
    report = export(Plain(), "openvino", output=tmp_path / "a.xml", size=(64, 64))
    assert report.max_difference < 1e-5


def test_a_folder_without_a_file_is_removed(tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    done = cli("export", "efficientvit_b0.camvid", "--to", "coreml,litert", "--output", tmp_path / "out", "--json")
    assert (done.returncode, set(json.loads(done.stdout)["errors"])) == (1, {"coreml", "litert"})
    assert list(tmp_path.iterdir()) == []
