"""Learning from a teacher: stored outputs, whole runs, and mistakes of their settings."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import CheckpointError, ConfigError
from foveal.info import ModelInfo, Preprocess
from foveal.training import distil_losses
from foveal.training.config import build_settings
from foveal.training.distillation import DistillationJob
from foveal.training.ema import Averaged, meta_copy
from foveal.training.jobs import make_job
from foveal.training.pixel_origins import TargetsWithOrigins
from foveal.training.segment import SegmentJob
from foveal.training.stored_outputs import Grid, StoredOutputs
from foveal.weights.checkpoints import read_state, save_checkpoint
from helpers.distillation import QUIET, config, saved, train
from helpers.runs import ONE_THREAD, SETTINGS, SMALL, furthest_weights, losses, same_weights, torchrun

ALL = {"logits": [1, 4], "hard": 0.5, "channel": 3, "features": 1, "ema": 1}


# ---- stored outputs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2, size=(40, 40))


@pytest.fixture(scope="module")
def teacher(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is the teacher; it has a licence."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    best = train(shapes, out, epochs=1).best
    state, info = read_state(best)
    assert info is not None
    save_checkpoint(best, state, info.replace(licence="CC-BY-4.0"))
    return out


EVERY = {"rotate": 30, "vertical_flip": 0.5, "rand_augment": [3, 9], "cutmix": 1.0, "erase": 0.5}


def test_tracked_samples_are_those_of_other_runs(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """The same images and classes; and each pixel inside of an image has the class of the place that it names."""
    more = {"augment": EVERY, "rare_crop": 0.5, "class_weights": "median", "crop": [48, 40]}
    plain = SegmentJob(shapes, config(**more), QUIET)
    stored = {"teacher": str(teacher), "teacher_cache": str(tmp_path)}
    tracked = SegmentJob(shapes, config(**more, **stored), QUIET)
    masks = [plain.read[index][1] for index in range(8)]
    outside = mixed = 0
    for seed in range(24):
        image, ids = plain.sample(seed % 8, np.random.default_rng(seed), 0.0)
        same, target = tracked.sample(seed % 8, np.random.default_rng(seed), 0.0)
        parts = TargetsWithOrigins.of(target[None], 4)
        assert torch.equal(image, same)
        assert torch.equal(ids[None], parts.ids)
        inside = parts.inside
        places = (part[inside].numpy() for part in (parts.image, parts.row, parts.column))
        assert [masks[i][y, x] for i, y, x in zip(*places, strict=True)] == parts.ids[inside].tolist()
        outside, mixed = outside + int((~inside).sum()), mixed + (len(parts.image.unique()) > 1)
    assert outside
    assert mixed


def test_stored_outputs_are_read_where_pixels_come_from(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """Of a whole image in its own size, the teacher's output for it; of its mirror image, the mirrored output."""
    own = {"crop": [40, 40], "scale": [1, 1], "jitter": 0, "tint": 0, "flip": 0}
    job = make_job(shapes, config(**own, teacher=str(teacher), teacher_cache=str(tmp_path)), QUIET)
    assert isinstance(job, DistillationJob)
    assert job.stored is not None
    assert job.teacher is not None
    image, target = job.sample(3, np.random.default_rng(0), 0.0)
    parts = job.stored.split(target[None])
    logits, inside = job.stored(parts, (5, 5), 8)
    direct = job.teacher(image[None], job.preprocess).output
    assert inside.all()
    at_pixels = distil_losses.on_grid(direct, job.teacher.stride, (40, 40), 1)[..., 4::8, 4::8]
    torch.testing.assert_close(logits, at_pixels, rtol=2e-3, atol=2e-3)
    mirrored, _ = job.stored(job.stored.split(target[None].flip(-1)), (5, 5), 8)
    at_mirrored = distil_losses.on_grid(direct, job.teacher.stride, (40, 40), 1).flip(-1)[..., 4::8, 4::8]
    torch.testing.assert_close(mirrored, at_mirrored, rtol=2e-3, atol=2e-3)


