"""The verb ``batch`` with processes of its own: what it prints, exit codes, second starts, shares of the work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from foveal import assets
from helpers.batch_jobs import (
    MODEL,
    PATIENCE,
    alive,
    children,
    contents,
    entries,
    names_in,
    pictures,
    start,
    wait_until,
)
from helpers.commands import Command

FAST = ("--model", MODEL, "--workers", 1)


def test_masks_and_shares_of_a_folder(cli: Command, tmp_path: Path) -> None:
    """Each image is once in the results; bad ones are named, counted, and make the exit code 1."""
    names = pictures(tmp_path / "in", 6)
    shutil.copy(assets.FOLDER / "street.jpg", tmp_path / "in" / "street.jpg")
    bad = tmp_path / "in" / "bad.jpg"
    bad.write_bytes(b"not an image")
    done = cli("batch", tmp_path / "in", tmp_path / "masks", "--model", MODEL, "--workers", 2, "--part-size", 3)
    assert done.returncode == 1
    first, *rest = done.stdout.splitlines()
    assert first.startswith("7 of 8 images in")
    assert rest == [f"failed: {bad}: not an image in a supported format (JPEG, PNG, WebP, TIFF, BMP), or damaged"]
    assert names_in(tmp_path / "masks") == sorted([*names, "street.jpg"])
    single = cli("segment", tmp_path / "in" / "street.jpg", "--out", tmp_path / "street.png", "--no-overlay")
    assert single.returncode == 0
    with Image.open(tmp_path / "street.png") as one, Image.open(tmp_path / "masks" / "street.jpg.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))

    done = cli("batch", tmp_path / "in", tmp_path / "shares", *FAST, "--result", "shares", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["done"], report["failed_count"]) == (1, 7, 1)
    assert report["failed"] == [{"image": "bad.jpg", "error": rest[0].removeprefix("failed: ")}]
    table = pq.read_table(tmp_path / "shares")  # readers of Parquet leave the manifest out
    assert sorted(table["image"].to_pylist()) == sorted([*names, "street.jpg"])
    assert "road" in table.column_names

    # A second start has nothing to do; one that does bad images again finds those that were mended.
    again = cli("batch", tmp_path / "in", tmp_path / "shares", *FAST, "--result", "shares")
    assert again.stdout.startswith("7 of 8 images, 7 done before")
    assert again.returncode == 1
    shutil.copy(assets.FOLDER / "street.jpg", bad)
    again = cli(
        "batch", tmp_path / "in", tmp_path / "shares", *FAST, "--result", "shares", "--retry-failed", "--resume"
    )
    assert again.stdout.startswith("8 of 8 images")
    assert again.returncode == 0
    assert names_in(tmp_path / "shares") == sorted([*names, "bad.jpg", "street.jpg"])


def test_shares_of_the_work(cli: Command, tmp_path: Path) -> None:
    """Three processes of a scheduler do all parts once, also with another number of processes after a break."""
    names = pictures(tmp_path / "in", 10)
    options = ("batch", tmp_path / "in", tmp_path / "out", *FAST, "--result", "rle", "--part-size", 2)
    counts = []
    for shard in ("0/3", "2/3", "0/2", "1/2"):
        done = cli(*options, "--shard", shard, "--json")
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["done"])
    assert counts == [4, 2, 2, 2]
    assert names_in(tmp_path / "out") == sorted(names)
    done = cli(*options, "--json")
    assert (json.loads(done.stdout)["done"], json.loads(done.stdout)["done_before"]) == (0, 10)


def test_mistakes(cli: Command, tmp_path: Path) -> None:
    """One line, exit code 2, no results, and the right command works in the same folder."""
    names = pictures(tmp_path / "in", 3)
    out = tmp_path / "out"
    for options, words in (
        (("--result", "mask"), "did you mean 'masks'"),
        (("--shard", "3/3"), "--shard 3/3: write I/N with I from 0 to N-1"),
        (("--part-size", 0), "--part-size 0: give 1 or more"),
        (("--tar", "--result", "shares"), "--tar goes with results that are files"),
        (("--shard", "0/2", "--ray", "auto"), "leave out one of --shard and --ray"),
        (("--result", "classes"), "choose --result masks or rle or shares"),
        (("--tile", 50), "tile must be a multiple of 32"),
    ):
        done = cli("batch", tmp_path / "in", out, *FAST, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not out.exists() or not names_in(out)
    assert cli("batch", tmp_path / "in", out, "--model", "nothing").returncode == 2
    assert cli("batch", tmp_path / "in", out, *FAST).returncode == 0
    before = contents(out)
    other = cli("batch", tmp_path / "in", out, *FAST, "--result", "rle")
    assert "has results of another job, of result 'masks', not 'rle'" in other.stderr
    foreign = cli("batch", tmp_path / "in", tmp_path / "in" / "left", *FAST)
    assert foreign.returncode == 2
    assert "has other files" in foreign.stderr
    assert contents(out) == before
    assert len(names) == 3


def test_without_pyarrow(tmp_path: Path) -> None:
    """Masks of local images need none; for the rest one line says what to install."""
    names = pictures(tmp_path / "in", 2)
    (tmp_path / "hidden" / "pyarrow").mkdir(parents=True)
    (tmp_path / "hidden" / "pyarrow" / "__init__.py").write_text("raise ImportError('not installed')")
    paths = [str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    (tmp_path / "x.parquet").write_bytes(b"PAR1")

    def run(location: Path, out: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foveal", "batch", str(location), out, *map(str, FAST), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)

    assert run(tmp_path / "in", str(tmp_path / "out")).returncode == 0
    assert names_in(tmp_path / "out") == sorted(names)
    for place, out, options, what in (
        (tmp_path / "in", str(tmp_path / "table"), ("--result", "shares"), "--result shares"),
        (tmp_path / "in", "s3://bucket/out", (), "s3://bucket/out"),
        (tmp_path / "x.parquet", str(tmp_path / "other"), (), "x.parquet"),
    ):
        done = run(place, out, *options)
        assert (done.returncode, done.stderr) == (2, f"foveal: {what}: needs pyarrow: pip install 'foveal[batch]'\n")


def test_another_file_of_the_same_model_name_is_refused(cli: Command, tmp_path: Path) -> None:
    """A job whose model was replaced must not go on: half of its results would be of another model."""
    pictures(tmp_path / "in", 2)
    model = Path(shutil.copy(assets.path(MODEL, ".onnx"), tmp_path / "model.onnx"))
    options = ("batch", tmp_path / "in", tmp_path / "out", "--model", model, "--workers", 1)
    assert cli(*options).returncode == 0
    shutil.copy(assets.path(f"{MODEL}_scratch", ".onnx"), model)
    done = cli(*options)
    assert done.returncode == 2
    assert "has results of another job, of content of the model's file" in done.stderr


def test_a_full_disk_ends_the_job_and_keeps_what_is_complete(tmp_path: Path) -> None:
    """Exit code 1 and one line; with room again the same command completes the job."""
    names = pictures(tmp_path / "in", 8)
    options = [tmp_path / "in", tmp_path / "out", *FAST, "--part-size", 2, "--tar"]
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (8000, 8000)); from foveal.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert "cannot write part" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    log = tmp_path / "log"
    assert start(*options, errors=log).wait(PATIENCE) == 0, log.read_text()
    assert names_in(tmp_path / "out") == sorted(names)


def test_an_interrupted_command_ends_its_workers(tmp_path: Path) -> None:
    """Exit code 130, a line that says how to go on, and no process stays."""
    pictures(tmp_path / "in", 300, (200, 300))
    log = tmp_path / "log"
    process = start(tmp_path / "in", tmp_path / "out", "--model", MODEL, "--part-size", 2, errors=log)
    wait_until(lambda: entries(tmp_path / "out") >= 1, process)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "the same command continues" in log.read_text()
    wait_until(lambda: not any(map(alive, workers)))
