"""Tables in the documentation are made from the rows that were measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import DataError

REPOSITORY = Path(__file__).parents[1]
PROGRAMS, RESULTS, PAGES = (REPOSITORY / name for name in ("benchmarks", "benchmarks/results", "docs"))
#: Files of rows and the page of their tables; the programs that write them have the name of the file, or are below.
PAGES_OF = {
    "formats": "deploy", "engine": "engine", "prompting": "prompting", "super_resolution": "super_resolution",
    "optimize": "guide", "scan": "scan", "mambavision": "mambavision", "startup": "results",
    "predict_overhead": "results", "many_images": "many-images", "large_images": "large-images",
    "serving": "serving", "architectures": "comparison", "attention": "attention", "scaling": "convnets",
}  # fmt: skip
PROGRAM_OF = dict.fromkeys(("architectures", "attention", "scaling"), "textbook")
ROWS = RESULTS / "formats.jsonl"


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the folder benchmarks."""
    monkeypatch.syspath_prepend(PROGRAMS)
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> Any:
    return program("formats", monkeypatch)


@pytest.mark.parametrize("name", PAGES_OF)
def test_the_tables_of_a_page_are_made_from_its_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what surrounds them stays."""
    writing = PROGRAM_OF.get(name, name)
    writer, tables = program(writing, monkeypatch), program("measured_tables", monkeypatch)
    page, text = tmp_path / "page.md", (PAGES / f"{PAGES_OF[name]}.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(tables.begin(writing))
    page.write_text(f"{before}{begin}an old table{tables.END}{rest.partition(tables.END)[2]}", encoding="utf-8")
    writer.write_page(RESULTS / f"{name}.jsonl", page)
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
    with pytest.raises(DataError, match="no lines"):
        formats.write_page(ROWS, tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "# A page\n"