def test_outputs_are_computed_once(
    shapes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated file is computed again; a changed bit, another teacher and another precision are one line."""
    settings = {"teacher": str(teacher), "teacher_cache": str(tmp_path / "cache")}
    make_job(shapes, config(**settings), QUIET)
    files = sorted((tmp_path / "cache").glob("*.npz"))
    assert len(files) == 8
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:100])
    computed: list[int] = []
    original = StoredOutputs._compute
    monkeypatch.setattr(
        StoredOutputs, "_compute", lambda self, i, *rest: computed.append(i) or original(self, i, *rest)
    )
    job = make_job(shapes, config(**settings), QUIET)
    assert len(computed) == 1
    assert files[0].read_bytes() == whole
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert isinstance(job, DistillationJob)
    assert job.stored is not None
    target = job.sample(0, np.random.default_rng(0), 0.0)[1]
    with pytest.raises(CheckpointError, match=r"damaged output .*delete it, and it is computed again"):
        job.stored(job.stored.split(target[None]), (4, 4), 8)
    with pytest.raises(ConfigError, match="holds outputs in fp32, not in bf16"):
        make_job(shapes, config(**settings, precision="bf16"), QUIET)
    other = train(shapes, tmp_path / "other", epochs=1, seed=5).folder
    with pytest.raises(ConfigError, match=r"holds the outputs of .* with other weights than"):
        make_job(shapes, config(**{**settings, "teacher": str(other)}), QUIET)


def test_the_grid_of_an_output_is_that_of_predictions() -> None:
    info = ModelInfo("efficientvit_b0", "segment", 11, output_stride=8, preprocess=Preprocess(max_side=100))
    assert Grid.of(info, 50, 90) == ((11, 7, 12), (1 / 8, 1 / 8))
    assert Grid.of(info, 100, 400) == ((11, 4, 13), (25 / 800, 100 / 3200))  # 25 rows are padded to 32


# ---- whole runs


def test_every_term_is_learnt_and_resumed_exactly(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """The training state has the projections, the checkpoint has not; both licences are noted."""
    settings = {"teacher": str(teacher), "distil": ALL, "deep_supervision": 0.4, "augment": {"cutmix": 1.0}}
    whole = train(shapes, tmp_path / "whole", epochs=4, **settings)
    assert whole.losses[-1] < whole.losses[0]
    state, info = read_state(whole.best)
    assert not [key for key in state if "projection" in key or "classifiers" in key]
    assert info is not None
    assert info.licence == "CC-BY-4.0"
    assert info.notes["config"]["teacher"] == "run"
    training = torch.load(tmp_path / "whole" / "state.pt", weights_only=False)["model"]
    assert len([key for key in training if key.startswith("projections.")]) == 6
    assert len(training) == len(set(training))
    assert not [key for key in training if key.startswith("model.")]  # each tensor is there once

    stop = tmp_path / "stopped"
    first = {**SETTINGS, **SMALL, **settings, "epochs": 4}
    _interrupted(shapes, stop, first)
    foveal.train(shapes, out=stop, resume=True)
    assert losses(stop) == losses(tmp_path / "whole")
    assert same_weights(stop, tmp_path / "whole")


def _interrupted(data: Path, out: Path, settings: dict[str, Any]) -> None:
    """Train until the third step, as if a signal came."""
    from foveal.training import loop

    original, calls = loop.Run._stop_or_save, 0

    def stop_at_third(self: Any, interrupted: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, (lambda: 15) if calls == 3 else interrupted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_stop_or_save", stop_at_third)
        with pytest.raises(SystemExit):
            foveal.train(data, out=out, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"distil": {"ema": 1.0}, "teacher": ""},
        {"teacher_cache": "cache", "distil": {"logits": 1, "channel": 3}, "augment": EVERY, "workers": 1},
        {"precision": "fp64", "distil": {"features": 1, "ema": 1}, "accumulate": 2, "grad_checkpointing": True},
        {"precision": "bf16", "distil": ALL, "batch_size": "auto"},
    ],
    ids=["ema", "cache", "fp64", "bf16"],
)
def test_short_runs(settings: dict[str, Any], shapes: Path, teacher: Path, tmp_path: Path) -> None:
    settings = {"teacher": str(teacher), **settings}
    if "teacher_cache" in settings:
        settings["teacher_cache"] = str(tmp_path / settings["teacher_cache"])
    run = train(shapes, tmp_path / "run", **settings)
    assert np.isfinite(run.losses).all()


def test_the_average_follows_the_weights() -> None:
    """A live model has the averaged values at any time, without a copy."""
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    averaged = Averaged(model, meta_copy(model), 0.9)
    live = averaged.live_model(torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    averaged.update()
    averaged.update()
    assert not live.training
    for key, value in live.state_dict().items():
        assert torch.equal(value, averaged.values[key])
        assert value.data_ptr() == averaged.values[key].data_ptr()


# ---- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distil": {"logits": 1}}, "distil: logits needs teacher: give teacher too"),
        ({"teacher": "x", "distil": {"ema": 1}}, "teacher='x' is not used, since distil has only ema"),
        ({"distil": {"ema": 1}, "ema_decay": 0.0}, "ema learns from the averaged weights, which ema_decay=0 rules out"),
        ({"distil": {"ema": 1}, "fsdp": True}, "which fsdp=True rules out"),
        ({"teacher": "x", "distil": {"logits": 0}}, r"logits=0.* is out of range: give a factor above 0, or \[factor"),
        ({"teacher": "x", "distil": {"logits": [1, 0]}}, "is out of range: give a factor above 0, or"),
        ({"teacher": "x", "distil": {"features": [1, 2]}}, "is out of range: give a factor above 0$"),
        ({"teacher": "x", "distil": {"output": 1}}, "'segment' has no term 'output': it is for upscale"),
        ({"teacher": "x", "distil": {"channel": 1}, "task": "classify"}, "'channel': it is for segment"),
        ({"teacher": "x", "distil": {"logit": 1}}, "logit.*did you mean 'logits'"),
        ({"teacher": "x", "distil": {"logits": 1}, "task": "prompt"}, "is not for 'prompt': leave it out"),
        ({"teacher_cache": "c"}, "teacher_cache='c' needs teacher"),
        ({"teacher": "x", "teacher_cache": "c", "distil": {"features": 1}}, "teacher_cache has outputs only, no maps"),
        ({"teacher": "x", "teacher_cache": "c", "transform": "a:b"}, "cannot follow the pixels that transform='a:b'"),
        ({"teacher": "x", "teacher_cache": "c", "task": "classify"}, "teacher_cache='c' is for 'segment'"),
    ],
)
def test_impossible_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_settings(settings)
    assert "\n" not in str(caught.value)


def test_teachers_that_do_not_fit_are_one_line(shapes: Path, tmp_path: Path) -> None:
    names = ("ground", "disc", "square", "triangle")
    make = {
        "order": (
            "efficientvit_b0",
            "segment",
            names[::-1],
            {},
            "other classes than the data: the same names in another",
        ),
        "other": ("efficientvit_b0", "segment", (*names[:3], "star"), {}, "'triangle' missing; 'star' added"),
        "more": ("efficientvit_b0", "segment", (*names, "star"), {}, r"5 instead of 4 \('star' added\)"),
        "nameless": (
            "efficientvit_b0",
            "segment",
            (),
            {"num_classes": 7},
            "other classes than the data: 7 instead of 4",
        ),
        "task": (
            "mobilenetv2_100",
            "classify",
            names,
            {},
            "is for 'classify', not 'segment': name a model for the same",
        ),
        "bands": ("efficientvit_b0", "segment", names, {"in_chans": 4}, "takes images of 4 channels of uint8"),
    }
    for key, (name, task, labels, options, message) in make.items():
        ref = saved(tmp_path / f"{key}.safetensors", name, task, labels, **options)
        with pytest.raises(ConfigError, match=message) as caught:
            make_job(shapes, config(teacher=ref), QUIET)
        assert "\n" not in str(caught.value)
    with pytest.raises(foveal.FovealError, match="nowhere"):
        make_job(shapes, config(teacher="nowhere.safetensors"), QUIET)


# ---- processes


def test_data_loading_processes_get_no_teacher(shapes: Path, teacher: Path) -> None:
    import pickle

    job = make_job(shapes, config(teacher=str(teacher)), QUIET)
    copy = pickle.loads(pickle.dumps(job))
    assert isinstance(copy, DistillationJob)
    assert copy.teacher is None
    for part, same in zip(
        job.sample(1, np.random.default_rng(0), 0.0), copy.sample(1, np.random.default_rng(0), 0.0), strict=True
    ):
        assert torch.equal(part, same)


@pytest.mark.long
def test_two_processes_learn_what_one_does(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """With equal shares of labelled pixels, losses agree to 1e-9: every term is a mean over the batch."""
    more = {"teacher": str(teacher), "distil": {"logits": 1, "features": 1, "ema": 1}, "precision": "fp64"}
    settings = {**SETTINGS, **SMALL, **more, "epochs": 2, "scale": [0.9, 1.0]}
    one = foveal.train(shapes, out=tmp_path / "one", **settings).folder
    subprocess.run(torchrun(shapes, tmp_path / "two", settings), check=True, capture_output=True, env=ONE_THREAD)
    first, second = losses(one), losses(tmp_path / "two")
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
    assert furthest_weights(one, tmp_path / "two") < 1e-6
