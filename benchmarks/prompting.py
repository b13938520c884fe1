"""Time of a prompt after the image is encoded; the aim is at most 100 ms on one core for a photograph of 1024 pixels.

The bundled photograph, enlarged to a long side of 1024 pixels, is encoded with each runtime. Then a click, a box, and
64 clicks at once take turns. The time of a click is that from the prompt to the mask at the photograph's size.

OMP_NUM_THREADS=1 python benchmarks/prompting.py [--models REF ...] [--rounds 15] [--rows FILE.jsonl] [--page FILE.md]
    With --rows, models that have rows are not measured again; --page writes the table of all rows into a page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from measured_tables import parse, parser, write_tables
from PIL import Image

import foveal
from foveal import assets
from foveal.images.reading import read_image
from foveal.measuring.benchmark import interleaved
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.prediction.predictor import Predictor
from foveal.prediction.prompting import Embedding

KIND = "prompting"  # of the rows
RUNTIMES = {"native": "native engine", "onnxruntime": "ONNX Runtime", "torch": "torch"}
MODELS = ("tf_efficientnet_lite0.sam", "tinyvit_5m.mobilesam")
HEADER = ("model", "runtime", "encode", "a click, with the mask", "a box", "one of 64 clicks in one call")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=MODELS, metavar="REF")
    arguments.add_argument("--rounds", type=int, default=15)
    options = parse(arguments)
    import torch

    torch.set_num_threads(1)
    rows = RowFile(options.rows)
    print(f"{one_line()}, one thread", flush=True)
    for ref in options.models:
        if any(rows.find(KIND, {"model": ref, "runtime": runtime}) is None for runtime in RUNTIMES):
            for row in rows_of(ref, options.rounds):
                rows.add(row)
    print(table(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def rows_of(ref: str, rounds: int) -> Iterator[Row]:
    """A row for each runtime of a model."""
    image = Image.fromarray(read_image(assets.FOLDER / "street.jpg"))
    scale = 1024 / max(image.size)
    photo = np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))
    with tempfile.TemporaryDirectory() as folder:
        path = foveal.export(ref, output=Path(folder) / "model.onnx").path
        for runtime in RUNTIMES:
            model = path if runtime == "onnxruntime" else ref
            predictor = foveal.load(model, runtime=runtime, device="cpu", threads=1)
            key = {"model": ref, "runtime": runtime}
            yield {"kind": KIND, "key": key, "photo": photo.shape[:2], "ms": measure(predictor, photo, rounds)}


def cells_of(row: Row) -> tuple[str, ...]:
    times = [f"{row['ms'][what]:.0f} ms" for what in ("encode", "click", "box", "each of 64")]
    return (f"`{row['key']['model']}`", RUNTIMES[row["key"]["runtime"]], *times)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("prompting", rows, page, ("foveal", "torch", "onnxruntime"), table)


def table(rows: Sequence[Row]) -> str:
    """All rows, in Markdown."""
    return f"On one core:\n\n{markdown([HEADER, *map(cells_of, rows)])}"


def measure(predictor: Predictor, photo: np.ndarray, rounds: int) -> dict[str, float]:
    """Median milliseconds of encoding, of a click, of a box, of 64 clicks at once and of each of these."""
    embedding = predictor.encode(photo)
    height, width = photo.shape[:2]
    rng = np.random.default_rng(0)
    many = rng.uniform(0, (width, height), (64, 1, 2))

    def best(embedding: Embedding, **prompt: object) -> object:
        return embedding.prompt(**prompt).best  # type: ignore[arg-type]

    times = interleaved(
        {
            "encode": lambda: predictor.encode(photo),
            "click": lambda: best(embedding, points=[[width / 2, height / 2]], labels=[1]),
            "box": lambda: best(embedding, boxes=[width / 4, height / 4, width / 2, height / 2], multimask=False),
            "64 clicks": lambda: embedding.prompt(many, np.ones((64, 1))).low_res,
        },
        rounds=rounds,
        warmup=1,
    )
    medians = {what: 1e3 * float(np.median(seconds)) for what, seconds in times.items()}
    return {**medians, "each of 64": medians["64 clicks"] / 64}


if __name__ == "__main__":
    main()
