"""Exact streaming beside tiles of Foveal and of other libraries: time per pixel, memory, disk, agreement of classes.

    python benchmarks/large_images.py --side 16384 --model efficientvit_b0.camvid
    pip install monai patchly
    python benchmarks/large_images.py --side 4096 --ways stream native onnxruntime tiles blended monai patchly
    python benchmarks/large_images.py --side 12288 --processes 2 [--rows FILE.jsonl] [--page FILE.md]

The image is a square of copies of the bundled photograph with noise. Each way runs in a process of its own, on one
thread, with the image in a tiled TIFF; processor time is compared, which other programs on the machine disturb less.
All ways run the same network. Tiles have 512 pixels; those that are blended share a quarter with their neighbours, with
the weights that each library recommends (Gaussian). The other libraries get the image in memory, and MONAI also returns
the scores of all classes for every pixel: that is how they are used.

With ``--processes N``, whole commands are timed instead, start included: ``foveal segment --exact`` in one process, in
N processes of torchrun, and in N commands at once, of one thread each, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
from measured_tables import parse, parser, write_tables
from numpy.typing import NDArray

import foveal
from foveal import assets
from foveal.images.bands import RGB
from foveal.images.preparing import prepare
from foveal.images.rasters import open_raster
from foveal.images.reading import read_image
from foveal.images.tiff_writing import TiffImage, write_tiff
from foveal.measuring.machine import one_line
from foveal.measuring.row_file import Row, RowFile

TILE = 512
SHARED = TILE // 4  # pixels that blended tiles share
OTHERS = ("monai", "patchly")
WAY, PROCESSES = "way", "processes"  #: kinds of rows


def bands(side: int) -> Iterator[NDArray[np.uint8]]:
    """The image, 512 rows at a time."""
    photo = read_image(assets.path("street", ".jpg"))
    height, width = photo.shape[:2]
    rng = np.random.default_rng(0)
    columns = np.arange(side) % width
    for top in range(0, side, TILE):
        rows = np.arange(top, min(top + TILE, side)) % height
        band = photo[rows][:, columns].astype(np.int16)
        band += rng.integers(-9, 10, (*band.shape[:2], 1), np.int16)
        yield band.clip(0, 255).astype(np.uint8)


def stream(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment exactly."""
    result = foveal.stream(foveal.load(model, runtime="torch", threads=1), source, out)
    return {"disk_mb": result.disk_bytes / 1e6, "passes": result.passes}


