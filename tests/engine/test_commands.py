"""Commands on plan files, and what happens without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.engine import library
from foveal.engine.builder import NotCoveredError
from foveal.engine.library import build_library
from foveal.errors import DependencyError
from foveal.images.reading import read_mask
from helpers.commands import Command

REF = "efficientvit_b0.camvid"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the bundled photograph, of odd size."""
    path = tmp_path_factory.mktemp("photo") / "part.png"
    with Image.open(assets.path("street", ".jpg")) as image:
        image.crop((300, 150, 433, 251)).save(path)
    return path


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "camvid.foveal"
    foveal.export(REF, to="native", output=path)
    return path


def test_export_and_segment(photo: Path, tmp_path: Path, cli: Command) -> None:
    path = tmp_path / "camvid.foveal"
    done = cli("export", REF, "--output", path, "--to", "native")
    assert (done.returncode, path.is_file()) == (0, True), done.stderr
    done = cli("segment", photo, "--model", path, "--out", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    assert "native" in done.stdout
    expected = foveal.load(REF, runtime="torch")(photo)
    found = foveal.load(path)(photo)
    assert np.abs(found.scores - expected.scores).max() < 1e-4
    assert (found.mask == expected.mask).mean() >= 0.9999
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), found.mask)


def test_export_of_a_model_that_is_not_covered(tmp_path: Path) -> None:
    with pytest.raises(
        NotCoveredError, match="edifice_efficient_vit: the native engine does not cover EfficientViTBackbone"
    ):
        foveal.export(foveal.create_model("edifice_efficient_vit"), to="native", output=tmp_path / "edifice.foveal")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiler on the path, an empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler(plan_file: Path, photo: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Bundled weights are run by another runtime; where the engine is asked for, one line says why not."""
    predictor = foveal.load(REF)
    assert predictor(photo).mask.shape == (101, 133)
    assert "native" not in predictor.runtime
    said = capfd.readouterr().err
    assert said.startswith("native cannot run here: no C++ compiler found")
    assert said.endswith("; using onnxruntime\n")
    assert said.count("\n") == 1
    for ref in (REF, plan_file):
        with pytest.raises(DependencyError, match=r"native cannot run here: no C\+\+ compiler found"):
            foveal.load(ref, runtime="native")
    with pytest.raises(DependencyError, match=r"native cannot run here: no C\+\+ compiler found"):
        foveal.load(plan_file)
    assert not list((tmp_path / "cache").rglob("engine*"))


def test_the_library_is_not_available_where_its_folder_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library._load.cache_clear()
    found, reason = library.available()
    assert not found
    assert reason.startswith(f"cannot write {tmp_path / 'file'}")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for a compiler")
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A script stands in for the compiler: it writes the library that exists, slowly, in two parts."""
    built = build_library()[1]
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-dM*) exit 0;; esac\nfor out; do :; done\n'
        f'head -c 4096 {built} > "$out"; sleep 1; tail -c +4097 {built} >> "$out"\n'
    )
    compiler.chmod(0o755)
    script = "from foveal.engine.library import load_library; print(load_library().width)"
    variables = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, env=variables, text=True) for _ in range(3)]
    assert [child.communicate()[0] for child in children] == [f"{library.load_library().width}\n"] * 3
    assert len(list((tmp_path / "cache" / "foveal").iterdir())) == 1
