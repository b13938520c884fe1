"""The table of formats in the documentation is made from the rows that were measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
ROWS, PAGE = REPOSITORY / "benchmarks" / "results" / "formats.jsonl", REPOSITORY / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def formats() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_formats", REPOSITORY / "benchmarks" / "formats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_documentation_is_made_from_its_rows(formats: Any, tmp_path: Path) -> None:
    """And what surrounds it stays."""
    page = tmp_path / "deploy.md"
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(formats.BEGIN)
    page.write_text(f"{before}{begin}an old table{formats.END}{rest.partition(formats.END)[2]}", encoding="utf-8")
    formats.write_page(ROWS, page)
    assert page.read_text(encoding="utf-8") == text


def test_every_task_and_format_is_in_the_rows(formats: Any) -> None:
    """Formats of other programs' files and sites aside; what could not be exported is a row with the reason."""
    rows = [row for where in formats.read_rows(ROWS) for row in where.rows if row["kind"] == formats.FILE]
    found = {(row["key"]["task"], row["key"]["format"]) for row in rows}
    names = [name for name, format in formats.FORMATS.items() if format.graphs is None and format.site is None]
    assert found == {(task, name) for task in formats.CASES for name in (formats.TORCH, *names)}
    ran = [row for row in rows if "failed" not in row and row["same"] is not None and row["key"]["dtype"] == "float32"]
    assert min(row["same"] for row in ran) >= 0.9999


def test_a_page_without_the_marks_is_left_as_it_is(formats: Any, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A page\n")
    with pytest.raises(SystemExit, match="no lines"):
        formats.write_page(ROWS, tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "# A page\n"
