"""What the verbs share: types of their options, how they open a model, and how they print."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError
from ..text import printable

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output.")]
Images = Annotated[list[Path], Parameter(help="Image files, or folders of images.")]
Tile = Annotated[
    int | None,
    Parameter(
        help="Side of the tiles for large images, in pixels, a multiple of 32 from 64 up; default: the whole image."
    ),
]
Overlap = Annotated[int | None, Parameter(help="Pixels that neighbouring tiles share; default: a third of --tile.")]
Size = Annotated[
    str | None,
    Parameter(help="Network input as HEIGHTxWIDTH, or the side of a square; default: each image's own size."),
]
Device = Annotated[str, Parameter(help="Device that runs the model: auto, cpu, cuda, cuda:N or mps.")]
DType = Annotated[
    str, Parameter(name="--dtype", help="Type to compute in: auto (float32), float32, float16 or bfloat16.")
]
RuntimeName = Annotated[
    str, Parameter(name="--runtime", help="What runs the model: auto, or a runtime such as onnxruntime or torch.")
]
Threads = Annotated[
    int | None,
    Parameter(
        name="--threads", help="Threads of the model on the CPU; default: the number of CPUs that the process may use."
    ),
]
BatchSize = Annotated[
    int | None, Parameter(name="--batch-size", help="Images of the same size that run at once; default: 1.")
]


@dataclass(frozen=True)
class Engine:
    """The options of every verb that runs a model, by the names of :func:`foveal.load`: where and how it runs."""

    device: Device = "auto"
    dtype: DType = "auto"
    runtime: RuntimeName = "auto"
    threads: Threads = None

    def load(self, ref: str) -> Predictor:
        """Load a model.

        Raises:
            FovealError: as :func:`foveal.load`.
        """
        from ..prediction.load import load

        return load(ref, **self.options())

    def options(self) -> dict[str, Any]:
        """The options by their names."""
        return vars(self).copy()


#: Parameter of a verb: the fields of :class:`Engine` as options of their own, not as --engine.device.
Engines = Annotated[Engine, Parameter(name="*")]
ANY_ENGINE = Engine()


@dataclass(frozen=True)
class Views:
    """The options of verbs that segment: how often, and at which sizes, the network sees an image."""

    flip: Annotated[
        bool, Parameter(negative="", help="Segmentation: the mean over the image and its mirror image; twice the time.")
    ] = False
    scales: Annotated[
        str | None,
        Parameter(help="Segmentation: the mean over copies of the image at these sizes, such as 0.75,1,1.25."),
    ] = None

    def options(self) -> dict[str, Any]:
        """The options by the names of :meth:`foveal.Predictor.segment`, those only that are asked for.

        Raises:
            ConfigError: scales that are not numbers.
        """
        options: dict[str, Any] = {"flip": True} if self.flip else {}
        if self.scales is not None:
            try:
                options["scales"] = tuple(float(scale) for scale in self.scales.split(","))
            except ValueError:
                raise ConfigError(
                    f"--scales {self.scales}: write numbers with commas, for example 0.75,1,1.25"
                ) from None
        return options


ONE_VIEW = Views()


@dataclass(frozen=True)
class Tiles:
    """The options of verbs whose models see a large image in parts."""

    tile: Tile = None
    overlap: Overlap = None

    def __bool__(self) -> bool:
        return self.tile is not None or self.overlap is not None

    def options(self) -> dict[str, Any]:
        """The options by their names."""
        return vars(self).copy()


#: Parameter of a verb: the fields of :class:`Tiles` as options of their own.
Tiling = Annotated[Tiles, Parameter(name="*")]
NO_TILES = Tiles()


def open_model(ref: str, engine: Engine, task: str) -> Predictor:
    """Load the model for a verb that is for one task.

    Raises:
        ConfigError: a model for another task.
        FovealError: as :func:`foveal.load`.
    """
    predictor = engine.load(ref)
    other = predictor.info.task
    if other != task:
        hint = f"use foveal {other}" if other in assets.DEFAULTS else f"give a model for {task!r}"
        raise ConfigError(f"{ref} is for {other!r}; {hint}")
    return predictor


def parse_size(text: str) -> tuple[int, int]:
    """``"512x1024"`` -> (512, 1024), height first; ``"512"`` -> (512, 512).

    Raises:
        ConfigError: another text.
    """
    from ..config import parse_sides

    sides = parse_sides(text)
    if isinstance(sides, str):
        raise ConfigError(f"size {text!r}: write HEIGHTxWIDTH, for example 512x1024, or the side of a square")
    return sides


def parse_lengths(text: str) -> tuple[int, ...]:
    """``"256,1024"`` -> (256, 1024).

    Raises:
        ConfigError: another text.
    """
    parts = text.replace(" ", "").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"lengths {text!r}: write positive numbers with commas, for example 256,1024")
    return tuple(map(int, parts))


def say(text: object = "") -> None:
    """Print one line on standard output, with control characters as escapes."""
    print(printable(text))


def print_json(report: dict[str, Any]) -> None:
    """Print ``report`` as one line of JSON on standard output."""
    print(json.dumps(report))


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table on standard output. Its first column is never wrapped; in a pipe no column is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process with code 1

    console = Output(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width, and grep needs whole rows
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(printable(name)), no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