def native(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment exactly, with the convolutions in the native engine."""
    result = foveal.stream(foveal.load(model, runtime="torch", threads=1), source, out, runtime="native")
    return {"disk_mb": result.disk_bytes / 1e6, "passes": result.passes}


def onnxruntime(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment exactly with ONNX Runtime, without torch."""
    result = foveal.stream(foveal.load(model, runtime="onnxruntime", threads=1), source, out)
    return {"disk_mb": result.disk_bytes / 1e6, "passes": result.passes}


def tiles(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment tile by tile, without overlap."""
    predictor = foveal.load(model, runtime="torch", threads=1)
    with open_raster(source, RGB) as raster:
        height, width, _ = raster.shape

        mask = np.lib.format.open_memmap(out, "w+", np.uint8, (height, width))
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                place = slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))
                mask[place] = predictor.segment(raster.read(*place)).mask
    return {}


def blended(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment in tiles that Foveal blends."""
    predictor = foveal.load(model, runtime="torch", threads=1)
    np.save(out, predictor.segment(_whole(source), tile=TILE, overlap=SHARED).mask)
    return {}


def _whole(source: Path) -> NDArray[np.uint8]:
    with open_raster(source, RGB) as raster:
        return raster.read(slice(0, raster.shape[0]), slice(0, raster.shape[1]))


def _network(predictor: foveal.Predictor) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The scores of every pixel, ``(C, H, W)``, of an image ``(H, W, 3)``."""
    import torch
    from torch.nn import functional

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = torch.from_numpy(predictor.runner(prepare(image, predictor.info.preprocess)))
        return functional.interpolate(logits, image.shape[:2], mode="bilinear")[0].numpy()

    return run


def monai(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment with MONAI's sliding window."""
    import torch
    from monai.inferers.utils import sliding_window_inference  # pyright: ignore[reportMissingImports]

    network = _network(foveal.load(model, runtime="torch", threads=1))

    def run(tiles: torch.Tensor) -> torch.Tensor:
        images = tiles.permute(0, 2, 3, 1).byte().numpy()
        return torch.from_numpy(np.stack([network(image) for image in images]))

    image = torch.from_numpy(_whole(source)).permute(2, 0, 1)[None].float()
    logits = sliding_window_inference(image, TILE, 1, run, overlap=SHARED / TILE, mode="gaussian")
    assert isinstance(logits, torch.Tensor)
    np.save(out, logits[0].argmax(0).byte().numpy())
    return {}


def patchly(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment with patchly, in chunks of 2048 pixels, which need less memory than the whole."""
    from patchly import Aggregator, GridSampler  # pyright: ignore[reportMissingImports]

    network, image = _network(foveal.load(model, runtime="torch", threads=1)), _whole(source)
    height, width, _ = image.shape
    mask = np.zeros((height, width), np.uint8)
    sampler = GridSampler(
        image,
        spatial_size=(height, width),
        patch_size=(TILE, TILE),
        step_size=(TILE - SHARED, TILE - SHARED),
        chunk_size=(min(height, 2048), min(width, 2048)),
    )
    aggregator = Aggregator(sampler, output=mask, weights="gaussian", softmax_dim=0, spatial_first=False)
    for patch, place in sampler:
        aggregator.append(network(np.asarray(patch, np.uint8)), place)
    np.save(out, aggregator.get_output())
    return {}


WAYS = {
    "stream": stream,
    "native": native,
    "onnxruntime": onnxruntime,
    "tiles": tiles,
    "blended": blended,
    "monai": monai,
    "patchly": patchly,
}
#: The ways in words.
WORDS = {
    "stream": "`--exact`",
    "native": "`--exact --runtime native`",
    "onnxruntime": "`--exact --runtime onnxruntime`, without torch",
    "tiles": "plain tiles without overlap",
    "blended": "`--tile 512`, blended by Foveal",
    "monai": "MONAI, `sliding_window_inference`, Gaussian weights",
    "patchly": "patchly, Gaussian weights, chunks of 2048 pixels",
}


def measure(way: str, model: str, source: Path, out: Path) -> None:
    """Run one way in this process and print its figures as JSON."""
    wall, cpu = time.perf_counter(), time.process_time()
    report = WAYS[way](model, source, out)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(report | seconds | {"peak_mb": peak / 1000}))


def speed_up(model: str, source: Path, folder: Path, processes: int, rounds: int) -> dict[str, Any]:
    """Medians of the times of one process, of several, and of several commands at once, and of their ratios.

    Commands at once, each of which does all of the work, show what the cores can give to so many processes: those of a
    virtual machine are often two threads of one core.
    """
    options = ["-m", "foveal", "segment", str(source), "--exact", "--model", model, "--runtime", "torch"]
    one = [sys.executable, *options]
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *options]
    first, shared = folder / "one.npy", folder / "several.npy"
    copies = [folder / f"copy{number}.npy" for number in range(processes)]
    ways = {
        "one": [[*one, "--out", first]],
        "several": [[*several, "--out", shared]],
        "at_once": [[*one, "--out", copy] for copy in copies],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, commands in ways.items():
            seconds[name].append(_seconds([[*command, "--threads", "1"] for command in commands]))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    alone, together, apart = seconds.values()
    return {
        **{name: statistics.median(times) for name, times in seconds.items()},
        "speedup": statistics.median(a / b for a, b in zip(alone, together, strict=True)),
        "limit": statistics.median(processes * a / b for a, b in zip(alone, apart, strict=True)),
        "same": share_of_equal(first, shared),
    }


def _seconds(commands: list[list[str | Path]]) -> float:
    """Seconds until all commands have ended, which start at once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a command ended with code {max(codes)}")
    return time.perf_counter() - started


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--side", type=int, default=16_384)
    arguments.add_argument("--model", default="efficientvit_b0.camvid")
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--ways", choices=WAYS, nargs="+", default=["stream", "tiles"], metavar="WAY")
    arguments.add_argument("--processes", type=int, help="time one process of torchrun against so many")
    arguments.add_argument("--rounds", type=int, default=3, help="of --processes")
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parse(arguments)
    if options.way:  # in a process of its own
        measure(options.way, options.model, *options.files)
        return
    missing = [way for way in options.ways if way in OTHERS and util.find_spec(way) is None]
    if missing:
        print(f"left out, because they are not installed: {', '.join(missing)} (pip install {' '.join(missing)})")
    rows, place = RowFile(options.rows), {"model": options.model, "side": options.side}
    print(f"{options.model}, {options.side}x{options.side} pixels, {one_line()}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source = Path(name) / "image.tif"
        write_tiff(source, TiffImage(options.side, options.side, 3, overviews=False), bands(options.side))
        if options.processes:
            key = place | {"processes": options.processes}
            if rows.find(PROCESSES, key) is None:
                found = speed_up(options.model, source, Path(name), options.processes, options.rounds)
                rows.add({"kind": PROCESSES, "key": key, "rounds": options.rounds, **found})
        else:
            compare(rows, place, [way for way in options.ways if way not in missing], source)
    print(tables([row for row in rows.rows if row["key"]["side"] == options.side]))
    if options.page:
        write_page(options.rows, options.page)


def compare(rows: RowFile, place: dict[str, Any], ways: Sequence[str], source: Path) -> None:
    """Measure the ways that have no row; their classes are compared with the exact ones, which are computed first."""
    left = [way for way in ways if rows.find(WAY, place | {"way": way}) is None]
    masks = {way: source.with_name(f"{way}.npy") for way in ("stream", *left)}
    for way, mask in masks.items() if left else ():
        command = [sys.executable, __file__, "--model", place["model"], "--way", way, "--files"]
        done = subprocess.run([*command, source, mask], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1]) | {"same": share_of_equal(masks["stream"], mask)}
        if way in OTHERS:
            found["version"] = metadata.version(way)
        print(f"{way}: {found['cpu_seconds']:.1f} s", flush=True)
        if way in left:
            rows.add({"kind": WAY, "key": place | {"way": way}, **found})


def share_of_equal(exact: Path, found: Path) -> float:
    """Share of the pixels of two masks with the same class."""
    expected, mask = np.load(exact, mmap_mode="r"), np.load(found, mmap_mode="r")
    same = sum(int((expected[top : top + TILE] == mask[top : top + TILE]).sum()) for top in range(0, len(mask), TILE))
    return same / expected.size


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("large_images", rows, page, ("foveal", "torch", "onnxruntime", "numpy"), tables)


def tables(rows: Sequence[Row]) -> str:
    """A table for each model and size, and a sentence for each number of processes, in Markdown."""
    ways = [row for row in rows if row["kind"] == WAY]
    places = dict.fromkeys((row["key"]["model"], row["key"]["side"]) for row in ways)
    parts = [
        table([row for row in ways if (row["key"]["model"], row["key"]["side"]) == place])
        for place in sorted(places, key=lambda place: place[1])
    ]
    return "\n\n".join([*parts, *(sentence(row) for row in rows if row["kind"] == PROCESSES)])


def table(rows: Sequence[Row]) -> str:
    """The ways of one model and size, in the order of :data:`WORDS`."""
    from foveal.measuring.page import markdown  # it imports torch, which is not to be in the processes of the ways

    key = rows[0]["key"]
    size = f"{key['side']:,} x {key['side']:,} pixels"
    lines = [(f"{size}, `{key['model']}`", "processor time", "per pixel", "peak memory", "disk", "exact classes")]
    for row in sorted(rows, key=lambda row: list(WORDS).index(row["key"]["way"])):
        seconds, disk, way = row["cpu_seconds"], row.get("disk_mb", 0), row["key"]["way"]
        lines.append(
            (
                WORDS[way] + (f" ({row['version']})" if "version" in row else ""),
                f"{seconds:.1f} s",
                f"{1e6 * seconds / key['side'] ** 2:.2f} µs",
                f"{row['peak_mb'] / 1000:.2f} GB",
                f"{disk / 1000:.2f} GB" if disk else "none",
                f"{row['same']:.2%}",
            )
        )
    return markdown(lines)


def sentence(row: Row) -> str:
    """What several processes gain."""
    key = row["key"]
    side, processes = key["side"], key["processes"]
    rounds = "one round" if row["rounds"] == 1 else f"medians of {row['rounds']} rounds"
    return (
        f"On {side:,} x {side:,} pixels, {processes} processes of torchrun take {row['several']:.1f} s and one process "
        f"takes {row['one']:.1f} s, start included: {row['speedup']:.2f} times as fast, with the same class at "
        f"{row['same']:.2%} of the pixels ({rounds}). {processes} commands at once, each of "
        f"which does all of the work, do {row['limit']:.2f} times the work of one in the same time: that is what the "
        "cores give."
    )


if __name__ == "__main__":
    main()
