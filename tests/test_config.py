"""YAML files of others take little time and memory, whatever they contain, and errors never print a huge value."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from foveal.config import build_config, check_arguments, parse_yaml, read_yaml
from foveal.data.layout import DatasetFile
from foveal.errors import ConfigError, nearest

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}layout: *a11", "more than 65,536 values, aliases written out"),
        (f"{MERGES}layout: *a11", "more than 65,536 values, aliases written out"),
        (f"layout: &a {'x' * 100_000}\nnames: [{', '.join(['*a'] * 1000)}]", "aliases written out"),
        (f"ids: [{'1, ' * 70_000}]", "more than 65,536 values"),
        ("names: &a [*a]", "a value that contains itself"),
        ("names: " + "[" * 60 + "]" * 60, "more than 50 levels"),
        ("names: " + "[" * 100_000, "nesting depth|levels|recursion"),
        ("- " * 100_000, "nesting depth|levels|recursion"),
        ("seed: " + "9" * 5000, "a number of 5000 characters"),
        ("seed: 1" + ":59" * 10_000, "a number of 30001 characters"),
        ("val_share: 1" + ":59" * 10_000 + ".0", "a number of 30003 characters"),
        ("names: [a" + " " * (1 << 20) + "]", "a file of settings of more than 1024 KiB"),
        ("a: 1\na: 2", r"key 'a' is there twice at line 2, column 1$"),
        ("seed: 2001-99-99", "month must be in"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("names: 0x" + "f" * 40, "names: expected a list, got 1461501637330902"),
        ("names: {" + ", ".join(f"k{i}: 1" for i in range(3000)) + "}", "names: expected a list, got {'k0': 1, "),
        ("masks: " + "x" * 100_000, "masks='xxx"),
        ("x" * 1000 + ": 1", "unknown key 'xxx"),
        ("names: [" + "x" * 1000 + ", " + "x" * 1000 + "]", "two classes are called 'xxx"),
    ],
)
def test_hostile_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "dataset.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(DatasetFile, read_yaml(file), str(file))
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 600 + len(str(file))
    assert "\n" not in str(caught.value)


def test_ordinary_aliases_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "text") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}] * 2,
    }


def test_endless_files_and_lists_of_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of more than 1024 KiB"):
        read_yaml("/dev/zero")
    with pytest.raises(ConfigError, match=f"^{tmp_path}: Is a directory$"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file$"):
        read_yaml(tmp_path / "x.yaml")
    start = time.process_time()
    build_config(DatasetFile, {"names": [f"class {i}" for i in range(50_000)]})
    assert nearest("x" * 1_000_000, ("y" * 1_000_000, *(f"{i} {'z' * 150}" for i in range(100_000)))).endswith(", ...")
    assert nearest("masc", ("masks", "names")) == "; did you mean 'masks'?"
    assert time.process_time() - start < 5


def test_texts_are_not_taken_for_numbers() -> None:
    """YAML reads 1e-5 as a text; arguments of functions get their values as they are."""

    def build(rate: float = 0.1, side: float | None = None, window: int | str = 7, name: str = "") -> None: ...

    check_arguments(build, {"rate": 1, "side": None, "window": "whole", "name": "1e-5"}, "model")
    for name in ("rate", "side"):
        with pytest.raises(ConfigError, match=rf"^model: {name}='1e-5' is a text: give a number \(in YAML 1\.0e-5"):
            check_arguments(build, {name: "1e-5"}, "model")
