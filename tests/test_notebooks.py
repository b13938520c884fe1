"""The notebooks of examples/ run from top to bottom, use public names and have no outputs stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.public_names import imported_names, public_names, resolve, unlisted

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_there_are_notebooks_for_six_jobs() -> None:
    assert len(NOTEBOOKS) == 6


@every_notebook
def test_a_notebook_is_small_and_has_no_outputs(path: Path) -> None:
    assert path.stat().st_size < 8000
    assert not [cell for cell in cells(path, "code") if cell["outputs"] or cell["execution_count"]]
    first = "".join(cells(path, "markdown")[0]["source"])
    assert first.startswith("# ")
    assert "For those who" in first or "For those with" in first


@every_notebook
def test_a_notebook_uses_public_names(path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    names = imported_names(code) - {"foveal.assets"}  # the bundled photograph, in the place of the reader's
    for name in names:
        resolve(name)
    assert not unlisted(names, set(public_names()))


@pytest.mark.long
@every_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
