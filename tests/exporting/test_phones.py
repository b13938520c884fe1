"""ExecuTorch and LiteRT: files equal the model, describe themselves, take other images, and are refused if damaged."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.errors import CheckpointError, ConfigError, ExportError
from foveal.exporting.formats import FORMATS
from foveal.exporting.report import ExportReport
from foveal.models.registry import FAMILIES
from foveal.prediction.predictor import Predictor
from helpers.covered import covered
from helpers.narrow import Plain, narrow, registered
from helpers.spoil import spoil

#: Runtime of each format, and a package that it needs.
FORMATS_OF_PHONES = {"executorch": "executorch", "litert": "litert_torch"}
SIZE = (32, 48)

pytestmark = pytest.mark.long  # lowering, and imports of large packages


def export(model: Any, to: str, folder: Path, **options: Any) -> ExportReport:
    """Export a model; the test is skipped if the format's package is not installed."""
    if importlib.util.find_spec(FORMATS_OF_PHONES[to]) is None:
        pytest.skip(f"{FORMATS_OF_PHONES[to]} is not installed")
    return foveal.export(model, to, output=folder / f"a{FORMATS[to].suffixes[0]}", **options)


@pytest.fixture(scope="module", params=FORMATS_OF_PHONES)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(Plain(), request.param, tmp_path_factory.mktemp("phones"), input_size=SIZE)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def equal(predictor: Predictor, other: Predictor, size: tuple[int, int]) -> bool:
    found, expected = (p(image(*size)).scores for p in (predictor, other))
    return bool(np.allclose(found, expected, atol=1e-5))


def test_the_report_says_how_the_file_was_checked(report: ExportReport) -> None:
    assert report.max_difference < 1e-5
    assert report.agreement == 1
    assert report.delegated > 0.9
    assert report.sizes == ((1, *SIZE),)
    assert any(name.startswith(("executorch", "litert")) for name in report.versions)
    assert json.loads(report.path.with_name(f"{report.path.name}.json").read_text())["format"] == report.format


def test_a_file_alone_is_enough(report: ExportReport) -> None:
    predictor = foveal.load(report.path, threads=1)
    assert predictor.info.model == "plain"
    assert report.format in predictor.runtime
    assert predictor.info.preprocess.size == SIZE
    free = foveal.export(Plain(), output=report.path.with_suffix(".onnx"), input_size=SIZE)
    assert predictor.names == foveal.load(free.path).names
    batch = np.random.default_rng(0).standard_normal((3, 3, *SIZE)).astype(np.float32)
    assert predictor.runner(batch).shape == (3, 3)  # the file takes one image at once


def test_the_description_is_where_apps_look_for_it(report: ExportReport) -> None:
    if report.format == "executorch":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(report.path.read_bytes())
        text = program.load_method("foveal").execute([])[0]
        assert program.load_method("task").execute([]) == ["classify"]
    else:
        from ai_edge_litert.schema_py_generated import Model

        model = Model.GetRootAs(report.path.read_bytes())
        entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
        text = bytes(model.Buffers(entries[b"foveal"]).DataAsNumpy()).decode()
    assert foveal.ModelInfo.from_json(text).model == "plain"


def test_copies_and_pickles_give_the_same(report: ExportReport) -> None:
    predictor = foveal.load(report.path, threads=1)
    for travelled in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert equal(travelled, predictor, (50, 40))


