"""Settings of training in whole runs: augmentations, weights of classes, frozen parts, phases, the size of batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import ConfigError
from foveal.progress import Progress
from foveal.training import batch_size, jobs
from foveal.training.config import TrainConfig, build_settings
from foveal.training.distributed import make_accelerator
from foveal.training.folder import RunFolder
from foveal.training.jobs import make_job
from foveal.weights.checkpoints import read_state
from helpers.brightness import write_brightness
from helpers.commands import Command
from helpers.runs import SETTINGS, SMALL, losses, same_weights

QUIET = Progress(enabled=False)
ALL = {"vertical_flip": 0.5, "rotate": 30, "rand_augment": [2, 9], "erase": 0.5, "cutmix": 1.0}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2, size=(40, 40))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: dark and bright images."""
    return write_brightness(tmp_path_factory.mktemp("classes"), train=6, val=2)


def train(data: Path, out: Path, **settings: Any) -> Any:
    return foveal.train(data, out=out, **{**SETTINGS, **SMALL, "epochs": 2, **settings})


# ---- augmentations


def test_augmented_runs_repeat_with_any_number_of_workers(shapes: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        train(shapes, tmp_path / name, augment=ALL, optimizer="muon", schedule="poly", layer_decay=0.9, workers=workers)
    train(shapes, tmp_path / "plain", optimizer="muon", schedule="poly", layer_decay=0.9)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "plain")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_cutmix_pastes_images_with_their_masks(shapes: Path) -> None:
    """Pixels of other samples come with the ids of those samples, which no colour change separates."""
    config = build_settings({**SETTINGS, "jitter": 0, "tint": 0, "flip": 0, "scale": [1, 1], "crop": [40, 40]})
    plain = jobs.SegmentJob(shapes, config, QUIET)
    mixed = jobs.SegmentJob(shapes, build_settings({**vars(config), "augment": {"cutmix": 1.0}}), QUIET)
    originals = [plain.sample(index, np.random.default_rng(0), 0.0) for index in range(8)]
    pasted = 0
    for seed in range(8):
        image, mask = mixed.sample(0, np.random.default_rng(seed), 0.0)
        known = torch.zeros(40, 40, dtype=torch.bool)
        for own, ids in originals:
            known |= (own == image).all(0) & (ids == mask)
        assert known.all()
        pasted += not torch.equal(image, originals[0][0])
    assert pasted >= 4


def test_mixed_classes_are_shares(classes: Path, tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "task": "classify",
        "class_weights": "sqrt_median",
        "augment": {"mixup": 0.5, "cutmix": 1.0},
    }
    job = jobs.ClassifyJob(classes, build_settings(settings), QUIET)
    targets = torch.stack([job.sample(index, np.random.default_rng(index), 0.0)[1] for index in range(12)])
    torch.testing.assert_close(targets.sum(1), torch.ones(12))
    assert ((targets > 0.05).sum(1) == 2).any()
    options = {name: value for name, value in SMALL["options"].items() if not name.startswith("head_")}
    run = train(classes, tmp_path / "run", task="classify", augment={"mixup": 0.5, "cutmix": 1.0}, options=options)
    assert np.isfinite(run.losses).all()


OWN = """
import numpy as np
def darker(image, mask, rng): return image // 2, mask
def swapped(image, mask, rng): return image[::2], mask
def broken(image, mask, rng): raise KeyError("x")
def no_class(image, mask, rng): return image, np.full_like(mask, 7)
def ignored(image, mask, rng): return image, np.where(mask == 1, 255, mask).astype(mask.dtype)
def no_label(image, label, rng): return image, label + 5
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the working directory."""
    (tmp_path / "own_augment.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own_augment", raising=False)
    return tmp_path


def test_a_function_of_ones_own(own: Path, shapes: Path) -> None:
    settings = {**SETTINGS, "jitter": 0, "tint": 0}
    plain = jobs.SegmentJob(shapes, build_settings(settings), QUIET)
    darker = jobs.SegmentJob(shapes, build_settings({**settings, "transform": "own_augment:darker"}), QUIET)
    (bright, mask), (dark, same) = (job.sample(1, np.random.default_rng(0), 0.0) for job in (plain, darker))
    assert torch.equal(mask, same)
    assert dark.mean() < bright.mean()
    train(shapes, own / "run", transform="own_augment:darker", workers=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_augment", "give module:function"),
        ("own_augment:missing", "cannot be imported: AttributeError"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("own_augment:number", "is a int, not a function"),
        ("own_augment:broken", "failed: KeyError: 'x'"),
        ("own_augment:swapped", "made an array .* of the image, an array"),
        (
            "own_augment:no_class",
            "no_class' returned a mask with 7: the data has 4 classes, 0 to 3, and 255 is",
        ),
    ],
)
def test_functions_that_cannot_be_used(own: Path, shapes: Path, name: str, message: str) -> None:
    """The mistake does not occupy the folder: with another function, the same command trains there."""
    with pytest.raises(ConfigError, match=message):
        train(shapes, own / "run", transform=name)
    RunFolder(own / "run").check_new()


