"""Sites: what is in the folder, what is refused. The page itself is tested in ``tests/page``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.errors import ConfigError, DependencyError, InputError
from foveal.exporting import web
from foveal.page import page_files
from helpers.commands import Command

RUNTIME = {name: name.encode() for names in web._RUNTIMES.values() for name in names}


@pytest.fixture
def without_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def fill_runtime(folder: Path) -> None:
    """Put files in the place of the library's, as an earlier export does."""
    (folder / "runtime").mkdir(parents=True)
    for name, content in RUNTIME.items():
        (folder / "runtime" / name).write_bytes(content)
    site = {"engine": "browser", "runtime": {"version": web.RUNTIME}, "models": []}
    (folder / "site.json").write_text(json.dumps(site))


def test_a_site_holds_the_page_and_one_model_for_each_task(without_npm: None, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    fill_runtime(folder)
    x2 = foveal.export("efficientvit_sr.x2", to="web", output=folder)
    assert x2.path == folder / "index.html"
    assert x2.max_difference < 1e-3
    foveal.export("efficientvit_sr.x4", to="web", output=folder)
    site = json.loads((folder / "site.json").read_text())
    (model,) = site["models"]
    assert (model["name"], model["task"], model["scale"]) == ("efficientvit_sr.x4", "upscale", 4)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *page_files(),
        *(f"runtime/{name}" for name in RUNTIME),
        "models/efficientvit_sr.x4.onnx",
        "_headers",
    }
    file = folder / model["files"]["network"]["path"]
    assert file.stat().st_size == model["files"]["network"]["bytes"] < 0.4e6
    assert str(tmp_path) not in (folder / "site.json").read_text()
    entries = [model["files"]["network"], *(site["runtime"][name]["binary"] for name in web._RUNTIMES)]
    for entry in entries:  # the page asks for files by their versions, so that no other content comes from a cache
        assert entry["version"] == hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()[:16]
    assert len({entry["version"] for entry in entries}) == 3
    assert "Cache-Control: no-cache" in (folder / "_headers").read_text()
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    difference = foveal.load(file)(image).image.astype(int) - foveal.load("efficientvit_sr.x4")(image).image
    assert np.abs(difference).max() <= 1


def test_a_site_beside_other_files_has_a_folder(tmp_path: Path, cli: Command) -> None:
    fill_runtime(tmp_path / "out" / "site")
    done = cli("export", "efficientvit_b0.camvid", "--to", "native,web", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"efficientvit_b0.camvid.foveal", "efficientvit_b0.camvid.foveal.json", "site"}
    assert (tmp_path / "out" / "site" / "models" / "efficientvit_b0.camvid.onnx").exists()


def test_without_npm_nothing_is_written(without_npm: None, tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"^npm is missing, which fetches onnxruntime-web .*: install Node\.js$"):
        foveal.export("efficientvit_sr.x2", to="web", output=tmp_path / "site")
    assert not list(tmp_path.iterdir())


def test_impossible_sites_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="has files that are no site"):
        foveal.export("efficientvit_sr.x2", to="web", output=tmp_path)
    classifier = foveal.create_model("efficientvit_b0", num_classes=3)
    with pytest.raises(ConfigError, match="the page has tools for prompt, segment, upscale"):
        foveal.export(classifier, to="web", output=tmp_path / "site")
    (tmp_path / "site").mkdir(exist_ok=True)
    site = {"engine": "browser", "runtime": {}, "models": [{"task": "segment", "files": {"network": {}}}]}
    for damaged in ([], site, site | {"models": [{"files": {}}]}, site | {"runtime": [], "models": []}):
        (tmp_path / "site" / "site.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"site\.json cannot be used"):
            foveal.export("efficientvit_sr.x2", to="web", output=tmp_path / "site")
    with pytest.raises(ConfigError, match="images of every size"):
        foveal.export("efficientvit_sr.x2", to="web", output=tmp_path / "other", input_size=(64, 64))
