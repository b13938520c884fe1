"""Options of ``foveal train``: the common settings by name, all others under --set, each explained."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import foveal
from foveal.commands.console import parse_size
from foveal.commands.train import train
from foveal.commands.train_settings import OPTIONS, describe_type, list_settings
from foveal.errors import ConfigError
from foveal.training.config import TASK_SETTINGS, TrainConfig
from foveal.training.settings import setting_fields
from helpers.commands import here


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that the command passes to foveal.train, which then ends."""
    arguments: dict[str, Any] = {}

    def record(data: Any, **settings: Any) -> None:
        arguments.update(settings)
        raise ConfigError("recorded")

    monkeypatch.setattr(foveal, "train", record)
    return arguments


def settings_of(passed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in passed.items() if key not in ("config", "out", "resume")}


def test_help_lists_the_common_settings(capfd: pytest.CaptureFixture[str]) -> None:
    done = here(capfd, "train", "--help")
    assert done.returncode == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", done.stdout).split())
    for option in (*OPTIONS.values(), "--config", "--out", "--resume", "--help-all", "--set", "--no-fsdp"):
        assert f" {option} " in text, option
    for words in ("Valid: 1 or more. Default: 100.", "choices: fp32, bf16, fp16, fp64", "foveal train --help-all"):
        assert words in text


def test_every_setting_is_listed_with_type_default_range_and_task(capfd: pytest.CaptureFixture[str]) -> None:
    done = here(capfd, "train", "--help-all")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for declared, info in setting_fields(TrainConfig):
        assert text.count(f"--set.{declared.name} ") == 1
        assert info.help in text
        assert info.valid is None or f"Valid: {info.valid.text}." in text
    assert [f"Settings of --task {task}" in text for task in TASK_SETTINGS] == [True] * len(TASK_SETTINGS)
    of_classify = list_settings().split("Settings of --task ")[2]
    assert "label_smoothing" in of_classify
    assert "Type: number." in of_classify


def test_types_in_words() -> None:
    assert describe_type(tuple[str, ...]) == "[text, ...]"
    assert describe_type(dict[str, Any]) == "{text: any value}"


def test_options_are_those_of_the_table() -> None:
    """Their names, and their types but for --crop, which is text."""
    parameters = inspect.signature(train).parameters
    names = {name.replace("num_workers", "workers") for name in parameters} - {"data", "config", "out", "resume"}
    assert names - {"set", "json", "new_phase"} == set(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (("--epochs", "50", "--batch-size", "4", "--lr", "1e-3"), {"epochs": 50, "batch_size": 4, "lr": 1e-3}),
        (("--crop", "512x1024"), {"crop": (512, 1024)}),
        (("--crop", "512"), {"crop": (512, 512)}),
        (("--batch-size", "auto", "--class-weights", "[1, 2]"), {"batch_size": "auto", "class_weights": [1, 2]}),
        (("--resume", "--new-phase", "--epochs", "9"), {"new_phase": True, "epochs": 9}),
        (("--crop", "512", "1024"), {"crop": (512, 1024)}),
        (("--crop", "512,1024", "--epochs", "1"), {"crop": (512, 1024), "epochs": 1}),
        (("--set.crop", "512", "1024"), {"crop": "512x1024"}),
        (("--num-workers", "0", "--seed", "3"), {"workers": 0, "seed": 3}),
        (("--set.workers", "2"), {"workers": 2}),
        (("--val-split", "", "--weights", "in1k"), {"val_split": "", "weights": "in1k"}),
        (("--patience", "3", "--eval-every", "1"), {"patience": 3, "eval_every": 1}),
        (("--device", "cpu", "--precision", "bf16"), {"device": "cpu", "precision": "bf16"}),
        (("--class-weights", "median", "--weight-decay", "0"), {"class_weights": "median", "weight_decay": 0.0}),
        (("--model", "efficientvit_b1", "--task", "classify"), {"model": "efficientvit_b1", "task": "classify"}),
        (("--no-fsdp",), {"fsdp": False}),
        (("--set.epochs", "50", "--set.loss", "{dice: 1}"), {"epochs": 50, "loss": {"dice": 1}}),
    ],
)
def test_options_become_settings(
    capfd: pytest.CaptureFixture[str], passed: dict[str, Any], arguments: tuple[str, ...], settings: dict[str, Any]
) -> None:
    assert here(capfd, "train", "data", *arguments).stderr == "foveal: recorded\n"
    assert settings_of(passed) == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "5", "--set.epochs", "5"), "--epochs and --set.epochs are the same setting: give one of them"),
        (("--num-workers", "1", "--set.workers", "1"), "--num-workers and --set.workers are the same setting"),
        (("--crop", "wide"), "--crop 'wide': give HEIGHTxWIDTH such as 512x1024, or a side such as 512"),
        (("--crop", "0"), "--crop '0': give HEIGHTxWIDTH"),
        (("--epochs", "many"), "many"),
        (("--epoch", "5"), "--epoch"),
        (("--precision", "bf61"), "bf16"),
        (("--set.loss", "{dice"), "--set.loss '{dice'"),
    ],
)
def test_mistakes_in_options(
    capfd: pytest.CaptureFixture[str], passed: dict[str, Any], arguments: tuple[str, ...], message: str
) -> None:
    done = here(capfd, "train", "data", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not passed


def test_sizes_of_other_commands_are_written_like_crops() -> None:
    assert [parse_size(text) for text in ("64", "512x1024", "512X1024")] == [(64, 64), (512, 1024), (512, 1024)]
    for text in ("wide", "0", "0x64", "64x"):
        with pytest.raises(ConfigError, match="write HEIGHTxWIDTH, for example 512x1024, or the side of a square"):
            parse_size(text)