def test_functions_whose_classes_do_not_exist(own: Path, shapes: Path, classes: Path) -> None:
    """Ignored pixels are allowed."""
    wrong = build_settings({**SETTINGS, "task": "classify", "transform": "own_augment:no_label"})
    with pytest.raises(ConfigError, match="no_label' returned the class 5: the data has 2 classes, 0 to 1"):
        jobs.ClassifyJob(classes, wrong, QUIET).sample(0, np.random.default_rng(0), 0.0)
    job = jobs.SegmentJob(shapes, build_settings({**SETTINGS, "transform": "own_augment:ignored"}), QUIET)
    job.sample(1, np.random.default_rng(0), 0.0)


def test_a_run_without_a_step_is_started_again(own: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a step is not, even if only its weights are saved."""
    with pytest.raises(ConfigError):
        train(shapes, own / "run", transform="own_augment:no_class")
    with monkeypatch.context() as patch:
        patch.setattr("foveal.training.step.Stepper._accumulate_gradients", _fail_after(1))
        with pytest.raises(RuntimeError, match="stop"):
            train(shapes, own / "run", log_every=0)
    assert not (own / "run" / "log.jsonl").exists()
    with pytest.raises(ConfigError, match="holds a run already"):
        train(shapes, own / "run")


def test_files_name_no_code(own: Path, shapes: Path, cli: Command) -> None:
    """Neither a recipe nor the settings of a run to resume runs code, unless the user names it, too."""
    recipe = own / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**SETTINGS, **SMALL, "epochs": 1, "transform": "own_augment:darker"}))
    done = cli("train", shapes, "--config", recipe, "--out", own / "run")
    assert (done.returncode, "transform runs code, which a file may not name" in done.stderr) == (2, True)
    assert "own_augment" not in sys.modules
    run = ("train", shapes, "--out", own / "run", "--set.transform", "own_augment:darker")
    assert cli(*run, "--config", recipe).returncode == 0
    assert cli("train", shapes, "--out", own / "run", "--resume").returncode == 2
    assert cli(*run, "--resume").returncode == 0


# ---- training images that are validated on


@pytest.mark.parametrize("task", ["segment", "classify", "upscale"])
def test_validation_images_that_are_trained_on_are_noted(
    shapes: Path, classes: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    data, count = (classes, 4) if task == "classify" else (shapes, 2)
    model = "efficientvit_sr" if task == "upscale" else "efficientvit_b0"
    settings = {"task": task, "model": model, "crop": [32, 32]}
    for splits, val_split, noted in (
        (("train", "val"), "val", f"{count} of {count} images of val are also trained on"),
        (("train",), "train", "images of train are also trained on"),
        (("train",), "val", ""),
        (("train", "val"), "", ""),
    ):
        notes: list[str] = []
        monkeypatch.setattr(QUIET, "note", notes.append)
        make_job(data, build_settings({**settings, "splits": splits, "val_split": val_split}), QUIET)
        found = [note for note in notes if "also trained on" in note]
        assert len(found) == bool(noted)
        assert noted in "".join(found)


# ---- weights of the classes, frozen parts


def test_class_weights_as_numbers(shapes: Path) -> None:
    def weights(value: Any) -> list[float]:
        return jobs.SegmentJob(
            shapes, build_settings({**SETTINGS, "class_weights": value}), QUIET
        ).class_weights.tolist()

    names = jobs.SegmentJob(shapes, build_settings(SETTINGS), QUIET).labels.names
    assert weights([1, 2, 3, 4]) == [1, 2, 3, 4]
    assert weights({names[2]: 5}) == [1, 1, 5, 1]
    with pytest.raises(ConfigError, match="2 numbers for 4 classes"):
        weights([1, 2])
    with pytest.raises(ConfigError, match=f"no class 'x{names[1]}'; did you mean '{names[1]}'"):
        weights({f"x{names[1]}": 1})


def test_frozen_parts_stay_as_they_are(shapes: Path, tmp_path: Path) -> None:
    """Weights and statistics, also where statistics are estimated at the end; the rest is trained."""
    train(shapes, tmp_path / "start", epochs=1)
    start = read_state(tmp_path / "start" / "last.safetensors")[0]
    train(shapes, tmp_path / "run", weights=str(tmp_path / "start"), freeze=["stage2"], bn_batches=2)
    after = read_state(tmp_path / "run" / "last.safetensors")[0]
    frozen = ("backbone.stem", "backbone.stages.0", "backbone.stages.1")
    changed = {key for key in start if not start[key].equal(after[key])}
    assert not [key for key in changed if key.startswith(frozen)]
    assert {key.split(".")[0] for key in changed} == {"backbone", "head"}


# ---- phases


def test_a_new_phase(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(shapes, out)
    with pytest.raises(ConfigError, match=r"another epochs: resume with .*, or begin a new phase \(--new-phase"):
        foveal.train(shapes, out=out, resume=True, epochs=4)
    result = foveal.train(shapes, out=out, resume=True, new_phase=True, epochs=4, batch_size=2, lr=1e-3)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4]
    phase = next(line for line in lines if "phase" in line)
    assert phase == {"step": 4, "phase": 2, "settings": {"epochs": 4, "batch_size": 2, "lr": 1e-3}}
    rates = [line["lr"] for line in lines if line["step"] > 4 and "epoch" not in line]
    assert len(rates) == 8
    assert max(rates) <= 1e-3
    assert rates.index(max(rates)) < 2, "the rate rises again, and then falls to 0"
    assert rates[-1] == 0
    assert len(result.losses) == 4
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 4
    assert yaml.safe_load((out / "config.1.yaml").read_text())["epochs"] == 2


def test_a_phase_changes_what_every_resumed_run_may(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is printed and logged, and the evaluations without a better score are counted anew."""
    out, patience = tmp_path / "run", {"eval_every": 1, "lr": 1e-9, "warmup": 0.0}
    train(shapes, out, **patience, patience=1, epochs=5)  # nothing is learnt, so the second evaluation is no better
    before = _lines(out)
    assert before[-1]["stopped"] == "patience"
    capfd.readouterr()
    foveal.train(shapes, out=out, resume=True, new_phase=True, epochs=9, patience=2)
    assert "phase 2: epochs 5 -> 9, patience 1 -> 2; the learning rate" in capfd.readouterr().err
    phase, *after = _lines(out)[len(before) :]
    assert phase["settings"] == {"epochs": 9, "patience": 2}
    assert [line["epoch"] for line in after if "epoch" in line] == [before[-1]["epoch"] + 1, before[-1]["epoch"] + 2]
    foveal.train(shapes, out=out, resume=True, patience=3)  # as in any run, without a new phase


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_phase_resumes_exactly(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that is stopped in its second epoch gives the numbers of one that is not; so does a third phase."""
    phase = {"epochs": 4, "batch_size": 2, "save_minutes": 1e-9}
    for name in ("whole", "stopped"):
        train(shapes, tmp_path / name, augment=ALL)
    foveal.train(shapes, out=tmp_path / "whole", resume=True, new_phase=True, **phase)
    with monkeypatch.context() as patch:
        patch.setattr("foveal.training.step.Stepper._accumulate_gradients", _fail_after(6))
        with pytest.raises(RuntimeError, match="stop"):
            foveal.train(shapes, out=tmp_path / "stopped", resume=True, new_phase=True, **phase)
    foveal.train(shapes, out=tmp_path / "stopped", resume=True)
    for name in ("whole", "stopped"):
        foveal.train(shapes, out=tmp_path / name, resume=True, new_phase=True, epochs=5)
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert len(losses(tmp_path / "whole")) == 4 + 8 + 4


def _fail_after(steps: int) -> Any:
    from foveal.training.step import Stepper

    original, done = Stepper._accumulate_gradients, []

    def step(self: Stepper, image: Any, target: Any) -> Any:
        done.append(1)
        if len(done) > steps:
            raise RuntimeError("stop")
        return original(self, image, target)

    return step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "all settings are those of .*: give more epochs"),
        ({"epochs": 2, "lr": 1e-3}, "has 2 epochs; give more"),
        ({"epochs": 4, "optimizer": "sgd"}, "started with another optimizer: resume with"),
    ],
)
def test_phases_that_cannot_begin(shapes: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    train(shapes, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_text(), (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match=message):
        foveal.train(shapes, out=tmp_path / "run", resume=True, new_phase=True, **settings)
    assert before == ((tmp_path / "run" / "config.yaml").read_text(), (tmp_path / "run" / "state.pt").read_bytes())
    with pytest.raises(ConfigError, match="needs a run to resume"):
        train(shapes, tmp_path / "other", new_phase=True)


def test_a_phase_whose_settings_were_not_written(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed between writing the state and the settings: the same options begin the phase again."""
    out = tmp_path / "run"
    train(shapes, out)
    with monkeypatch.context() as patch:
        patch.setattr(
            "foveal.training.folder.RunFolder.write_config", lambda *_: (_ for _ in ()).throw(OSError("killed"))
        )
        with pytest.raises(OSError, match="killed"):
            foveal.train(shapes, out=out, resume=True, new_phase=True, epochs=4)
    with pytest.raises(ConfigError, match="is in phase 2 with another epochs: begin the phase again"):
        foveal.train(shapes, out=out, resume=True)
    assert len(foveal.train(shapes, out=out, resume=True, new_phase=True, epochs=4).losses) == 4


# ---- the size of batches


def test_the_batch_size_follows_from_the_free_memory(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(**{**SETTINGS, **SMALL, "crop": (32, 32), "options": SMALL["options"]})
    job, accelerator = jobs.SegmentJob(shapes, config, QUIET), make_accelerator(config)
    fixed, each = batch_size._measure(config, job, accelerator)
    wide = jobs.SegmentJob(shapes, build_settings({**vars(config), "crop": [64, 64]}), QUIET)
    assert batch_size._measure(config, wide, accelerator)[1] == pytest.approx(4 * each, rel=0.2)
    monkeypatch.setattr(batch_size, "_MIN_BATCHES", 1)
    for images, expected in ((100, 8), (7.9, 4), (4.1, 4), (3.9, 2)):
        monkeypatch.setattr(batch_size, "free_bytes", lambda device, n=images: (fixed + n * each) / 0.6)
        assert batch_size.find_batch_size(config, job, accelerator, QUIET) == expected
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="two images need"):
        batch_size.find_batch_size(config, job, accelerator, QUIET)
    few = build_settings({**vars(config), "auto_batch_size": True, "samples_per_epoch": 2})
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 1 << 40)
    assert batch_size.find_batch_size(few, job, accelerator, QUIET) == 2


def test_an_automatic_batch_size_is_a_number_from_then_on(shapes: Path, tmp_path: Path, cli: Command) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**SETTINGS, **SMALL, "epochs": 2}))
    run = ("train", shapes, "--config", recipe, "--out", tmp_path / "auto", "--batch-size", "auto")
    done = cli(*run)
    assert done.returncode == 0, done.stderr
    assert "batch size 2: " in done.stderr  # a quarter of 8 images
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["batch_size"] == 2
    train(shapes, tmp_path / "given", batch_size=2)
    assert losses(tmp_path / "auto") == losses(tmp_path / "given")
    assert cli(*run, "--resume").returncode == 0
    larger = ("train", shapes, "--out", tmp_path / "auto", "--resume", "--batch-size", "4", "--set.epochs", "3")
    refused = cli(*larger)
    assert refused.returncode == 2
    assert "started with another" in refused.stderr
    assert "batch_size" in refused.stderr
    phase = cli(*larger, "--new-phase")
    assert phase.returncode == 0, phase.stderr
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["batch_size"] == 4


