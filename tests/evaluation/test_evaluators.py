"""One evaluator per task behind one function: options, devices, and a task that is added in one file and one line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.cli import main
from foveal.evaluation import evaluate as module
from foveal.evaluation.evaluators import EVALUATORS
from foveal.evaluation.report import Part, Table, skipped_rows, write_json
from foveal.evaluation.sheet import Sample, sample_sheet
from foveal.evaluation.upscale import _untrained_sets
from foveal.info import Labels, ModelInfo
from foveal.prediction.predictor import Predictor


@dataclass
class Folder:
    """The images of a folder."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> Path:
        return self.paths[index]


@dataclass(frozen=True)
class LevelReport:
    """Report of a made-up task: the mean grey level of images."""

    split: str
    images: int
    mean: float
    skipped: dict[str, str] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = ("report.json", "levels.txt")

    def to_dict(self) -> dict[str, Any]:
        return {"images": self.images, "mean": self.mean, "skipped": skipped_rows(self.skipped)}

    def save(self, folder: str | Path, **about: str) -> None:
        write_json(folder, {**about, **self.to_dict()})

    def table(self) -> Table:
        return ("what", "level"), [("mean", f"{self.mean:.1f}")]

    def summary(self) -> list[str]:
        return [f"{self.images} images of {self.split}"]


class LevelEvaluator:
    """The evaluator of the made-up task. Images named "bad" are damaged, those named "empty" have nothing to score."""

    options: ClassVar[Mapping[str, Any]] = {"size": None}

    def __init__(self, predictor: Predictor, data: str | Path, split: str | None, *, size: tuple[int, int] | None):
        folders = sorted(path for path in Path(data).iterdir() if path.is_dir())
        self.parts: Sequence[Part[float]] = [
            Part(folder.name, Folder(sorted(folder.iterdir())), lambda i, name, f=folder: self.score(f, i))
            for folder in folders
        ]
        self.size = size

    def score(self, folder: Path, index: int) -> float | None:
        path = sorted(folder.iterdir())[index]
        if path.stem == "empty":
            return None
        if path.stem == "bad":
            raise foveal.InputError(f"{path}: damaged")
        return float(np.asarray(Image.open(path)).mean())

    def summarise(self, scores: list[list[float]], skipped: dict[str, str]) -> LevelReport:
        levels = [level for part in scores for level in part]
        return LevelReport("+".join(part.name for part in self.parts), len(levels), float(np.mean(levels)), skipped)

    def save(self, report: LevelReport, folder: str | Path, **about: str) -> None:
        report.save(folder, **about)
        (Path(folder) / "levels.txt").write_text(f"{report.mean}\n")


def identity(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return batch


def made_up() -> Predictor:
    return Predictor(identity, ModelInfo(model="levels", task="level"), "numpy")


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets of grey images; the table has the made-up task in addition."""
    monkeypatch.setitem(EVALUATORS, "level", LevelEvaluator)
    for folder, stems in {"a": {"one": 10, "bad": 0}, "b": {"two": 40, "empty": 0}}.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for stem, level in stems.items():
            Image.new("L", (8, 8), level).save(tmp_path / "data" / folder / f"{stem}.png")
    return tmp_path / "data"


def test_a_task_is_one_class_and_one_line(levels: Path, tmp_path: Path) -> None:
    """Several sets, a damaged image, an image with nothing to score: nothing but the table knows the task."""
    report = foveal.evaluate(made_up(), levels, out=tmp_path / "out")
    assert (report.images, report.mean, report.split) == (2, 25.0, "a+b")
    assert report.skipped == {"a/bad.png": f"{levels}/a/bad.png: damaged"}
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == {"ref": "", "model": "levels", "data": str(levels), **report.to_dict()}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.files)
    with pytest.raises(foveal.ConfigError, match="boundary=True is for models of the task 'segment', this one is"):
        foveal.evaluate(made_up(), levels, boundary=True)
    for path in levels.rglob("*.png"):
        path.rename(path.with_stem("bad"))
    with pytest.raises(foveal.DataError, match=r"none of the 2 images of 'a, b' can be scored; the first: .*bad\.png"):
        foveal.evaluate(made_up(), levels)


def test_the_command_prints_any_report(
    levels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "load", lambda ref, **options: made_up())
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "levels", str(levels), "--out", str(tmp_path / "out")])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert done.value.code == 1
    assert [line.split() for line in lines[:2]] == [["what", "level"], ["mean", "25.0"]]
    assert lines[2:] == [
        "2 images of a+b",
        f"skipped a/bad.png: {levels}/a/bad.png: damaged",
        f"report.json and levels.txt are in {tmp_path / 'out'}",
    ]


def test_tasks_without_an_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(foveal.ConfigError, match="models for 'level' have no evaluation; it exists for classify, seg"):
        foveal.evaluate(made_up(), tmp_path)


def test_evaluators_declare_the_defaults_of_the_public_function() -> None:
    """An option with another value than its default is refused by the tasks that do not declare it."""
    parameters = inspect.signature(foveal.evaluate).parameters
    for evaluator in EVALUATORS.values():
        for name, default in evaluator.options.items():
            assert parameters[name].default == default


def test_where_and_how_to_run_goes_to_load(monkeypatch: pytest.MonkeyPatch, levels: Path) -> None:
    calls = []

    def load(ref: str, **options: str) -> Predictor:
        calls.append((ref, options))
        return made_up()

    monkeypatch.setattr(module, "load", load)
    foveal.evaluate("ref", levels)
    foveal.evaluate("ref", levels, device="cuda:1", dtype="bfloat16")
    with pytest.raises(SystemExit):
        main(["evaluate", "ref", str(levels), "--device", "cpu", "--runtime", "torch", "--threads", "3", "--json"])
    default = {"device": "auto", "dtype": "auto", "runtime": "auto", "threads": None}
    assert calls == [
        ("ref", default),
        ("ref", default | {"device": "cuda:1", "dtype": "bfloat16"}),
        ("ref", default | {"device": "cpu", "runtime": "torch", "threads": 3}),
    ]
    for name, value in (("device", "cpu"), ("dtype", "float16")):
        with pytest.raises(
            foveal.ConfigError, match=f"{name}='{value}': this predictor is loaded already; give {name} to foveal.load"
        ):
            foveal.evaluate(made_up(), levels, **{name: value})


def test_a_real_device_and_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16 on the CPU moves the scores a little; an unknown device is an error of one line."""
    from foveal.info import info_of
    from foveal.weights.checkpoints import save_checkpoint
    from helpers.upscalers import photo

    model = foveal.create_model("realtime_sr", task="upscale").eval()
    save_checkpoint(tmp_path / "net.safetensors", model.state_dict(), info_of(model))
    (tmp_path / "set").mkdir()
    Image.fromarray(photo(40, 48)).save(tmp_path / "set" / "a.png")
    exact = foveal.evaluate(tmp_path / "net.safetensors", tmp_path, device="cpu")["set"].psnr
    half = foveal.evaluate(tmp_path / "net.safetensors", tmp_path, device="cpu", dtype="bfloat16")["set"].psnr
    assert half != exact
    assert half == pytest.approx(exact, abs=1)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(tmp_path / "net.safetensors"), str(tmp_path), "--device", "nowhere"])
    assert done.value.code == 2
    assert "device 'nowhere' cannot be used" in capsys.readouterr().err


