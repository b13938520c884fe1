"""The command line as a user meets it: processes, files, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.cli import app
from foveal.data.synthetic import shapes_sample
from foveal.images.reading import read_mask
from foveal.training.train import TrainResult
from helpers.commands import Command, run_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good images, in subfolders and with a shared stem, and a truncated one."""
    rng = np.random.default_rng(0)
    names = ("a.jpg", "a.png", "deep/b.jpg")
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes_sample(rng, (64, 80))[0]).save(path)
    data = (tmp_path / "in" / "a.jpg").read_bytes()
    (tmp_path / "in" / "broken.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path / "in"


def test_help_imports_nothing_heavy() -> None:
    """Help must answer at once: no torch, no ONNX Runtime, no numpy."""
    code = (
        "import sys, foveal.cli\n"
        "try: foveal.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "segment" in done.stdout


@pytest.mark.parametrize("verb", [name for name in app if not name.startswith("-")])
def test_every_verb_has_help(cli: Command, verb: str) -> None:
    done = cli(verb, "--help")
    assert done.returncode == 0
    assert f"foveal {verb}" in done.stdout


@pytest.mark.parametrize("verb", ["serve", "convert"])
def test_options_with_several_values_have_no_opposite(cli: Command, verb: str) -> None:
    """The parser would add --empty-allow-host and the like, which mean nothing."""
    done = cli(verb, "--help")
    assert ("--allow-host" if verb == "serve" else "--mask-thresholds") in done.stdout
    assert "--empty" not in done.stdout


def test_segment_one_image(exported: Path, folder: Path, tmp_path: Path) -> None:
    """A table for people, a mask whose indices read back, and an overlay."""
    done = run_process("segment", folder / "a.jpg", "--model", exported, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "mean confidence" in done.stdout
    mask = read_mask(tmp_path / "out" / "a.png")
    assert (mask == foveal.load(exported)(folder / "a.jpg").mask).all()
    with Image.open(tmp_path / "out" / "a.overlay.jpg") as overlay:
        assert overlay.size == (80, 64)


def test_out_may_name_the_file_of_a_single_mask(cli: Command, exported: Path, folder: Path, tmp_path: Path) -> None:
    done = cli("segment", folder / "a.jpg", "--model", exported, "--out", tmp_path / "out" / "seg.png")
    assert done.returncode == 0, done.stderr
    assert (read_mask(tmp_path / "out" / "seg.png") == foveal.load(exported)(folder / "a.jpg").mask).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seg.overlay.jpg", "seg.png"]


def test_segment_prints_json(cli: Command, exported: Path, folder: Path, tmp_path: Path) -> None:
    label = tmp_path / "label.png"
    Image.fromarray(foveal.load(exported)(folder / "a.jpg").mask).save(label)
    done = cli("segment", folder / "a.jpg", "--model", exported, "--out", tmp_path / "out", "--label", label, "--json")
    report = json.loads(done.stdout)
    assert report["agreement"] == 1.0
    assert sum(entry["share"] for entry in report["classes"]) == pytest.approx(1, abs=1e-4)
    assert all(Path(file).exists() for file in report["files"])
    Image.fromarray(np.full((64, 80), 200, np.uint8)).save(label)
    done = cli("segment", folder / "a.jpg", "--model", exported, "--out", tmp_path / "out", "--label", label)
    assert done.returncode == 2
    assert "label.png: 5120 pixels have no class of the model, the first of them 200: its classes are 0" in done.stderr


def test_folder_names_what_failed_and_goes_on(cli: Command, exported: Path, folder: Path, tmp_path: Path) -> None:
    """Exit code 1, the broken file by name, a mask for each of the others, no two to the same file."""
    done = cli("segment", folder, "--model", exported, "--out", tmp_path / "masks", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["done"] == 3
    assert [Path(entry["image"]).name for entry in report["failed"]] == ["broken.jpg"]
    written = sorted(str(p.relative_to(tmp_path / "masks")) for p in (tmp_path / "masks").rglob("*.*"))
    assert written == ["a.jpg.png", "a.png.png", "deep/b.png"]
    again = cli("segment", folder, "--model", exported, "--out", tmp_path / "masks", "--resume", "--json")
    assert [json.loads(again.stdout)[key] for key in ("done", "done_before")] == [0, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segmnt", "x.jpg"), 'Did you mean "segment"?'),
        (("segment", "x.jpg", "--modle", "y"), "Did you mean --model?"),
        (("segment", "x.jpg", "--weights", "y"), "Did you mean --model?"),
        (("train", "x", "--batch", "4"), "Did you mean --batch-size?"),
        (("train", "x", "--imgsz", "64"), "Did you mean --crop?"),
        (("train", "x", "--accumulate", "2"), "Did you mean --set.accumulate?"),
        (("train", "--data", "x"), "Give DATA without the name of an option"),
        (("train", "nowhere", "--set.batch", "4"), "did you mean 'batch_size'"),
        (("prompt", "x.jpg", "--point", "440", "560"), "write --point 440,560"),
        (("prompt", "--box", "1,", "2", "3", "4.5", "x.jpg"), "write --box 1,2,3,4.5"),
        (("export", "EXPORTED", "out.onnx"), "write --output out.onnx"),
        (("segment", "GOOD", "--model", "runs/x"), "runs/x: no such file or training run"),
        (("segment", "GOOD", "--model", "./efficientvit_b0"), "no such file or training run"),
        (("evaluate", "in/a.onx", "nowhere"), "in/a.onx: no such file or training run"),
        (("convert", "EXPORTED", "EXPORTED"), "must end in .safetensors"),
        (("segment", "PNG", "--model", "EXPORTED", "--out", "x.png", "--label", "x.png"), "no such file"),
        (("segment",), "IMAGES"),
        (("segment", "missing.jpg", "--model", "EXPORTED"), "missing.jpg: no such file or folder"),
        (("segment", "BROKEN", "--model", "EXPORTED"), "damaged or truncated"),
        (("segment", "GOOD", "--model", "efficientvit_b0.camvdi"), "did you mean 'efficientvit_b0.camvid'"),
        (("classify", "GOOD", "--model", "EXPORTED"), "use foveal segment"),
        (("classify", "GOOD", "--top", "0"), "--top 0: give 1 or more"),
        (("segment", "GOOD", "--model", "EXPORTED", "--tile", "7"), "tile must be a multiple"),
        (("segment", "GOOD", "--model", "EXPORTED", "--overlap", "32"), "overlap=32 needs tiles: give tile, too"),
        (("segment", "GOOD", "--model", "EXPORTED", "--out", "seg.jpg"), "the result is a .png file"),
        (("segment", "GOOD", "GOOD", "--model", "EXPORTED", "--out", "seg.png"), "several results need a folder"),
        (("segment", "PNG", "--model", "EXPORTED", "--out", "PNG"), "would overwrite the image"),
        (("evaluate", "EXPORTED", "nowhere"), "nowhere: no such folder"),
        (("evaluate", "EXPORTED", "nowhere", "--size", "12x"), "write HEIGHTxWIDTH"),
        (("evaluate", "EXPORTED", "nowhere", "--protocol", "cityscape"), "cityscapes"),
        (("compare", "nowhere", "nowhere"), "foveal evaluate --out FOLDER writes it"),
        (("models", "efficientvt_b3"), "did you mean 'efficientvit_b3'"),
        (("models", "--task", "segmnt"), "did you mean 'segment'"),
        (("export", "EXPORTED", "--to", "onxx"), "did you mean 'onnx'"),
        (("convert", "EXPORTED", "x.pt"), "must end in .safetensors"),
        (("train", "nowhere", "--set.epoch", "3"), "did you mean 'epochs'"),
        (("train", "nowhere", "--set.loss.lovasz", "0.5"), "all entries at once, --set.loss '{lovasz: ...}'"),
        (
            ("train", "nowhere", "--set.loss", "{dice: 1}", "--set.loss.x", "1"),
            "--set.loss.x: give all entries at once",
        ),
        (("train", "nowhere", "--set.loss.x", "1", "--set.loss.x.y", "2"), "--set.loss.x: give all entries at once"),
        (("train", "nowhere", "--set.loss", "{lovas: 0.5}"), "did you mean 'lovasz'"),
        (("train", "nowhere", "--set", "3"), "name the setting"),
        (("train", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    exported: Path,
    folder: Path,
    tmp_path: Path,
    cli: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"EXPORTED": exported, "BROKEN": folder / "broken.jpg", "GOOD": folder / "a.jpg", "PNG": folder / "a.png"}
    done = cli(*(places.get(a, a) for a in arguments))
    assert done.returncode == 2, done
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unwritable_output_is_explained(cli: Command, exported: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = cli("segment", folder / "a.jpg", "--model", exported, "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "cannot write" in done.stderr


def test_many_images_in_flat_memory(exported: Path, tmp_path: Path) -> None:
    """600 images, one of them corrupt: named, exit code 1, and memory that does not grow."""
    images = tmp_path / "in"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(shapes_sample(rng, (48, 64))[0]).save(images / f"{index:04}.jpg")
    for index in range(10, 600):
        os.link(images / f"{index % 10:04}.jpg", images / f"{index:04}.jpg")
    (images / "0500.jpg").unlink()
    (images / "0500.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    command = [
        sys.executable,
        "-m",
        "foveal",
        "segment",
        images,
        "--model",
        exported,
        "--out",
        tmp_path / "out",
        "--json",
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    samples: list[tuple[int, int]] = []
    watcher = threading.Thread(target=_watch_memory, args=(process, tmp_path / "out", samples))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    report = json.loads(output)
    assert process.returncode == 1
    assert report["done"] == 599
    assert [Path(entry["image"]).name for entry in report["failed"]] == ["0500.jpg"]
    early = max(memory for done, memory in samples if 50 <= done < 200)
    late = max(memory for done, memory in samples if done >= 450)
    assert late - early < 16 << 20, (early, late)


def _watch_memory(process: subprocess.Popen[str], out: Path, samples: list[tuple[int, int]]) -> None:
    """Note (masks written, resident bytes) until the process ends."""
    while process.poll() is None:
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            samples.append((len(os.listdir(out)) if out.exists() else 0, pages * os.sysconf("SC_PAGE_SIZE")))
        except (OSError, IndexError):
            pass
        time.sleep(0.05)


def test_convert_and_bench_agree(cli: Command, run: TrainResult, exported: Path, tmp_path: Path) -> None:
    """A checkpoint converts; the copy and the exported file are measured side by side with equal outputs."""
    copy = tmp_path / "copy.safetensors"
    assert "efficientvit_b0 for segment" in cli("convert", run.best, copy).stdout
    trained, copied = foveal.load_model(run.best).state_dict(), foveal.load_model(copy).state_dict()
    assert all(trained[key].equal(copied[key]) for key in trained)
    done = cli("bench", copy, exported, "--size", "64x96", "--rounds", "3", "--no-memory", "--json")
    report = json.loads(done.stdout)
    _, second = report["candidates"]
    assert second["agreement"] >= 0.999
    assert second["difference"] <= 1e-4
    assert report["machine"]["cpu"]


def test_models_lists_ours_and_the_published_figures(cli: Command) -> None:
    report = json.loads(cli("models", "efficientvit_b[013]*", "--json").stdout)
    names = {row["name"]: row for row in report["models"]}
    assert {"efficientvit_b0.camvid", "efficientvit_b0", "efficientvit_b3"} <= names.keys()
    assert "80.547" in " ".join(names["efficientvit_b1"]["figures"])
    row = names["efficientvit_b1"]
    assert (row["params"], row["MACs at"], round(row["MACs"] / 1e9, 3)) == (9_102_024, "224x224", 0.519)


def test_models_lists_the_classes_of_one_set_of_weights(cli: Command) -> None:
    done = cli("models", "efficientvit_b0.cityscapes")
    assert done.returncode == 0, done.stderr
    assert "road, sidewalk, building" in " ".join(done.stdout.split())


def test_evaluate_prints_every_class(cli: Command, run: TrainResult, shapes: Path) -> None:
    done = cli("evaluate", run.folder, shapes, "--split", "val")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("ground", "disc", "square", "triangle", "mIoU"))
    report = json.loads(cli("evaluate", run.folder, shapes, "--split", "val", "--json").stdout)
    assert report["miou"] == pytest.approx(run.value, abs=1e-6)


def test_a_run_folder_is_saved_for_the_hub(run: TrainResult, tmp_path: Path) -> None:
    saved = foveal.from_pretrained(foveal.save_pretrained(run.folder, tmp_path / "hub")).state_dict()
    assert all(tensor.equal(saved[key]) for key, tensor in foveal.load_model(run.best).state_dict().items())


def test_evaluate_and_compare_reports(
    cli: Command, run: TrainResult, exported: Path, shapes: Path, tmp_path: Path
) -> None:
    """Two runs leave reports, which compare; a broken image is named, left out, and makes the exit code 1."""
    data = shutil.copytree(shapes, tmp_path / "data")
    first = cli("evaluate", run.folder, data, "--split", "val", "--boundary", "--out", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    assert "boundary IoU" in first.stdout
    cli("evaluate", exported, data, "--split", "val", "--size", "32x32", "--out", tmp_path / "b")
    assert "95 % interval" in cli("compare", tmp_path / "a", tmp_path / "b").stdout
    found = json.loads(cli("compare", tmp_path / "a", tmp_path / "b", "--seed", "3", "--json").stdout)
    assert found["low"] < found["difference"] < found["high"] < 0  # the smaller input costs
    assert found["images"] == 32
    next(iter((data / "val").iterdir())).write_bytes(b"no image")
    broken = cli("evaluate", exported, data, "--split", "val", "--json")
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    assert report["images"] == 31
    assert len(report["skipped"]) == 1


@pytest.mark.long  # tests/test_release.py runs it in the environment of a new user, with its report as JSON
def test_demo_writes_picture_and_mask(tmp_path: Path) -> None:
    """What `make demo` runs."""
    done = run_process("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "agrees with the label" in done.stdout
    files = ["street.overlay.jpg", "street.png", "street.x2.compare.png", "street.x2.png"]
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == files
    assert "1280x743 -> 2560x1486" in done.stdout
