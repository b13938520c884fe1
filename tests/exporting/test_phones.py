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

import foveal
from foveal.errors import CheckpointError, ConfigError
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
    with pytest.raises(ConfigError, match="float16"):
        foveal.export(Plain(), report.format, output=report.path.with_stem("b"), input_size=SIZE, half=True)


def test_litert_runs_without_torch(report: ExportReport) -> None:
    if report.format != "litert":
        pytest.skip("the package of ExecuTorch imports torch")
    code = (
        "import sys, numpy, foveal\n"
        "foveal.load(sys.argv[1])(numpy.zeros((40, 50, 3), numpy.uint8))\n"
        "assert 'torch' not in sys.modules\n"
    )
    run_process(code, report)


# ---- whole models


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_segmentation_of_any_image(to: str, tmp_path: Path) -> None:
    model = narrow("segment")
    options = {} if to == "executorch" else {"input_size": (96, 128)}
    report = export(model, to, tmp_path, **options)
    predictor = foveal.load(report.path)
    assert (report.sizes, report.delegated > 0.9) == (report.sizes, True)
    reference = foveal.load(foveal.export(model, output=tmp_path / "a.onnx", **options).path)
    for size in ((96, 128), (50, 60), (150, 300)):
        found, expected = (p(image(*size)).mask for p in (predictor, reference))
        assert (found == expected).mean() >= 0.9999


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_upscaling_of_any_image(to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = foveal.create_model("realtime_sr", task="upscale").eval()
    report = export(model, to, tmp_path, input_size=(96, 128))
    predictor = foveal.load(report.path)
    for size in ((96, 128), (50, 60), (150, 300)):
        assert predictor(image(*size)).image.shape == (2 * size[0], 2 * size[1], 3)


@pytest.mark.parametrize("to", FORMATS_OF_PHONES)
def test_promptable_models(to: str, tmp_path: Path) -> None:
    with registered() as name:
        model = foveal.create_model(name, task="prompt").eval()
        report = export(model, to, tmp_path)
        predictor = foveal.load(report.path)
        reference = foveal.load(foveal.export(model, output=tmp_path / "a.onnx").path)
    for prompt in (
        {"points": [[20, 30]], "labels": [1]},
        {"boxes": [5, 5, 60, 70]},
        {"points": [[20, 30], [10, 10], [40, 50]], "labels": [1, 0, 1]},
    ):
        found, expected = (p.encode(image(80, 100)).prompt(**prompt) for p in (predictor, reference))
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
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
