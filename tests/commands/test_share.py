"""``foveal save``, ``foveal push`` and ``foveal models`` of any reference; timm users' arguments of create_model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import foveal
from foveal import assets
from foveal.errors import ConfigError
from foveal.training.config import resolve_config
from foveal.training.recipe import find_recipe, recipes
from foveal.weights.references import SAVED
from helpers.commands import Command
from helpers.hub_client import Client
from helpers.hub_server import running

REF = "efficientvit_b0.camvid"
FIGURES = ("--metric", "mIoU=64.45", "--data", "CamVid test, 480x360")


def test_save_writes_a_folder_with_its_card(cli: Command, tmp_path: Path) -> None:
    done = cli("save", REF, tmp_path / "saved", *FIGURES, "--half", "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(file).name for file in json.loads(done.stdout)["files"]] == [SAVED, "config.json", "README.md"]
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "64.45" in card
    assert "CamVid test, 480x360" in card
    assert foveal.load_model(tmp_path / "saved").foveal_info.labels.names[:2] == ("sky", "building")


def test_push_uploads_the_folder(tmp_path: Path) -> None:
    """To the branch that is asked for; test_round_trip_through_a_hub pushes without options."""
    with running() as hub:
        environment = {**os.environ, **Client(hub.address, tmp_path).environment, "HF_TOKEN": "hf_of_this_test"}
        words = [sys.executable, "-m", "foveal", "push", REF, "someone/mine", *FIGURES, "--json"]
        words += ["--private", "--revision", "v1"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert hub.commit in json.loads(done.stdout)["commit"]
        assert {path for repo, path in hub.files if repo == "someone/mine"} >= {SAVED, "config.json", "README.md"}
        assert (hub.private, hub.branches) == ({"someone/mine": True}, ["v1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("save", REF, "out", "--metric", "mIoU"), "--metric mIoU: write NAME=VALUE"),
        (("save", REF, "out", "--metric", "mIoU=1"), "metrics need the data they were measured on"),
        (("save", "missing.pt", "out"), "missing.pt: no such file or training run"),
        (("push", REF, "mine"), "'mine' is no hub id: write owner/name"),
        (("models", "nothing.onnx"), "nothing.onnx: no such file"),
        (("models", "efficientvit_b0.camvd"), "did you mean 'efficientvit_b0.camvid'?"),
    ],
)
def test_mistakes(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_class_names_of_any_reference(cli: Command) -> None:
    """Of a name, and of a file."""
    names = list(foveal.load(REF).names)
    for ref in (REF, assets.path(REF, ".onnx"), assets.path(REF, ".safetensors")):
        (row,) = json.loads(cli("models", ref, "--json").stdout)["models"]
        assert row["classes"] == names
        assert row["tasks"] == ["segment"]


def test_recipes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_config("camvid_b0", {"epochs": 3}).epochs == 3
    assert find_recipe("camvid_b0") == recipes()["camvid_b0"]
    assert find_recipe("camvid_b0.yaml") == Path("camvid_b0.yaml")  # a file of the user, which does not exist
    with pytest.raises(ConfigError, match="no file camvid_b and no recipe of that name"):
        resolve_config("camvid_b", {})
    Path("camvid_b0").write_text("epochs: 7")
    assert resolve_config("camvid_b0", {}).epochs == 7


def test_pretrained_takes_the_weights_of_the_task() -> None:
    model = foveal.create_model("efficientvit_b0", "segment", pretrained=True, num_classes=11)
    expected = foveal.create_model(REF)
    assert all(expected.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    wide = foveal.create_model("efficientvit_b0", "segment", pretrained=True, in_chans=6)
    stem, other = (net.state_dict()["backbone.stem.0.conv.weight"] for net in (expected, wide))
    torch.testing.assert_close(other, torch.cat([stem, stem], 1) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": REF, "pretrained": True}, "name two sets of weights: leave one out"),
        ({"name": "efficientvit_b0", "pretrained": True, "weights": "x.pt"}, "pretrained=True and x.pt name two sets"),
        ({"name": "linformer", "pretrained": True}, "linformer has no weights of its own"),
        ({"name": "efficientvit_b0", "out_indices": [1]}, r"out_indices=\[1\] is for features_only=True"),
        ({"name": "efficientvit_b0", "features_only": True, "out_indices": [4]}, "give numbers of -4 to 3"),
        ({"name": "efficientvit_b0", "features_only": True, "out_indices": []}, "give numbers of -4 to 3"),
        ({"name": "efficientvit_sr", "features_only": True, "out_indices": [0]}, "has no list of feature maps"),
        ({"name": "efficientvit_b0", "out_indexes": [0]}, "did you mean 'out_indices'?"),
    ],
)
def test_impossible_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        foveal.create_model(**options)  # type: ignore[arg-type]


def test_out_indices_select_the_maps() -> None:
    torch.manual_seed(0)
    whole = foveal.create_model("efficientvit_b0", features_only=True, in_chans=4).eval()
    part = foveal.create_model("efficientvit_b0", features_only=True, in_chans=4, out_indices=(-1, 1)).eval()
    part.load_state_dict(whole.state_dict())
    image = torch.randn(1, 4, 64, 96)
    with torch.inference_mode():
        maps, found = whole(image), part(image)
    assert part.feature_info == [whole.feature_info[3], whole.feature_info[1]]
    assert all(a.equal(b) for a, b in zip(found, (maps[3], maps[1]), strict=True))