def test_upscaling_takes_a_degradation(tmp_path: Path) -> None:
    """Scale 1 needs one; noise of 25 levels alone gives the PSNR of that noise, and the report names it."""
    from helpers.upscalers import photo

    (tmp_path / "set").mkdir()
    Image.fromarray(photo(64, 80)).save(tmp_path / "set" / "a.png")
    info = ModelInfo(task="upscale", options={"scale": 1}, preprocess=foveal.Preprocess((0.0,) * 3, (1.0,) * 3))
    predictor = Predictor(identity, info, "numpy")
    with pytest.raises(foveal.ConfigError, match=r"scale 1 repairs images.* degradation=\{'noise': \(25, 25\)\}"):
        foveal.evaluate(predictor, tmp_path)
    report = foveal.evaluate(predictor, tmp_path, degradation={"noise": (25, 25)}, out=tmp_path / "out")
    assert report.sets[0].small == "noise 25..25"
    assert 20 < report["set"].psnr < 30
    assert (report.images, report.split) == (1, "set")
    assert (tmp_path / "out" / "per_image.csv").read_text().splitlines()[0] == "set,image,psnr,ssim"
    with pytest.raises(foveal.ConfigError, match="degradation: unknown name 'noize'; did you mean 'noise'"):
        foveal.evaluate(predictor, tmp_path, degradation={"noize": (25, 25)})
    with pytest.raises(foveal.ConfigError, match=r"degradation: .*: give ranges, the smaller number first"):
        foveal.evaluate(predictor, tmp_path, degradation={"jpeg": (90, 30)})
    for said in ({"blur": [1e9, 1e9]}, {"blur": 5}, [], {"noise": ["a", "b"]}):  # by a file
        noted = Predictor(identity, info.replace(notes={"config": {"degradation": said, "splits": 5}}), "numpy")
        with pytest.raises(foveal.ConfigError, match=r"degradation in .*: give ranges, the smaller number first"):
            foveal.evaluate(noted, tmp_path)


def test_sets_that_were_trained_on_have_other_names(tmp_path: Path) -> None:
    for name in ("flat", "folders/training", "folders/val"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "flat" / "dataset.yaml").write_text("val_share: 0.5")
    for name in ("flat", "folders"):
        assert _untrained_sets(tmp_path / name, ("train",)) == ["val"]


def test_a_sheet_of_as_many_classes_as_a_palette_has() -> None:
    target = np.full((8, 8), 65535, np.uint16)
    sample = Sample("x", np.zeros((8, 8, 3), np.uint8), target, np.zeros((8, 8), np.int64))
    assert sample_sheet([sample], Labels(tuple(map(str, range(256))))).width > 0
