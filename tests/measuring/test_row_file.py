"""Files of rows: runs continue, lines that were not finished are dropped, and machines are kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveal.errors import DataError, InputError
from foveal.measuring.row_file import RowFile, read_rows

ROW = {"kind": "pair", "key": {"size": "64x64", "threads": 1}, "ms": 3.0}


def test_rows_survive_and_later_ones_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    file = RowFile(path)
    file.add(ROW)
    file.add({**ROW, "kind": "law"})
    file.add({**ROW, "ms": 4.0})
    again = RowFile(path)
    assert again.rows == [{**ROW, "ms": 4.0}, {**ROW, "kind": "law"}]
    assert again.find("pair", {"threads": 1, "size": "64x64"}) == {**ROW, "ms": 4.0}, "the order of keys is no matter"
    assert again.find("pair", {"threads": 2, "size": "64x64"}) is None


def test_a_line_that_was_cut_is_dropped_and_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).add(ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "pair", "key": {"si')
    file = RowFile(path)
    assert file.rows == [ROW]
    file.add({**ROW, "key": {"size": "1x1"}})
    assert path.read_bytes().startswith(whole)
    assert len(RowFile(path).rows) == 2


def test_without_a_file_rows_are_in_memory() -> None:
    file = RowFile(None)
    file.add(ROW)
    assert file.rows == [ROW]


def test_a_file_has_rows_of_several_machines(tmp_path: Path) -> None:
    """Each continues its own; results that do not depend on the machine are those of all."""
    path = tmp_path / "rows.jsonl"
    RowFile(path).add(ROW)
    here = json.loads(path.read_text().split("\n")[0])
    path.write_text(path.read_text().replace(json.dumps(here), json.dumps({**here, "cpu": "a fast one"})))
    assert RowFile(path, of_any_machine=True).find("pair", ROW["key"]) == ROW
    file = RowFile(path)
    assert file.rows == []
    file.add({**ROW, "ms": 9.0})
    file.add({**ROW, "kind": "law"})
    assert RowFile(path).rows == [{**ROW, "ms": 9.0}, {**ROW, "kind": "law"}]
    fast, own = read_rows(path)
    assert (fast.machine["cpu"], fast.rows) == ("a fast one", [ROW])
    assert (own.machine, own.rows) == (RowFile(None).machine, RowFile(path).rows)
    assert path.read_text().count('"kind": "machine"') == 2
    whole = RowFile(path, of_any_machine=True)
    assert [where["cpu"] for where in whole.machines_of(whole.rows)] == [here["cpu"]]
    path.write_text(path.read_text() + json.dumps({**here, "cpu": "another"}) + "\n")  # it measured nothing
    RowFile(path).add({**ROW, "kind": "third"})
    assert [(where.machine["cpu"], len(where.rows)) for where in read_rows(path)] == [
        ("a fast one", 1),
        (here["cpu"], 3),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        b"[1]\n",
        b'{"kind": "pair", "key": {}}\n',
        b'{"kind": "machine"}\n{"kind": 3, "key": {}}\n',
        b'{\n "mine": 1\n}',
        b"\xff\n",
    ],
)
def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="give a new name"):
        RowFile(path)
    assert path.read_bytes() == content


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        RowFile(tmp_path)