# ---- many classes


@pytest.mark.long
def test_a_run_with_more_than_255_classes(tmp_path: Path) -> None:
    """Masks of 16 bits are learnt and scored; id 255 is a class, and 65535 is ignored."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(4):
            pixels = np.zeros((40, 40, 3), np.uint8)
            ids = np.full((40, 40), 65535, np.uint16)
            for column, name in enumerate((255, 299, 3)):
                pixels[:, 13 * column : 13 * column + 13] = (80 * column, 200 - 80 * column, 40)
                ids[:, 13 * column : 13 * column + 13] = name
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{index}.png")
            Image.fromarray(ids).save(tmp_path / "masks" / split / f"{index}.png")
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"names": [f"c{i}" for i in range(300)]}))
    loss = {
        "cross_entropy": 1.0,
        "ohem": 1.0,
        "focal": 1.0,
        "dice": 1.0,
        "jaccard": 1.0,
        "lovasz": 1.0,
        "boundary": 1.0,
    }
    settings = {"epochs": 60, "eval_every": 60, "log_every": 0, "lr": 1e-2, "jitter": 0, "tint": 0, "scale": [1, 1]}
    run = train(tmp_path, tmp_path / "run", **settings, loss=loss, class_weights="median")
    assert run.losses[-1] < 0.5 * run.losses[0]
    scores = foveal.evaluate(run.best, tmp_path, split="val").scores
    assert set(scores.names) - set(scores.absent) == {"c3", "c255", "c299"}
    assert scores.confusion.sum() == 4 * 40 * 39
    assert scores.pixel_accuracy > 0.8
    assert foveal.load(run.best).info.ignored == 65535
