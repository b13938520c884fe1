"""Tables of the documentation that programs of this folder make from a file of rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from foveal.errors import DataError
from foveal.files import atomic_write
from foveal.measuring.machine import one_line
from foveal.measuring.row_file import Row, read_rows

END = "<!-- end of what it makes -->"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all of these programs have: the file of rows, and the page of their tables."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=Path, help="file of the results: what has a row of this machine is not repeated")
    made.add_argument("--page", type=Path, help="Markdown file whose tables are replaced by those of --rows")
    return made


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; a page needs a file of rows."""
    options = parser.parse_args()
    if options.page and not options.rows:
        parser.error("--page needs --rows")
    return options


def begin(program: str) -> str:
    """The line after which the tables of a program stand."""
    return f"<!-- made by benchmarks/{program}.py -->"


def write_tables(
    program: str, rows: Path, page: Path, packages: Sequence[str], tables: Callable[[list[Row]], str]
) -> None:
    """Write the tables of each machine that is in a file of rows, with the versions of the packages that computed.

    Raises:
        DataError: the page has no lines between which the tables stand.
    """
    parts = []
    for where in read_rows(rows):
        versions = ", ".join(f"{name} {where.machine[name]}" for name in packages if name in where.machine)
        parts.append(f"Measured on {one_line(where.machine)}; {versions}.\n\n{tables(where.rows)}")
    replace_part(program, page, "\n\n".join(parts))


def replace_part(program: str, page: Path, text: str) -> None:
    """Replace what stands between the two lines of a program in a Markdown file.

    Raises:
        DataError: the file has no such lines.
    """
    first = begin(program)
    before, _, rest = page.read_text(encoding="utf-8").partition(first)
    _, mark, after = rest.partition(END)
    if not mark:
        raise DataError(f"{page}: no lines {first} and {END}")
    with atomic_write(page) as temporary:
        temporary.write_text(f"{before}{first}\n\n{text}\n\n{END}{after}", encoding="utf-8")