def run_process(code: str, report: ExportReport) -> str:
    """What Python code prints, in a process of its own, with the path of the file as its argument."""
    done = subprocess.run([sys.executable, "-c", code, str(report.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_predicts(report: ExportReport) -> None:
    """In a process without the exporters, which have threads of their own."""
    code = (
        "import os, signal, sys, numpy, foveal\n"
        "predictor, image = foveal.load(sys.argv[1], threads=2), numpy.zeros((40, 50, 3), numpy.uint8)\n"
        "expected = predictor(image).logits\n"
        "if process := os.fork(): sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))\n"
        "signal.alarm(120)\n"
        "os._exit(0 if (predictor(image).logits == expected).all() else 3)\n"
    )
    run_process(code, report)


def test_threads_are_honoured_or_refused(report: ExportReport) -> None:
    code = (
        "import sys, foveal\n"
        "first = foveal.load(sys.argv[1], threads=1)\n"
        "try: foveal.load(sys.argv[1], threads=2); print('honoured')\n"
        "except foveal.errors.ConfigError as error: print(error)\n"
        "del first\n"
        "assert foveal.load(sys.argv[1], threads=2)\n"
    )
    expected = "share their threads, and one is open with 1" if report.format == "executorch" else "honoured"
    assert expected in run_process(code, report)


def test_damaged_files_are_one_line(report: ExportReport, tmp_path: Path) -> None:
    content, rng = report.path.read_bytes(), random.Random(0)
    path = tmp_path / report.path.name
    for _ in range(200):
        damaged = spoil(content, rng)
        if damaged == content:
            continue
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            foveal.load(path)
        assert "\n" not in str(caught.value)


def test_impossible_requests_are_one_line(report: ExportReport) -> None:
    with pytest.raises(ConfigError, match="in float32, not with dtype='float16'"):
        foveal.load(report.path, dtype="float16")
    options: dict[str, Any] = {"output": report.path.with_stem("b"), "input_size": SIZE}
    with pytest.raises(ConfigError, match=f"^{report.format} files have no int8"):
        foveal.export(Plain(), report.format, int8="data", **options)
    if report.format == "executorch":
        with pytest.raises(ConfigError, match=r"^executorch files have no float16: export to one of .*litert"):
            foveal.export(Plain(), report.format, half=True, **options)


def test_litert_runs_without_torch(report: ExportReport) -> None:
    if report.format != "litert":
        pytest.skip("the package of ExecuTorch imports torch")
    code = (
        "import sys, numpy, foveal\n"
        "foveal.load(sys.argv[1])(numpy.zeros((40, 50, 3), numpy.uint8))\n"
        "assert 'torch' not in sys.modules\n"
    )
    run_process(code, report)


class Transformed(Plain):
    """A classifier with an operation that neither format has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.linalg.svd(x).U)


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_what_a_format_cannot_express_is_one_line_and_no_file(to: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export(Transformed(), to, tmp_path, input_size=SIZE)
    assert "svd" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "ref", "options"),
    [
        ("upscale", "efficientvit_sr.x2", ["--scale", "2"]),
        ("prompt", "tf_efficientnet_lite0.sam", ["--box", "5,5,60,60"]),
    ],
)
def test_commands_without_torch(verb: str, ref: str, options: list[str], tmp_path: Path) -> None:
    """The file of LiteRT alone is enough for the command, and torch is not imported."""
    fixed: dict[str, Any] = {"input_size": (96, 128)} if verb == "upscale" else {}
    report = export(ref, "litert", tmp_path, **fixed)
    Image.fromarray(image(70, 90)).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # an import of it fails\n"
        "from foveal.cli import main\n"
        "sys.argv[0] = 'foveal'\n"
        "main()\n"
    )
    command = [verb, str(tmp_path / "a.png"), "--model", str(report.path), "--out", str(tmp_path / "out.png"), *options]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == ((180, 140) if verb == "upscale" else (90, 70))


# ---- whole models


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_segmentation_of_any_image(to: str, tmp_path: Path) -> None:
    model = narrow("segment")
    options: dict[str, Any] = {} if to == "executorch" else {"input_size": (96, 128)}
    report = export(model, to, tmp_path, **options)
    predictor = foveal.load(report.path)
    assert report.delegated > 0.9
    assert to == "executorch" or report.sizes == ((1, 96, 128),)
    reference = foveal.load(foveal.export(model, output=tmp_path / "a.onnx", **options).path)
    for size in ((96, 128), (50, 60), (150, 300)):
        found, expected = (p(image(*size)).mask for p in (predictor, reference))
        assert (found == expected).mean() >= 0.9999


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
@pytest.mark.parametrize("ref", ["realtime_sr", "efficientvit_sr.x2"])
def test_upscaling_of_any_image(ref: str, to: str, tmp_path: Path) -> None:
    """The picture is that of the model; of an image larger than the file takes, that of the model's tiles."""
    torch.manual_seed(0)
    model: Any = ref if "." in ref else foveal.create_model(ref, task="upscale").eval()
    fixed: dict[str, Any] = {"input_size": (96, 128)} if to == "litert" else {}
    predictor = foveal.load(export(model, to, tmp_path, **fixed).path)
    reference = foveal.load(foveal.export(model, output=tmp_path / "a.onnx", **fixed).path)
    eager = foveal.load(ref, runtime="torch") if "." in ref else reference
    for size in ((96, 128), (50, 60), (150, 300)):
        found, expected = (p(image(*size)).image for p in (predictor, reference))
        assert found.shape == (2 * size[0], 2 * size[1], 3)
        assert levels_apart(found, expected) <= 1
    assert levels_apart(predictor(image(96, 128)).image, eager(image(96, 128)).image) <= 1


def levels_apart(found: np.ndarray, expected: np.ndarray) -> int:
    """Largest difference of two pictures: values that lie between two levels may be rounded to either."""
    return int(np.abs(found.astype(int) - expected).max())


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_promptable_models(to: str, tmp_path: Path) -> None:
    with registered() as name:
        model = foveal.create_model(name, task="prompt").eval()
        report = export(model, to, tmp_path)
        predictor = foveal.load(report.path)
        reference = foveal.load(foveal.export(model, output=tmp_path / "a.onnx").path)
    logits = 8 * np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    prompts: tuple[dict[str, Any], ...] = (
        {"points": [[20, 30]], "labels": [1]},
        {"boxes": [5, 5, 60, 70]},
        {"points": [[20, 30], [10, 10], [40, 50]], "labels": [1, 0, 1]},
        {"points": [[20, 30]], "labels": [1], "masks": logits},
    )
    for prompt in prompts:
        found, expected = (p.encode(image(80, 100)).prompt(**prompt) for p in (predictor, reference))
        np.testing.assert_allclose(found.iou, expected.iou, atol=1e-4)
        assert (np.asarray(found.masks) == np.asarray(expected.masks)).mean() >= 0.9999


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family: str, to: str, tmp_path: Path) -> None:
    smallest = next(iter(FAMILIES[family].variants))
    tasks = FAMILIES[family].variants[smallest].tasks
    if tasks[0] not in ("classify", "segment", "upscale"):
        pytest.skip(f"its first task is {tasks[0]}")
    torch.manual_seed(0)
    report = export(foveal.create_model(smallest).eval(), to, tmp_path, input_size=(64, 64))
    assert report.max_difference < 1e-4


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_the_approximate_gelu_stays_approximate(to: str, tmp_path: Path) -> None:
    """XNNPACK computes the exact one for both, which differs by up to 5e-4."""
    report = export(covered("efficientvit_l classify"), to, tmp_path, input_size=(64, 64))
    assert report.max_difference < 1e-5
