"""Throughput of batch jobs: two processes over one, one process over bare prediction, and what a part costs.

Images of 720x960 pixels, as of CamVid, are segmented to masks on one machine:

- ``bare``: a loop of ``predictor(image)`` that also writes the mask, in one process with one thread;
- ``one``: ``foveal batch --workers 1``;
- ``two``: ``foveal batch --workers 2``.

The three take turns. Of a job the time between its first and its last committed part counts for the throughput, and
the time to start and end is printed on its own. It prints the medians of the ratios of each round: ``two`` over ``one``
(the aim is 1.8) and the overhead of ``one`` over ``bare`` (the aim is at most 10 %).

A machine that is busy with other work spoils such times. So the processor time per image is printed, too: that of a job
is the difference to a job with the images of one part, and two processes that have a core each and never wait do
``2 * one / two`` times the images of one process. With ``--counts`` it prints what a job reads, writes and
coordinates per image instead.

python benchmarks/many_images.py [--images 240] [--rounds 3] [--result masks] [--counts]
    [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

import io
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured_tables import parse, parser, write_tables
from PIL import Image

import foveal
from foveal import assets
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.prediction.results import mask_picture

REF = "efficientvit_b0.camvid"
SIZE = (960, 720)
TIMES = ("wall", "processor")
PART = 24  # images whose results are committed together


KIND = "many images"  # of the rows
WAYS = {
    "bare": "a loop of `predictor(image)` in one process that writes the masks",
    "one": "`foveal batch --workers 1`",
    "two": "`foveal batch --workers 2`",
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=240)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--result", default="masks")
    arguments.add_argument("--counts", action="store_true", help="count bytes of a job instead of measuring time")
    options = parse(arguments)
    if options.counts and options.rows:
        arguments.error("--counts keeps no rows: leave out --rows and --page")
    rows = RowFile(options.rows)
    print(f"{REF}, {options.images} images of {SIZE[0]}x{SIZE[1]}, {options.result}, {one_line()}", flush=True)
    key = {"images": options.images, "result": options.result}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.counts or rows.find(KIND, key) is None:
            write_images(folder / "in", options.images)
        if options.counts:
            for what, value in counts(folder, options.result).items():
                print(f"{what:32} {value}")
            return
        if rows.find(KIND, key) is None:
            measured = summary([measure(folder, options.result) for _ in range(options.rounds)])
            rows.add({"kind": KIND, "key": key, "rounds": options.rounds, **measured})
    print(tables(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("many_images", rows, page, ("foveal", "numpy"), tables)


def tables(rows: Sequence[Row]) -> str:
    """A table for each number of images, in Markdown."""
    return "\n\n".join(map(table, rows))


def table(row: Row) -> str:
    """The three ways and their ratios, in Markdown."""
    header = (f"{row['key']['images']} images to {row['key']['result']}", "time per image", "processor time")
    lines = [(words, *(f"{1e3 * row[f'{way}_{kind}']:.1f} ms" for kind in TIMES)) for way, words in WAYS.items()]
    speedup, overhead = row["speedup"], row["overhead"]
    facts = (
        f"Two processes are {speedup['wall']:.2f} times as fast as one ({speedup['processor']:.2f} times by processor "
        f"time). A job of one process takes {1 + overhead['wall']:.3f} times the time of the loop "
        f"({1 + overhead['processor']:.3f} times by processor time), and {row['one_start']:.1f} s to start and to end."
    )
    return f"{markdown([header, *lines])}\n\n{facts}"


def write_images(folder: Path, count: int) -> None:
    """Crops of the bundled photograph, each another one."""
    folder.mkdir()
    with Image.open(assets.FOLDER / "street.jpg") as photo:
        wide = photo.resize((SIZE[0] + count, SIZE[1]), Image.Resampling.BICUBIC)
    for index in range(count):
        wide.crop((index, 0, index + SIZE[0], SIZE[1])).save(folder / f"{index:05}.jpg", quality=90)


def measure(folder: Path, result: str) -> dict[str, float]:
    """Wall and processor seconds per image of the three ways, and seconds to start a job."""
    found = bare(folder / "in", folder / "bare")
    for name, workers in (("one", 1), ("two", 2)):
        found |= {f"{name}_{key}": value for key, value in job(folder, result, workers).items()}
    return found


def bare(images: Path, out: Path) -> dict[str, float]:
    """Seconds per image of a loop that reads, predicts and writes, without what starting takes."""
    predictor = foveal.load(REF, threads=1)
    paths = sorted(images.glob("*.jpg"))
    predictor(paths[0])
    out.mkdir()
    started, processor = time.perf_counter(), time.process_time()
    for path in paths:
        content = io.BytesIO()
        mask_picture(predictor(path)).save(content, "PNG")
        (out / f"{path.name}.png").write_bytes(content.getvalue())
    wall, processor = time.perf_counter() - started, time.process_time() - processor
    shutil.rmtree(out)
    return {"bare_wall": wall / len(paths), "bare_processor": processor / len(paths)}


def job(folder: Path, result: str, workers: int) -> dict[str, float]:
    """Seconds per image of a job between its first and last committed part, and the seconds before and after."""
    few = folder / "few"
    if not few.exists():
        few.mkdir()
        for path in sorted((folder / "in").iterdir())[:PART]:
            shutil.copy(path, few)
    _, least = run(few, folder / "out", result, workers)
    shutil.rmtree(folder / "out")
    whole, processor = run(folder / "in", folder / "out", result, workers)
    written = sorted(entry.stat().st_mtime for entry in (folder / "out").glob("_foveal/*/parts/*.json"))
    shutil.rmtree(folder / "out")
    # The first part of each worker only begins the interval: it contains the time of starting.
    seconds = written[-1] - written[workers - 1]
    count = len(list((folder / "in").iterdir()))
    return {
        "wall": seconds / (PART * (len(written) - workers)),
        "processor": (processor - least) / (count - PART),
        "start": whole - seconds * len(written) / (len(written) - workers),
    }


def run(images: Path, out: Path, result: str, workers: int) -> tuple[float, float]:
    """Wall and processor seconds of a job."""
    command = [sys.executable, "-m", "foveal", "batch", str(images), str(out), "--model", REF]
    options = ["--result", result, "--workers", str(workers), "--part-size", str(PART)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, processor


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, and medians of the ratios of each round.

    Two processes that have a core each and never wait do ``2 * one / two`` times the images of one process.
    """
    speedups = {
        "wall": [each["one_wall"] / each["two_wall"] for each in rounds],
        "processor": [2 * each["one_processor"] / each["two_processor"] for each in rounds],
    }
    overheads = {kind: [each[f"one_{kind}"] / each[f"bare_{kind}"] - 1 for each in rounds] for kind in TIMES}
    return {
        **{name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "speedup": {kind: statistics.median(found) for kind, found in speedups.items()},
        "overhead": {kind: statistics.median(found) for kind, found in overheads.items()},
    }


def counts(folder: Path, result: str) -> dict[str, object]:
    """Bytes per image of a job: read, written, and of the manifest."""
    out = folder / "out"
    command = [sys.executable, "-m", "foveal", "batch", str(folder / "in"), str(out), "--model", REF]
    subprocess.run([*command, "--result", result, "--part-size", "256"], check=True, stdout=subprocess.DEVNULL)
    images = sorted((folder / "in").iterdir())
    files = [path for path in out.rglob("*") if path.is_file()]
    manifest = [path for path in files if "_foveal" in path.parts]
    plan = next(path for path in manifest if path.name == "plan.jsonl")
    entries = [path for path in manifest if path.parent.name == "parts"]

    def per_image(paths: list[Path]) -> float:
        return round(sum(path.stat().st_size for path in paths) / len(images), 2)

    return {
        "parts": len(entries),
        "bytes read per image": per_image(images),
        "bytes written per image": per_image([path for path in files if path not in manifest]),
        "bytes of the plan per image": per_image([plan]),
        "bytes of entries per image": per_image(entries),
    }


if __name__ == "__main__":
    main()
