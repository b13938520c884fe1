"""Training on tar files: like on folders, for both tasks, resumed with the same numbers, with bad files named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveal
from foveal.cli import main
from foveal.data.segmentation import SegmentationData
from foveal.data.synthetic import NAMES, write_shapes
from helpers.runs import SETTINGS, SMALL, losses, same_weights, wait_for
from helpers.tars import encoded, shard

TARS = {**SETTINGS, "epochs": 3, "shuffle_buffer": 5}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=24, val=5, size=(32, 32))


@pytest.fixture(scope="module")
def tars(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples in tar files, with masks, and with the class of the image's centre."""
    root = tmp_path_factory.mktemp("tars")
    (root / "dataset.yaml").write_text(f"names: [{', '.join(NAMES)}]")
    for split, size in (("train", 7), ("val", 3)):
        data = SegmentationData.open(shapes, [split])
        for start in range(0, len(data), size):
            members = []
            for index in range(start, min(start + size, len(data))):
                image, mask = data[index]
                members += [(f"{index:04}.png", encoded(image)), (f"{index:04}.mask.png", encoded(mask))]
                members += [(f"{index:04}.cls", b"%d" % mask[16, 16])]
            shard(root / f"{split}-{start:04}.tar", members)
    return root


@pytest.mark.usefixtures("late_sigterm")
@pytest.mark.parametrize("task", ["segment", "classify"])
def test_stopped_run_goes_on_to_the_bit(tars: Path, tmp_path: Path, task: str) -> None:
    """Stopped within an epoch and resumed with other workers, a run has the losses and weights of a whole one."""
    settings = {**TARS, "task": task} | (SMALL if task == "segment" else {})
    whole = foveal.train(f"{tars}/{{train,val}}-*.tar", out=tmp_path / "whole", **settings)
    assert sorted(losses(whole.folder)) == list(range(1, 19))
    assert whole.metric == ("miou" if task == "segment" else "top1")
    assert np.isfinite(whole.value)
    cut = tmp_path / "cut"

    def stop() -> None:
        wait_for(lambda: (cut / "log.jsonl").exists() and len(losses(cut)) >= 2)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(SystemExit):
        foveal.train(tars, out=cut, **settings)
    stopping.join()
    assert 2 <= max(losses(cut)) < 18
    foveal.train(tars, out=cut, resume=True, workers=2)
    assert losses(cut) == losses(whole.folder)
    assert same_weights(cut, whole.folder)
    if task == "classify":
        for data in (tars, f"{tars}/val-*.tar"):
            found: Any = foveal.evaluate(whole.folder / "last.safetensors", data)
            assert (found.split, len(found.per_image)) == ("val", 5)
        assert found.top1 == pytest.approx(whole.value, abs=0.2), "last and best may differ by an image"


def test_scores_are_those_of_the_same_files_in_folders(tars: Path, shapes: Path, tmp_path: Path) -> None:
    """A run on tar files has the validation score of the same files in folders."""
    run = foveal.train(tars, out=tmp_path / "run", **{**TARS, **SMALL, "epochs": 1, "eval_every": 1})
    for data in (shapes, tars):
        found = foveal.evaluate(run.folder, data, split="val")
        assert found.miou == pytest.approx(run.value, rel=1e-6)
    assert found.per_image[0].image == "val-0000.tar/0000"


def test_epochs_of_a_chosen_length(tars: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """40 samples are 10 steps, more than the 6 of a pass; the number of steps is printed."""
    settings = {**TARS, **SMALL, "epochs": 2, "samples_per_epoch": 40, "val_split": ""}
    run = foveal.train(tars, out=tmp_path / "run", **settings).folder
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "epoch" in line] == [10, 20]
    assert "24 training images, 10 steps per epoch, 20 in all" in capfd.readouterr().err
    with pytest.raises(
        foveal.ConfigError, match=r"samples_per_epoch=3 is out of range: give 0, or at least batch_size \(4\)"
    ):
        foveal.train(tars, out=tmp_path / "other", **{**settings, "samples_per_epoch": 3})


@pytest.mark.parametrize("data", ["data", "data/*.tar"])
def test_30_a_damaged_image_is_left_out(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """The sample is listed in the form that ``exclude`` reads."""
    shutil.copytree(tars, tmp_path / "data")
    mask = encoded(np.zeros((32, 32), np.uint8))
    shard(tmp_path / "data" / "train-0100.tar", [("0100.png", b"no picture"), ("0100.mask.png", mask)])
    monkeypatch.chdir(tmp_path)
    settings = {**TARS, **SMALL, "epochs": 2, "eval_every": 2, "max_bad": 0.05}
    assert [Path(name).name for name in foveal.train(data, out="run", **settings).bad] == ["0100"]
    assert Path("run/bad.txt").read_text() == "train-0100.tar/0100\n"
    shutil.copy("run/bad.txt", "data")
    with Path("data/dataset.yaml").open("a") as file:
        file.write("\nexclude: bad.txt\n")
    assert not foveal.train(data, out="without", **settings).bad


def test_truncated_file_is_one_line(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (*tars.glob("*.tar"), tars / "dataset.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "train-0007.tar"
    bad.write_bytes(bad.read_bytes()[:-12_000])
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"foveal: {bad}: damaged or truncated after 00")
    assert "\n" not in said
    assert not (tmp_path / "run").exists()
