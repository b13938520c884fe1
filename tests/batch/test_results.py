"""Every kind of result holds what a predictor gives, whatever the images come from."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.batch import run
from foveal.batch.results import KINDS, Kind, Options, find_kind
from foveal.batch.run import Outcome, Request
from foveal.errors import ConfigError, InputError
from foveal.images.bands import read_bands
from helpers.batch_jobs import MODEL, names_in, pictures, work
from helpers.commands import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "in", 4, (50, 70))
    return tmp_path / "in"


@pytest.fixture(scope="module")
def predictor() -> Any:
    return foveal.load(MODEL, threads=1)


def rows(request: Request) -> dict[str, dict[str, Any]]:
    """The table of a job, by the name of the input."""
    work(request)
    found = pq.read_table(request.out).to_pylist()
    assert len({row["image"] for row in found}) == len(found)
    return {row["image"]: row for row in found}


def test_masks(folder: Path, tmp_path: Path, predictor: Any) -> None:
    """Files and members of tar files are the same masks, with the palette."""
    request = Request(str(folder), str(tmp_path / "files"), MODEL, part_size=3)
    work(request)
    work(Request(str(folder), str(tmp_path / "tars"), MODEL, part_size=3, pack=True))
    assert names_in(tmp_path / "files") == names_in(tmp_path / "tars")
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar")) == ["part-000000.tar", "part-000001.tar"]
    for archive in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(archive) as opened:
            for member in opened:
                stored = opened.extractfile(member)
                assert stored is not None
                content = stored.read()
                assert content == (tmp_path / "files" / member.name).read_bytes()
                expected = predictor(folder / member.name.removesuffix(".png"))
                with Image.open(io.BytesIO(content)) as mask:
                    assert np.array_equal(np.asarray(mask), expected.mask)
                    assert mask.getpalette()[:3] == list(expected.palette[0])  # pyright: ignore


def test_runs(folder: Path, tmp_path: Path, predictor: Any) -> None:
    found = rows(Request(str(folder), str(tmp_path / "out"), MODEL, "rle", part_size=3))
    assert len(found) == 4
    for name, row in found.items():
        mask = np.repeat(row["values"], row["lengths"]).reshape(row["height"], row["width"])
        assert np.array_equal(mask, predictor(folder / name).mask)


def test_shares(folder: Path, tmp_path: Path, predictor: Any) -> None:
    found = rows(Request(str(folder), str(tmp_path / "out"), MODEL, "shares"))
    for name, row in found.items():
        assert (row["height"], row["width"]) == (50, 70)
        expected = {label: share for label, share, _ in predictor(folder / name).shares()}
        assert {label: row[label] for label in predictor.names if row[label]} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [Options(tile=64, overlap=0), Options(batch_size=3)])
def test_options_of_prediction(options: Options, folder: Path, tmp_path: Path, predictor: Any) -> None:
    work(Request(str(folder), str(tmp_path / "out"), MODEL, options=options))
    for path in folder.rglob("*.png"):
        expected = predictor(path, tile=options.tile, overlap=options.overlap).mask
        with Image.open(tmp_path / "out" / f"{path.relative_to(folder)}.png") as mask:
            assert (np.asarray(mask) == expected).mean() > 0.999


def test_embeddings_and_classes(folder: Path, tmp_path: Path) -> None:
    """Of a classifier the input of its last layer, which gives the classes; of others the mean of the last map."""
    import torch

    for task in ("classify", "segment"):
        foveal.save_pretrained(foveal.create_model("efficientvit_b0", task=task, num_classes=7), tmp_path / task)
    classifier = foveal.load_model(tmp_path / "classify")
    found = rows(Request(str(folder), str(tmp_path / "out"), str(tmp_path / "classify"), "embeddings"))
    classes = rows(Request(str(folder), str(tmp_path / "classes"), str(tmp_path / "classify"), "classes"))
    direct = foveal.load(tmp_path / "classify")
    for name, row in found.items():
        result = direct(folder / name)
        with torch.inference_mode():
            logits = classifier.head.classifier(torch.tensor([row["embedding"]]))[0].numpy()
        np.testing.assert_allclose(logits, result.logits, rtol=1e-3, atol=1e-3 * np.abs(result.logits).max())
        assert (classes[name]["class"], classes[name]["probability"]) == pytest.approx(result.top(1)[0])
        assert classes[name]["index"] == result.logits.argmax()
    segmenter = foveal.load_model(tmp_path / "segment")
    found = rows(Request(str(folder), str(tmp_path / "maps"), str(tmp_path / "segment"), "embeddings"))
    assert {len(row["embedding"]) for row in found.values()} == {segmenter.backbone.feature_info[-1].channels}


def test_embeddings_of_a_backbone(folder: Path, tmp_path: Path) -> None:
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    foveal.save_pretrained(backbone, tmp_path / "model")
    found = rows(Request(str(folder), str(tmp_path / "out"), str(tmp_path / "model"), "embeddings"))
    assert [len(row["embedding"]) for row in found.values()] == [backbone.feature_info[-1].channels] * 4


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        ({"options": Options(tile=64)}, "--tile, --overlap, --batch-size: embeddings are of whole images"),
        ({"options": Options(batch_size=3)}, "--tile, --overlap, --batch-size: embeddings are of whole images"),
        ({"engine": {"runtime": "onnxruntime"}}, f"--runtime onnxruntime: only torch gives embeddings of {MODEL}"),
    ],
)
def test_embeddings_refuse_what_they_would_ignore(
    request_of: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        work(Request(str(folder), str(tmp_path / "out"), MODEL, "embeddings", **request_of))


@pytest.mark.parametrize(("given", "code"), [("in/right/00000.png", 2), ("in", 1), ("list.txt", 1)])
def test_exit_codes(
    given: str, code: int, cli: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 if the only input cannot be used, 1 if one of several cannot."""
    monkeypatch.setattr(run, "run_batch", lambda request: Outcome(0, 0, 1, [("a", "a: damaged")], 0.1, ""))
    done = cli("batch", tmp_path / given, tmp_path / "out", "--model", MODEL)
    assert (done.returncode, "failed: a: damaged" in done.stdout) == (code, True)


