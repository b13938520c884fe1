"""Time that a prediction takes in addition to the network and to reading the file; the aim is at most a tenth.

For an image file of 1024x2048 pixels and each runtime, two candidates take turns: ``predict`` reads and prepares the
image, runs the network at full size, upsamples and takes the argmax; ``bare`` reads the image and runs the network on
an array that is ready. It prints the median of the round-by-round ratios.

python benchmarks/predict_overhead.py [--model REF] [--runtimes native torch] [--rounds 15]
    [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measured_tables import parse, parser, write_tables
from PIL import Image

import foveal
from foveal import assets
from foveal.images.preparing import prepare
from foveal.images.reading import read_image
from foveal.measuring.benchmark import interleaved, ratio
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.prediction.predictor import Predictor

SIZE = (1024, 2048)
REF = "efficientvit_b0.camvid"


KIND = "overhead"  # of the rows
HEADER = ("model", "runtime", "network and decoding", "prediction", "ratio")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--model", default=REF, help="an ONNX file needs --runtimes onnxruntime")
    arguments.add_argument("--runtimes", nargs="+", default=["native", "onnxruntime", "torch"])
    options = parse(arguments)
    rows = RowFile(options.rows)
    print(f"{SIZE[0]}x{SIZE[1]}, {one_line()}, {options.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        with Image.open(assets.FOLDER / "street.jpg") as image:
            image.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(photo, quality=90)
        for runtime in options.runtimes:
            key = {"model": options.model, "runtime": runtime}
            if rows.find(KIND, key) is None:
                times = interleaved(candidates(options.model, photo, runtime), rounds=options.rounds, warmup=2)
                medians = {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()}
                measured = {"ms": medians, "ratio": ratio(times["predict"], times["bare"]), "rounds": options.rounds}
                rows.add({"kind": KIND, "key": key, **measured})
    print(table(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("predict_overhead", rows, page, ("foveal", "torch", "onnxruntime", "numpy"), table)


def table(rows: Sequence[Row]) -> str:
    """All rows, in Markdown."""
    return markdown([HEADER, *map(cells_of, rows)])


def cells_of(row: Row) -> tuple[str, ...]:
    times = [f"{row['ms'][name]:.1f} ms" for name in ("bare", "predict")]
    return f"`{row['key']['model']}`", row["key"]["runtime"], *times, f"{row['ratio']:.2f}"


def candidates(ref: str, photo: Path, runtime: str) -> dict[str, Callable[[], object]]:
    """Both candidates with one network, at full size: the weights' own limit on the image size is removed."""
    loaded = foveal.load(ref, runtime=runtime)
    info = loaded.info.replace(preprocess=dataclasses.replace(loaded.info.preprocess, max_side=None))
    predictor = Predictor(loaded.runner, info, loaded.runtime)
    ready = prepare(read_image(photo), info.preprocess)

    def bare() -> object:
        read_image(photo)
        return predictor.runner(ready)

    return {"bare": bare, "predict": lambda: predictor.segment(photo).mask}


if __name__ == "__main__":
    main()
