"""Checks the links of a built site, and finds what is how many clicks away from a page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and anchors of a page.

    Attributes:
        links: addresses of ``a``, ``link``, ``img`` and ``script`` elements, as they are written.
        anchors: identifiers of elements.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.clickable: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if name := values.get("id"):
            self.anchors.add(name)
        address = values.get({"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag, ""))
        if address:
            self.links.append(address)
            if tag == "a":
                self.clickable.append(address)


def read(site: Path) -> dict[Path, Page]:
    """Every page of a built site, by its file."""
    return {file.resolve(): Page(file) for file in sorted(site.rglob("*.html"))}


def broken(site: Path) -> list[str]:
    """A line for each link of a page to a file or anchor that does not exist; links to other hosts are not opened."""
    pages = read(site)
    lines = []
    for file, page in pages.items():
        if file.name == "404.html":
            continue  # its links are relative to the root of a server
        for link, target, anchor in _targets(file, page.links):
            missing = not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors)
            if missing:
                lines.append(f"{file.relative_to(site.resolve())}: {link}")
    return lines


def clicks(pages: dict[Path, Page], root: Path, start: str = "index.html") -> dict[str, int]:
    """The least number of clicks from a page to every page and every anchor that is linked.

    Args:
        pages: of :func:`read`.
        root: folder of the site.
        start: file name of the first page.

    Returns:
        Clicks by file name, relative to the site, with "#" and the anchor where a link has one.
    """
    root = root.resolve()
    found = {start: 0}
    waiting = [root / start]
    while waiting:
        file = waiting.pop(0)
        here = found[file.relative_to(root).as_posix()]
        for _, target, anchor in _targets(file, pages[file].clickable):
            if target not in pages:
                continue
            name = target.relative_to(root).as_posix()
            if name not in found:
                found[name] = here + 1
                waiting.append(target)
            if anchor:
                found.setdefault(f"{name}#{anchor}", here + 1)
    return found


def _targets(file: Path, addresses: list[str]) -> Iterator[tuple[str, Path, str]]:
    """Address, file and anchor of the addresses within the site."""
    for address in addresses:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        if target.is_dir():
            target /= "index.html"
        yield address, target, unquote(parts.fragment)
