"""Mistakes around training: reported in one line before it starts, or survived; nothing is left out silently."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import foveal
from foveal import cli
from foveal.data.synthetic import NAMES, write_shapes
from foveal.errors import ConfigError, DataError, DependencyError, InputError
from foveal.progress import Progress
from foveal.training import cache as cached
from foveal.training import jobs
from foveal.training.config import TrainConfig
from helpers.processes import start_command
from helpers.runs import ONE_THREAD, SETTINGS, SMALL, losses, same_weights, wait_for

pytestmark = pytest.mark.usefixtures("late_sigterm")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=4, size=(32, 32))


def train(data: Path, out: Path, **settings: Any) -> Any:
    return foveal.train(data, out=out, **{**SETTINGS, **SMALL, "epochs": 2, "eval_every": 1, **settings})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def with_bad_validation(shapes: Path, root: Path, bad: int) -> Path:
    """The same training images, and id 9, which is no class, in the first ``bad`` validation masks."""
    (root / "valannot").mkdir(parents=True)
    for name in ("train", "trainannot", "val", "dataset.yaml"):
        (root / name).symlink_to(shapes / name)
    for number, file in enumerate(sorted((shapes / "valannot").iterdir())):
        ids = np.asarray(Image.open(file)).copy()
        ids[0, 0] = 9 if number < bad else ids[0, 0]
        Image.fromarray(ids).save(root / "valannot" / file.name)
    return root


def test_class_weights_do_not_depend_on_memory(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks outside the memory count like those in it; a class missing in a subset has the weight of a rare one."""
    config = TrainConfig(cache_gib=2.0, crop=(32, 32))
    quiet = Progress(enabled=False)
    expected = jobs.SegmentJob(shapes, config, quiet).class_weights
    config = TrainConfig(cache_gib=0.0, crop=(32, 32))
    torch.testing.assert_close(jobs.SegmentJob(shapes, config, quiet).class_weights, expected)
    monkeypatch.setattr(cached, "_SAMPLED", 1)
    notes: list[str] = []
    monkeypatch.setattr(quiet, "note", notes.append)
    of_one = jobs.SegmentJob(shapes, config, quiet).class_weights
    assert (of_one > 0).all()
    (note,) = notes
    assert note.startswith("not in the 1 masks that were counted, so weighted as the rarest class: ")
    assert note.split(": ")[1] in ", ".join(NAMES)


