"""The verb ``convert``: what it writes into the description, and prints."""

from __future__ import annotations

import json
from pathlib import Path

from foveal.factory.load_model import load_model
from foveal.info import info_of
from helpers.commands import Command

MODEL = "efficientvit_b0.camvid"


def test_max_side_is_for_images_that_are_shrunk_to_it(cli: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for ref in ("efficientvit_sr.x2", "tf_efficientnet_lite0.in1k"):
        done = cli("convert", ref, file, "--max-side", 512)
        assert done.returncode == 2
        assert f"--max-side 512: images for {ref} (" in done.stderr
        assert not file.exists()
    assert cli("convert", MODEL, file, "--max-side", 512).returncode == 0
    assert info_of(load_model(file)).preprocess.max_side == 512


def test_json(cli: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    done = cli("convert", MODEL, file, "--json")
    found = {"source": MODEL, "file": str(file), "model": "efficientvit_b0", "task": "segment"}
    assert json.loads(done.stdout) == found
