"""The documentation builds as a site without a warning, every link leads somewhere, and readers find what they want."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foveal
from helpers.public_names import public_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

#: What a stranger looks for, and the page that answers.
WANTED = {
    "train on my masks": "own_masks.html",
    "deploy to a phone": "phones.html",
    "process a 2-gigapixel scan": "large-images.html",
    "which model for 50 ms": "choose.html",
}


@pytest.fixture(scope="module")
def site_modules() -> Iterator[Any]:
    """Imports a module of docs/site by name."""
    sys.path.insert(0, str(DOCS / "site"))
    yield importlib.import_module
    sys.path.remove(str(DOCS / "site"))


@pytest.fixture(scope="module")
def site(site_modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; warnings and broken links are errors of the build."""
    return site_modules("build").build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def read_pages(site_modules: Any, site: Path) -> dict[Path, Any]:
    """Links and anchors of every page of the site."""
    return site_modules("links").read(site)


@pytest.mark.parametrize("job", WANTED)
def test_a_stranger_finds_it_in_two_clicks(
    site_modules: Any, site: Path, read_pages: dict[Path, Any], job: str
) -> None:
    """And the first page says so in these words."""
    assert site_modules("links").clicks(read_pages, site)[WANTED[job]] <= 2
    words = re.sub(r"<[^>]+>", " ", (site / "index.html").read_text(encoding="utf-8"))
    for word in job.split():
        assert word in words


def test_every_page_is_in_the_navigation(site_modules: Any) -> None:
    build, reference = site_modules("build"), site_modules("reference")
    sections = reference.sections((DOCS / "python_api.md").read_text(encoding="utf-8"))
    entries = tomllib.loads(build.configuration(sections))["project"]["nav"]
    listed = [
        next(iter(entry.values())) if isinstance(entry, dict) else entry for part in entries for entry in part.values()
    ]
    pages = [page if isinstance(page, str) else next(iter(page.values())) for part in listed for page in part]
    assert len(pages) == len(set(pages))
    assert {page.name for page in PAGES} <= set(pages)


def test_every_public_name_has_its_docstring_in_the_reference(site: Path, read_pages: dict[Path, Any]) -> None:
    anchors = set().union(*(page.anchors for file, page in read_pages.items() if file.parent.name == "reference"))
    assert not set(public_names()) - anchors
    text = (site / "reference" / "prediction.html").read_text(encoding="utf-8")
    assert str(foveal.load.__doc__).partition("\n")[0] in text
    assert ":func:" not in text


def test_broken_links_are_found(site_modules: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a> <a href="b.html#y">2</a> <a href="https://x.org">3</a>')
    (tmp_path / "b.html").write_text('<p id="x"><a href="c.html">4</a><img src="d.png"><a href="#x">5</a>')
    links = site_modules("links")
    assert links.broken(tmp_path) == ["a.html: b.html#y", "b.html: c.html", "b.html: d.png"]
    assert links.clicks(links.read(tmp_path), tmp_path, "a.html") == {
        "a.html": 0,
        "b.html": 1,
        "b.html#x": 1,
        "b.html#y": 1,
    }


def test_warnings_stop_the_build(site_modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a heading that does not exist, in a site of one page."""
    build = site_modules("build")

    def stage_a_mistake(out: Path) -> None:
        build.write(out / "pages" / "README.md", "# Start\n\n[a](#no-such-heading)\n")
        text = build.configuration([])
        build.write(out / "zensical.toml", re.sub(r"^nav = \[.*?^\]", "", text, flags=re.MULTILINE | re.DOTALL))

    monkeypatch.setattr(build, "stage", stage_a_mistake)
    with pytest.raises(SystemExit, match=r"(?s)zensical.*anchor"):
        build.build(tmp_path / "site")


def test_a_folder_of_others_is_not_removed(site_modules: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="was not made by an earlier build"):
        site_modules("build").build(tmp_path)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.long
def test_the_site_in_a_browser(site: Path) -> None:
    """Without a server: no page is wider than a phone, the figure of linear attention computes, the search finds."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for file in sorted(site.rglob("*.html")):
            if file.name != "404.html":
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, file.name
        page.goto((site / "linear_attention.html").as_uri())
        page.click(".attention-figure button")
        page.wait_for_function("document.querySelector('.attention-result').textContent")
        assert float(page.inner_text(".attention-result").rstrip(".").rpartition(" ")[2]) < 1e-12
        page.set_viewport_size({"width": 1280, "height": 900})
        page.keyboard.press("Control+k")
        page.keyboard.type("gigapixel")
        page.get_by_role("link", name="Large images").first.wait_for()
        assert not errors
        browser.close()


# ---- pages


@every_page
def test_a_page_names_its_reader(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split("\n\n")[1].split())
    assert re.match(r"This (page|site) is for (those|people) ", text)


@every_page
def test_a_page_ends_with_what_to_read_next(page: Path) -> None:
    if page.name == "benchmarks.md":
        return  # written by foveal bench, to any place
    last = page.read_text(encoding="utf-8").rpartition("\n## ")[2]
    assert last.startswith("Read next\n")
    assert "](" in last


# ---- pages that are made by a command


def test_the_commands_are_those_of_the_parsers(site_modules: Any) -> None:
    """If not: python docs/site/command_page.py."""
    made = site_modules("command_page")
    assert made.page() == made.PAGE.read_text(encoding="utf-8")
    assert "| `--min-area INTEGER` | `1` | With `--coco`: leave out" in made.page()


# ---- the model zoo


def test_the_zoo_has_every_model_and_all_weights() -> None:
    """With the licence that the registry has."""
    from foveal.assets import WEIGHTS
    from foveal.models.registry import published

    text = (DOCS / "zoo.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)", text, re.MULTILINE))
    assert set(foveal.list_models()) | set(published()) == set(rows)
    for name, (family, _, entry) in published().items():
        assert f" | {entry.licence or family.licence} | " in rows[name]
        assert f"{entry.value:g}"[:4] in rows[name]
    for name in WEIGHTS:
        assert f"### {name}\n" in text


@pytest.mark.long
def test_the_zoo_is_what_its_command_writes(site_modules: Any) -> None:
    zoo, chart = site_modules("zoo"), site_modules("zoo_chart")
    rows = zoo.listed()
    assert zoo.page(rows) == zoo.PAGE.read_text(encoding="utf-8")
    assert chart.chart(rows) == zoo.CHART.read_text(encoding="utf-8")