def test_values(folder: Path, tmp_path: Path) -> None:
    """Of a regression model, in its unit: files and members of tar files are what ``regress --format tif`` writes."""
    model = foveal.create_model("efficientvit_b0", "regress", out_chans=2, output="none")
    model.get_buffer("head.target_mean").fill_(40)
    foveal.save_pretrained(model, tmp_path / "model")
    for pack in (False, True):
        work(Request(str(folder), str(tmp_path / f"out{pack}"), str(tmp_path / "model"), "values", pack=pack))
    (archive,) = (tmp_path / "outTrue").glob("*.tar")
    predictor = foveal.load(tmp_path / "model", threads=1)
    with tarfile.open(archive) as opened:
        assert len(opened.getnames()) == 4
        for member in opened:
            stored = opened.extractfile(member)
            assert stored is not None
            path = tmp_path / "outFalse" / member.name
            assert stored.read() == path.read_bytes()
            result = predictor.regress(folder / member.name.removesuffix(".tif"))
            values = read_bands(path)
            assert (values.dtype, values.shape) == (np.float32, (50, 70, 2))
            assert values.std() > 0 < values.mean()
            np.testing.assert_allclose(values, result.values, rtol=1e-5)
            assert result.save(tmp_path / "same.tif").read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match=r"--result masks are class masks .*: choose --result values or embeddings"):
        work(Request(str(folder), str(tmp_path / "masks"), str(tmp_path / "model")))
    with pytest.raises(ConfigError, match=r"--result values are maps of values .* gives the class of each pixel"):
        work(Request(str(folder), str(tmp_path / "values"), MODEL, "values"))


def test_an_exported_file_has_no_embeddings(folder: Path, tmp_path: Path) -> None:
    file = shutil.copy(assets.path(MODEL, ".onnx"), tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"--result embeddings .* choose --result masks or rle or shares"):
        work(Request(str(folder), str(tmp_path / "out"), str(file), "embeddings"))


def test_kinds_and_models_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    for model, result, words in (
        (MODEL, "classes", "--result classes are classes of images .*: choose --result masks or rle or shares"),
        ("efficientvit_sr.x2", "masks", "--result masks are class masks .*; efficientvit_sr.x2 gives an image"),
    ):
        with pytest.raises(ConfigError, match=words):
            work(Request(str(folder), str(tmp_path / model / result), model, result))
    with pytest.raises(InputError, match="overlap=8 needs tiles"):
        work(Request(str(folder), str(tmp_path / "out"), MODEL, options=Options(overlap=8)))
    with pytest.raises(ConfigError, match="did you mean 'masks'"):
        find_kind("mask")


def test_a_kind_of_result_is_one_entry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up kind: the number of pixels."""

    def answers(predictor: Any, images: Any, options: Options) -> Any:
        return ({"pixels": result.mask.size} for result in predictor.stream(images, errors="return"))

    kind = Kind("numbers of pixels", lambda predictor: True, answers, lambda predictor: [("pixels", "int64")])
    monkeypatch.setitem(KINDS, "pixels", kind)
    found = rows(Request(str(folder), str(tmp_path / "out"), MODEL, "pixels"))
    assert [row["pixels"] for row in found.values()] == [3500] * 4
