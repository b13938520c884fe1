"""Build the documentation as a site: python docs/site/build.py [--out FOLDER]; ``make site`` does the same.

The pages of docs/ are written to be read on a Git host, too. They are staged for the site: links that leave docs/ lead
to copies of the pages outside of it (the changelog, model cards, ...) or to pages that show a file (recipes, examples);
the list of public names leads to the reference, whose pages are made from the docstrings. zensical then builds the
staged pages, and every warning is an error.

Needs the dependency group "docs" and foveal[torch].
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import links
import reference

SITE = Path(__file__).parent
REPOSITORY = SITE.parents[1]
DOCS = REPOSITORY / "docs"
OUT = REPOSITORY / "build" / "site"

#: Where copies of pages from outside of docs/, and pages that show a file, are staged.
REPOSITORY_PAGES = "repository"
#: Files of docs/ that pages show or link to.
COPIED = (".png", ".jpg", ".svg", ".jsonl")

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_LANGUAGES = {
    ".py": "python",
    ".mjs": "javascript",
    ".js": "javascript",
    ".cpp": "cpp",
    ".json": "json",
    ".yaml": "yaml",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the staged pages and the site (html/)")
    html = build(parser.parse_args().out)
    print(f"{len(list(html.rglob('*.html')))} pages, every link and anchor leads somewhere: {html / 'index.html'}")


def build(out: Path) -> Path:
    """Stage the pages, build the site and check its links.

    Args:
        out: folder that is removed, if it was made by an earlier build, and written.

    Returns:
        The folder of the HTML files.

    Raises:
        SystemExit: a page could not be staged, zensical reported a problem, or a link leads nowhere.
    """
    config = out / "zensical.toml"
    made = config.is_file() and (out / "pages").is_dir()
    if out.exists() and any(out.iterdir()) and not made:
        raise SystemExit(f"{out} was not made by an earlier build; choose a new folder for --out")
    shutil.rmtree(out, ignore_errors=True)
    stage(out)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(config)]
    result = subprocess.run(command, capture_output=True, text=True)
    output = _COLOUR.sub("", result.stdout + result.stderr).partition("Traceback (most recent call last)")[0]
    if result.returncode or re.search(r"\b(warning|error|griffe:)", output, re.IGNORECASE):
        raise SystemExit(f"zensical:\n{output}")
    if broken := links.broken(out / "html"):
        raise SystemExit("links that lead nowhere:\n" + "\n".join(broken))
    return out / "html"


# ---- staging


def stage(out: Path) -> None:
    """Write everything that zensical reads: the configuration, and the folder ``pages``."""
    pages = out / "pages"
    shutil.copytree(SITE / "assets", pages / "assets")
    for file in DOCS.rglob("*"):
        if file.suffix in COPIED and SITE not in file.parents:
            _copy(file, pages / file.relative_to(DOCS))
    texts = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
    texts |= _outside_pages(texts)
    sections = reference.sections(texts["python_api.md"])
    texts |= reference.pages(sections)
    texts["python_api.md"] = reference.linked(texts["python_api.md"], sections)
    for name, text in texts.items():
        write(pages / name, text)
    write(out / "zensical.toml", configuration(sections))


def configuration(sections: Iterable[reference.Section]) -> str:
    """The configuration with the paths of this build and the pages of the reference."""
    text = (SITE / "zensical.toml").read_text(encoding="utf-8")
    entries = ",\n    ".join(f'{{ "{section.title}" = "{section.page}" }}' for section in sections)
    paths = {"SOURCES": REPOSITORY / "src", "ROLES": SITE / "roles.py"}
    for name, path in paths.items():
        text = text.replace(f'"{name}"', json.dumps(path.as_posix()))
    return text.replace('{ "REFERENCE" = "REFERENCE" }', entries, 1)


def _outside_pages(texts: dict[str, str]) -> dict[str, str]:
    """Point the links of staged pages to staged pages, and return those of what lies outside of docs/.

    Those pages have links, too, so this goes on until all are staged.
    """
    found: dict[str, str] = {}
    waiting = {name: DOCS / name for name in texts}
    while waiting:
        name, source = waiting.popitem()
        into = found if name in found else texts
        into[name], targets = relinked(into[name], name, source)
        for target in targets:
            page = staged_name(target)
            if page not in found and page not in texts:
                found[page] = as_page(target)
                waiting[page] = target
    return found


def relinked(text: str, name: str, source: Path) -> tuple[str, set[Path]]:
    """The text of a page with links for its place on the site, and what these links lead to outside of docs/.

    Args:
        text: Markdown.
        name: of the staged page, with its folder.
        source: the file that the text is from; its links are relative to its folder.
    """
    outside: set[Path] = set()

    def replace(match: re.Match[str]) -> str:
        link, _, anchor = match[2].partition("#")
        if not link or re.match(r"[a-z]+:", link):
            return match[0]
        target = Path(os.path.normpath(source.parent / link))
        if not target.exists():
            raise SystemExit(f"{source}: {link} does not exist")
        if DOCS in target.parents:
            page = target.relative_to(DOCS).as_posix()
        elif target.suffix in COPIED:
            raise SystemExit(f"{source}: {link}: pictures of pages belong into docs/")
        else:
            outside.add(target)
            page = staged_name(target)
        path = posixpath.relpath(page, posixpath.dirname(name) or ".")
        return f"{match[1]}{path}{'#' + anchor if anchor else ''}{match[3]}"

    if source.suffix != ".md":
        return text, outside  # a file or folder, shown as it is
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(replace, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replace, text[end:])]), outside


def staged_name(target: Path) -> str:
    """The name of the staged page of a file or folder outside of docs/."""
    path = target.relative_to(REPOSITORY).as_posix()
    return f"{REPOSITORY_PAGES}/{path}" if target.suffix == ".md" else f"{REPOSITORY_PAGES}/{path}.md"


def as_page(target: Path) -> str:
    """The Markdown of a file or folder outside of docs/."""
    path = target.relative_to(REPOSITORY).as_posix()
    if target.is_dir():
        files = sorted(file.name for file in target.iterdir() if file.is_file())
        return f"# {path}\n\nThe files of this folder of the repository:\n\n" + "".join(
            f"- `{name}`\n" for name in files
        )
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return text
    if target.suffix == ".ipynb":
        return reference.notebook(path, text)
    return f"# {path}\n\n````{_LANGUAGES.get(target.suffix, 'text')}\n{text.rstrip()}\n````\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


if __name__ == "__main__":
    main()
