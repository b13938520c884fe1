"""What the verbs share: types of their options, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import ConfigError

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output.")]
Images = Annotated[list[Path], Parameter(help="Images, or folders of images.")]
Tile = Annotated[int | None, Parameter(help="Side of the windows for large images; default: the whole image.")]
Overlap = Annotated[int | None, Parameter(help="Pixels that windows share; default: a third of --tile.")]
Size = Annotated[str | None, Parameter(help="Network input as HEIGHTxWIDTH; default: each image's own size.")]


def parse_size(text: str) -> tuple[int, int]:
    """``"512x1024"`` -> (512, 1024), height first.

    Raises:
        ConfigError: anything else.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"size {text!r}: write HEIGHTxWIDTH, such as 512x1024")
    return int(height), int(width)


def parse_lengths(text: str) -> tuple[int, ...]:
    """``"256,1024"`` -> (256, 1024).

    Raises:
        ConfigError: anything else.
    """
    parts = text.replace(" ", "").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"lengths {text!r}: write positive numbers with commas, such as 256,1024")
    return tuple(map(int, parts))


def print_json(report: dict[str, Any]) -> None:
    """Print ``report`` as one line of JSON on standard output."""
    print(json.dumps(report))


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table on standard output, the first column unwrapped; all of it in one line per row into a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; wrapped rows would be no use to grep
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(name), no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
