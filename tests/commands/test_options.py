"""Options of the verbs that evaluate, export and convert: each reaches the function that does the work, or the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.errors import ConfigError
from foveal.prediction.predictor import Predictor
from foveal.weights.checkpoints import read_state
from helpers.commands import Command

REF = "efficientvit_b0.camvid"
#: Each verb with what it needs.
VERBS = {
    "segment": ("photo.png",),
    "evaluate": (REF, "data"),
    "compare": ("a", "b"),
    "export": (REF,),
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of each call of such a function, which then ends."""
    calls: list[dict[str, Any]] = []

    def record(*_: Any, **options: Any) -> None:
        calls.append({key: value for key, value in options.items() if key != "progress"})
        raise ConfigError("recorded")

    for name in ("evaluate", "compare", "export"):
        monkeypatch.setattr(foveal, name, record)
    monkeypatch.setattr(Predictor, "segment", record)
    return calls


@pytest.mark.parametrize(
    ("verb", "words", "options"),
    [
        ("segment", "--flip", {"flip": True}),
        ("segment", "--scales 0.75,1", {"scales": (0.75, 1.0)}),
        ("evaluate", "--flip --class-map map.yaml", {"flip": True, "class_map": Path("map.yaml")}),
        ("evaluate", "--scales 1,1.5 --split val", {"scales": (1.0, 1.5), "split": "val"}),
        ("evaluate", "--protocol ade20k --boundary", {"protocol": "ade20k", "boundary": True}),
        ("evaluate", "--prompts boxes --size 64x96", {"prompts": "boxes", "size": (64, 96)}),
        ("compare", "--resamples 500 --seed 3", {"resamples": 500, "seed": 3}),
        ("export", "--upsample --opset 20", {"upsample": True, "opset": 20}),
        ("export", "--bake --half", {"bake": True, "half": True}),
        ("export", "--size 64x96 --batch 2", {"input_size": (64, 96), "batch": 2}),
        (
            "export",
            "--int8 set --calibration-images 9 --max-loss 1.5",
            {"int8": Path("set"), "calibration_images": 9, "max_loss": 1.5},
        ),
    ],
)
def test_options_become_keywords(
    cli: Command,
    recorded: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    words: str,
    options: dict[str, Any],
) -> None:
    """These keywords differ from those of a call without options, and no others do."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("photo.png")
    Path("set").mkdir()
    for given in ((), words.split()):
        assert cli(verb, *VERBS[verb], *given).stderr == "foveal: recorded\n"
    plain, changed = recorded
    assert {key: value for key, value in changed.items() if plain.get(key) != value} == options


def test_options_of_convert_are_in_the_file(cli: Command, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    done = cli("convert", REF, path, "--tag", "street", "--licence", "MIT", "--max-side", "512")
    assert done.returncode == 0, done.stderr
    _, info = read_state(path)
    assert info is not None
    assert (info.tag, info.licence, info.preprocess.max_side) == ("street", "MIT", 512)
