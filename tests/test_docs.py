"""README and docs stay true: links, commands, snippets, and the list of everything that users may import.

Nothing is run: commands are parsed, snippets are compiled and their names resolved.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

import foveal
from foveal.cli import app
from helpers.public_names import API, NAME, imported_names, public_names, resolve, unlisted

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / ".github", ROOT / "src" / "foveal" / "assets")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))

# Inline code of this form that names no object of the package.
NOT_IMPORTED = {"foveal.sha256": "a key of checkpoint metadata"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()]*\))?[^()\s]*)\)")
FILE = re.compile(r"(tests|benchmarks|recipes)/[\w./]+")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [content for name, content in FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


# ---- links


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    found: dict[str, int] = {}
    names: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def link_exists(page: Path, text: str, link: str) -> bool:
    """Whether the file and the anchor of a relative link exist."""
    name, _, anchor = link.partition("#")
    target = page.parent / name
    if not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text(encoding="utf-8") if name else text)


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page whose file or anchor does not exist."""
    links = [link for link in LINK.findall(prose(text)) if not re.match(r"[a-z]+:", link)]
    return [link for link in links if not link_exists(page, text, link)]


@every_page
def test_links_point_to_files_and_headings(page: Path) -> None:
    assert not broken_links(page, page.read_text(encoding="utf-8"))


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One *two*, `three`\n```\n# no heading\n```\n")
    text = "# Top\n[a](b.md) [b](b.md#one-two-three) [c](#top) [d](https://x.org/y)\n"
    text += "[e](c.md) [f](b.md#no-heading) [g](#z)"
    assert broken_links(tmp_path / "a.md", text) == ["c.md", "b.md#no-heading", "#z"]


# ---- commands


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of each ``foveal`` command in the bash blocks of a page, also of ``python -m foveal`` and torchrun."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):  # variables of the environment
                words = words[1:]
            if words[:1] == ["foveal"]:
                yield words[1:]
            elif "foveal" in words and words[words.index("foveal") - 1] == "-m":
                yield words[words.index("foveal") + 1 :]


def command_error(arguments: list[str]) -> str:
    """What is wrong with a command; empty: it names a verb, and its options exist."""
    try:
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        return f"foveal {shlex.join(arguments)}: {error}"
    settings = {word.removeprefix("--set.").partition("=")[0] for word in arguments if word.startswith("--set.")}
    unknown = settings - {field.name for field in dataclasses.fields(foveal.TrainConfig)}
    return f"foveal {shlex.join(arguments)}: no setting {', '.join(unknown)}" if unknown else ""


@every_page
def test_commands_exist_with_their_options(page: Path) -> None:
    errors = [command_error(arguments) for arguments in commands(page.read_text(encoding="utf-8"))]
    assert not [error for error in errors if error]


def test_wrong_commands_are_found() -> None:
    text = (
        "```bash\nA=1 foveal segment a.jpg  # comment\nfoveal segment a.jpg --nope\ntorchrun -m foveal trian D\n"
        "python -m foveal evaluate a \\\n  b --split test\nfoveal bench --preset attention\nmake foveal\n"
        "foveal train D --set.epochs 1 --set.epoch 2\n```\nfoveal prose\n"
    )
    found = list(commands(text))
    assert [bool(command_error(arguments)) for arguments in found] == [False, True, True, False, False, True]


@every_page
def test_inline_commands_name_verbs(page: Path) -> None:
    verbs = [code.split()[1] for code in inline_code(page.read_text(encoding="utf-8")) if code.startswith("foveal ")]
    unknown = {verb for verb in verbs if re.fullmatch("[a-z]+", verb)} - set(app)
    assert not unknown


@every_page
def test_files_in_the_text_exist(page: Path) -> None:
    paths = {code for code in inline_code(page.read_text(encoding="utf-8")) if FILE.fullmatch(code)}
    assert not {path for path in paths if not (ROOT / path).exists()}


# ---- installation


def test_every_extra_and_environment_variable_is_listed() -> None:
    """On the page of the installation; variables that the sources read."""
    page = inline_code((ROOT / "docs" / "install.md").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["optional-dependencies"]) > 20
    assert not set(project["optional-dependencies"]) - set(page)
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "foveal").rglob("*.py"))
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', sources)) | set(re.findall(r'"(FOVEAL_[A-Z_]+)"', sources))
    assert len(read) > 10
    assert not read - set(page) - {"PATH"}


# ---- snippets


@every_page
def test_snippets_compile_and_use_public_names(page: Path) -> None:
    public = set(public_names())
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        names = imported_names(code)
        for name in names:
            resolve(name)
        assert not unlisted(names, public), f"not in {page_id(API)}"


@every_page
def test_names_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page.read_text(encoding="utf-8")):
        for name in NAME.findall(code) if not code.startswith("foveal ") else ():
            if name not in NOT_IMPORTED:
                resolve(name)


def test_wrong_names_are_found() -> None:
    assert imported_names("import foveal\nfoveal.load('x').y\nfrom foveal.a import b\nimport foveal.timm") == {
        "foveal.load",
        "foveal.a.b",
        "foveal.timm",
    }
    with pytest.raises(AttributeError):
        resolve("foveal.lod")
    with pytest.raises(AttributeError):
        resolve("foveal.SegmentResult.nothing")
    assert resolve("foveal.layers.scan.selective_scan").__name__ == "selective_scan"
    assert unlisted({"foveal.a", "foveal.a.b", "foveal.b.c", "foveal.b", "foveal.c"}, {"foveal.a", "foveal.b.c"}) == {
        "foveal.c"
    }


# ---- the list of public names


def test_listed_names_exist() -> None:
    names = public_names()
    assert len(names) > 100
    assert len(names) == len(set(names))
    for name in names:
        resolve(name)


def test_every_public_name_is_listed() -> None:
    expected = {f"foveal.{name}" for name in foveal.__all__}
    for module in ("losses", "costs"):
        content = vars(importlib.import_module(f"foveal.{module}"))
        expected |= {f"foveal.{module}.{name}" for name in content if not name.startswith("_")}
    assert not expected - set(public_names())
