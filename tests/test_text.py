"""Text from files cannot control a terminal or a page, and hints name what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveal.errors import InputError, closest, nearest
from foveal.progress import Progress
from foveal.text import markdown, printable
from helpers.commands import Command


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Größe, 日本語", "plain text, Größe, 日本語"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("not utf-8: \udcff", "not utf-8: \\udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    Progress().note(text)
    if text.isascii():
        assert capsys.readouterr().err == f"{shown}\n"
    if "\n" not in text and "\r" not in text:
        assert str(InputError(text)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a \\| b"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("![x](http://a)", "!\\[x\\](http://a)"),
        ("`a`\n# b", "\\`a\\`\\\\n# b"),
    ],
)
def test_markdown_has_no_markup(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_errors_stay_on_one_line() -> None:
    assert str(InputError("first\nsecond \x1b[1m")) == "first second \\x1b[1m"


SETTINGS = ("batch_size", "crop", "lr", "epochs", "workers", "model", "weights", "weight_decay", "patience", "device")


@pytest.mark.parametrize(
    ("name", "valid", "meant"),
    [
        ("batch", SETTINGS, "batch_size"),
        ("imgsz", SETTINGS, "crop"),
        ("img_size", SETTINGS, "crop"),
        ("input_size", SETTINGS, "crop"),
        ("lr0", SETTINGS, "lr"),
        ("learning-rate", SETTINGS, "lr"),
        ("num_epochs", SETTINGS, "epochs"),
        ("epoch", SETTINGS, "epochs"),
        ("model_name", SETTINGS, "model"),
        ("pretrained", SETTINGS, "weights"),
        ("--batch-size", ("--batch", "--size"), "--batch"),
        ("--weights", ("--model", "--out"), "--model"),
        ("--workers", ("--num-workers", "--out"), "--num-workers"),
        ("pacience", SETTINGS, "patience"),
        ("zzzzzz", SETTINGS, None),
    ],
)
def test_hints_name_what_is_meant(name: str, valid: tuple[str, ...], meant: str | None) -> None:
    assert closest(name, valid) == meant
    assert nearest(name, valid).startswith(f"; did you mean {meant!r}?" if meant else "; valid: ")


def test_class_names_of_a_data_set(cli: Command, tmp_path: Path) -> None:
    """Folders are the classes: their names come from whoever made the archive."""
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat\x1b[31m", "dog\nproblem: none"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "a.png")
    done = cli("data", "check", tmp_path)
    assert "cat\\x1b[31m" in done.stdout
    assert "dog\\nproblem: none" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
