"""Measure a preset of `foveal bench` about networks and layers in general, and keep its table.

foveal bench --preset NAME measures the same; this program also keeps the table as a row of a file, from which the
documentation is made.

python benchmarks/textbook.py attention [--threads 1] [--plot FILE.png] [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from measured_tables import parse, parser, write_tables

import foveal
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.progress import Progress

PRESETS = ("architectures", "attention", "scaling")
KIND = "preset"  # of the rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("preset", choices=PRESETS)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--plot", type=Path, help="figure, which is drawn when the preset is measured")
    options = parse(arguments)
    rows = RowFile(options.rows)
    key = {"preset": options.preset, "threads": options.threads}
    if rows.find(KIND, key) is None:
        report = foveal.bench_preset(options.preset, threads=options.threads, progress=Progress())
        rows.add({"kind": KIND, "key": key, "table": report.table(), "notes": report.notes()})
        if options.plot:
            report.draw(options.plot)
    print(tables(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of a file of rows into a page."""
    write_tables("textbook", rows, page, ("foveal", "torch", "timm"), tables)


def tables(rows: Sequence[Row]) -> str:
    """The table of each row with its number of threads, in Markdown."""
    counts = [row["key"]["threads"] for row in rows]
    heads = ["With one thread:" if count == 1 else f"With {count} threads:" for count in counts]
    return "\n\n".join(f"{head}\n\n{markdown(row['table'])}" for head, row in zip(heads, rows, strict=True))


if __name__ == "__main__":
    main()