@pytest.mark.parametrize(("keys", "asks"), [("ignore: [255]", True), ("ids: [0, 255]", False)])
def test_masks_of_black_and_white_are_noted(tmp_path: Path, keys: str, asks: bool) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "train" / "1.png")
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (32, 16))).save(tmp_path / "masks" / "train" / "1.png")
    (tmp_path / "dataset.yaml").write_text(f"names: [background, crack]\n{keys}")
    notes: list[str] = []
    progress = Progress(enabled=False)
    progress.note = notes.append
    job = jobs.SegmentJob(tmp_path, TrainConfig(crop=(32, 32), val_split=""), progress)
    assert any("only 255 besides 0, and it is ignored; is it the class?" in note for note in notes) == asks
    assert np.unique(job.data[0][1]).tolist() == ([0, 255] if asks else [0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "classify", "loss": {"dice": 1.0}}, "loss=.* is for 'segment', not 'classify': leave it out"),
        ({"task": "classify", "rare_crop": 0.5}, "rare_crop=0.5 is for 'segment'"),
        ({"label_smoothing": 0.3}, "label_smoothing=0.3 is for 'classify', not 'segment'"),
        ({"degradation": {"noise": [5, 50]}}, "degradation=.* is for 'upscale', not 'segment'"),
        ({"freeze_encoder": True}, "freeze_encoder=True is for 'prompt', not 'segment'"),
        ({"seed": 10**23}, "seed=.* is out of range: give 0 to 2"),
        ({"task": "upscale", "model": "efficientvit_sr", "options": {"scale": "two"}}, "scale='two': give one of 1"),
        ({"task": "upscale", "model": "efficientvit_sr", "options": {"scale": 0}}, "scale=0: give one of 1"),
        (
            {"task": "upscale", "model": "efficientvit_b0", "options": {}},
            r"^efficientvit_b0, the default model, is not for 'upscale': .*\(--model\): efficientvit_sr, ",
        ),
        (
            {"model": "efficientvit_sr"},
            r"^efficientvit_sr is not for 'segment': .*\(--model\): efficientvit_b0, .*, \.\.\. ",
        ),
    ],
)
def test_settings_that_would_be_ignored_or_cannot_be(
    shapes: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(shapes, tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "state.pt").exists()


def test_float16_is_never_float32_in_disguise(shapes: Path, tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        assert np.isfinite(train(shapes, tmp_path / "out", precision="fp16").losses).all()
        return
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU to train on"):
        train(shapes, tmp_path / "out", precision="fp16")


def test_tensorboard_is_looked_for_before_work_begins(shapes: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard"):
        train(shapes, tmp_path / "out", epochs=1, tensorboard=True, csv=True)
        assert list((tmp_path / "out" / "tensorboard").glob("events*"))
        return
    with pytest.raises(DependencyError, match=r"pip install 'foveal\[tensorboard\]'"):
        train(shapes, tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out" / "state.pt").exists()


def test_bad_validation_images_are_named_and_left_out(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = train(with_bad_validation(shapes, tmp_path / "one", 1), tmp_path / "out")
    assert 0 < found.value < 1
    err = capfd.readouterr().err
    assert err.count("not scored: ") == 2, "once for each evaluation"
    assert "0000.png" in err
    with pytest.raises(DataError, match=r"none of the 4 validation images can be scored; the last: .*0003\.png"):
        train(with_bad_validation(shapes, tmp_path / "all", 4), tmp_path / "none")
    assert (tmp_path / "none" / "state.pt").exists(), "the epoch before is not lost"


def with_bad_training(shapes: Path, root: Path, *, images: int = 0, masks: int = 0) -> Path:
    """The same validation images; the last training images are garbage, those before have id 9 in their masks."""
    for name in ("train", "trainannot"):
        shutil.copytree(shapes / name, root / name)
    for name in ("val", "valannot"):
        (root / name).symlink_to(shapes / name)
    shutil.copy(shapes / "dataset.yaml", root)
    for number, file in enumerate(sorted((root / "train").iterdir(), reverse=True)):
        if number < images:
            file.write_bytes(b"no picture")
        elif number < images + masks:
            mask = root / "trainannot" / file.name
            ids = np.asarray(Image.open(mask)).copy()
            ids[0, 0] = 9
            Image.fromarray(ids).save(mask)
    return root


@pytest.mark.parametrize("settings", [{}, {"cache_gib": 0.0, "workers": 2}], ids=["in memory", "from files"])
def test_30_bad_training_images_are_named_counted_listed_and_replaced(
    shapes: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """Two of eight images are bad, a quarter may be; with their list, the next run leaves them out."""
    with_bad_training(shapes, tmp_path / "data", images=1, masks=1)
    monkeypatch.chdir(tmp_path)
    settings = {"max_bad": 0.25, "class_weights": "median", **settings}
    found = train(Path("data"), Path("out"), **settings)
    assert sorted(Path(name).name for name in found.bad) == ["0006.png", "0007.png"]
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("left out of training: ")]
    assert sorted(notes) == sorted(f"left out of training: {reason}" for reason in found.bad.values())
    assert sorted(reason.split(":")[0] for reason in found.bad.values()) == [
        "data/train/0007.png",
        "data/trainannot/0006.png",
    ]
    assert Path("out/bad.txt").read_text() == "train/0006.png\ntrain/0007.png\n"
    assert [line["bad"] for line in lines(Path("out")) if "epoch" in line] == [2, 2]
    assert np.isfinite(found.losses).all()

    shutil.copy("out/bad.txt", "data/exclude.txt")
    with Path("data/dataset.yaml").open("a") as file:
        file.write("exclude: exclude.txt\n")
    assert not train(Path("data"), Path("without"), **settings).bad


def test_30_a_bad_image_that_only_the_norms_would_see(shapes: Path, tmp_path: Path) -> None:
    """The images that do not fill a batch of a pass may be read first when the statistics are estimated."""
    data = with_bad_training(shapes, tmp_path / "data", images=1)
    found = train(data, tmp_path / "out", max_bad=0.2, epochs=1, batch_size=7, bn_batches=8)
    assert [Path(name).name for name in found.bad] == ["0007.png"]
    assert (tmp_path / "out" / "bad.txt").read_text() == "train/0007.png\n"


def test_30_the_command_says_so_by_its_exit_code(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = with_bad_training(shapes, tmp_path / "bad", images=1)
    sets = {**SETTINGS, "epochs": 1, "eval_every": 1, "max_bad": 0.2}
    arguments = [word for key, value in sets.items() for word in (f"--set.{key}", str(value))]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(data), "--out", str(tmp_path / "out"), *arguments])
    assert end.value.code == 1
    assert f"bad training images left out: 1, listed in {tmp_path / 'out' / 'bad.txt'}" in capfd.readouterr().out


@pytest.mark.parametrize("cache_gib", [0.0, 2.0])
def test_30_too_many_bad_training_images_end_the_run(shapes: Path, tmp_path: Path, cache_gib: float) -> None:
    data = with_bad_training(shapes, tmp_path / "three", images=3)
    with pytest.raises(DataError, match=r"^3 of 8 training images are bad, more than max_bad=0\.25 .*/000[567]\.png"):
        train(data, tmp_path / "out", max_bad=0.25, cache_gib=cache_gib, epochs=9)
    with pytest.raises(DataError, match=r"^\S*/000[567]\.png: "):
        train(data, tmp_path / "strict", cache_gib=cache_gib)  # 0.01 of 8: none


def test_30_a_disk_that_is_gone_ends_the_run(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twenty failed draws the run ends, however many images may be bad: the storage has failed."""
    reads = []

    def gone(self: Any, index: int, *_: Any) -> Any:
        reads.append(index)
        raise DataError(f"image {index}: Input/output error")

    monkeypatch.setattr(jobs.SegmentJob, "sample", gone)
    with pytest.raises(DataError, match=r"^image \d+: Input/output error$"):
        train(shapes, tmp_path / "out", max_bad=0.5, splits=["train", "train"])
    assert len(reads) == 20 * SETTINGS["batch_size"]


def test_30_what_is_no_fault_of_an_image_ends_the_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is not a number is one mistake, not a set of bad images."""

    def wrong(self: Any, index: int, *_: Any) -> Any:
        raise ConfigError("FOVEAL_MAX_PIXELS='abc' is no number")

    monkeypatch.setattr(jobs.SegmentJob, "sample", wrong)
    with pytest.raises(ConfigError, match=r"^FOVEAL_MAX_PIXELS='abc' is no number$"):
        train(shapes, tmp_path / "out", max_bad=0.5, workers=1)


_KEPT = """
import sys
import foveal
from foveal.training import jobs

def wrong(self, index, *_):
    raise foveal.ConfigError("no")

if sys.argv[3] == "worker":
    jobs.SegmentJob.sample = wrong
else:
    jobs.SegmentJob.loss = wrong
try:
    foveal.train(sys.argv[1], out=sys.argv[2], workers=1, batch_size=4)
except foveal.ConfigError as error:
    sys.kept = error  # with its traceback, as notebooks and debuggers keep the last one
"""


@pytest.mark.parametrize("where", ["worker", "loss"])
def test_python_ends_after_an_error_that_is_kept(shapes: Path, tmp_path: Path, where: str) -> None:
    """The worker processes ignore SIGTERM, so they must end before Python exits."""
    command = [sys.executable, "-c", _KEPT, str(shapes), str(tmp_path / "out"), where]
    subprocess.run(command, check=True, env=ONE_THREAD, timeout=120)


def test_30_a_repaired_image_is_good_again(shapes: Path, tmp_path: Path) -> None:
    data = with_bad_training(shapes, tmp_path / "bad", images=1)
    assert train(data, tmp_path / "out", max_bad=0.2, epochs=1).bad
    shutil.copy(shapes / "train" / "0007.png", data / "train")
    assert not foveal.train(data, out=tmp_path / "out", resume=True).bad


def test_30_bad_images_do_not_disturb_a_resumed_run(shapes: Path, tmp_path: Path) -> None:
    """Killed within an epoch and resumed, a run has the bad images, losses and weights of an undisturbed run."""
    data = with_bad_training(shapes, tmp_path / "bad", images=1, masks=1)
    settings = {"max_bad": 0.25, "epochs": 3}
    whole = train(data, tmp_path / "whole", **settings)
    (tmp_path / "cut.yaml").write_text(
        yaml.safe_dump({**SETTINGS, **SMALL, "eval_every": 1, **settings, "save_minutes": 1e-6})
    )
    stopped = start_command(
        "train", data, "--config", tmp_path / "cut.yaml", "--out", tmp_path / "cut", errors=tmp_path / "errors"
    )
    wait_for(lambda: len(losses(tmp_path / "cut")) >= 3 if (tmp_path / "cut" / "log.jsonl").exists() else False)
    stopped.kill()
    stopped.join()
    resumed = foveal.train(data, out=tmp_path / "cut", resume=True)
    assert resumed.bad == whole.bad
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_signal_ends_an_evaluation_and_it_is_made_up_for(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation ends after the image at which the signal comes; resumed, the run equals an undisturbed one."""
    train(shapes, tmp_path / "whole")
    looked_at = []
    plain = jobs.SegmentJob.count

    def interrupted(self: Any, predictor: Any, indices: Any) -> Any:
        looked_at.extend(indices)
        if len(looked_at) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, predictor, indices)

    monkeypatch.setattr(jobs.SegmentJob, "count", interrupted)
    with pytest.raises(SystemExit) as end:
        train(shapes, tmp_path / "stopped")
    monkeypatch.setattr(jobs.SegmentJob, "count", plain)
    assert end.value.code == 128 + signal.SIGTERM
    assert looked_at == [0, 1]
    train(shapes, tmp_path / "stopped", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
    whole, stopped = ([{**line, "seconds": 0} for line in lines(tmp_path / name)] for name in ("whole", "stopped"))
    assert whole == stopped


def test_another_data_set_is_not_resumed_on(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path / "out", epochs=1)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "trainannot", "val", "valannot"):
        (other / name).symlink_to(shapes / name)
    described = yaml.safe_load((shapes / "dataset.yaml").read_text())
    del described["palette"]
    for names in (["ground", "tree", "car", "fence"], [*NAMES, "fence"]):  # other tensors, with more classes
        (other / "dataset.yaml").write_text(yaml.safe_dump(described | {"names": names}))
        with pytest.raises(
            ConfigError, match="was trained on images or classes of other names: resume with the data set of the run"
        ):
            train(other, tmp_path / "out", epochs=1, resume=True)


def test_a_full_disk_under_the_log_is_one_line(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write .*log\.jsonl: No space left on device"):
        train(shapes, tmp_path / "out")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"names": ["ground", "ground", "c", "d"]}, "two classes are called 'ground'"),
        ({"names": list(NAMES), "palette": [[1, 2, 300], [0, 0, 0], [1, 1, 1], [2, 2, 2]]}, r"colour \(1, 2, 300\)"),
    ],
)
def test_descriptions_that_cannot_be(shapes: Path, tmp_path: Path, described: dict[str, Any], message: str) -> None:
    for name in ("train", "trainannot", "val", "valannot"):
        (tmp_path / name).symlink_to(shapes / name)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(described))
    for use in (lambda: train(tmp_path, tmp_path / "out"), lambda: foveal.check_data(tmp_path)):
        with pytest.raises(ConfigError, match=message):
            use()
