"""A browser, and the page on both roads: the server of ``foveal demo --page``, and a site that needs none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import foveal
from helpers.browser import PageDriver, open_browser, run_demo, serve_folder, why_not

MODELS = ("tf_efficientnet_lite0.sam", "efficientvit_b0.camvid", "efficientvit_sr.x2")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if reason := why_not():
        pytest.skip(reason)
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def demo() -> Iterator[str]:
    """Address of the page with the networks on a server."""
    with run_demo() as address:
        yield address


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page with the networks in the browser; ``FOVEAL_SITE`` may name a site of these models."""
    folder = Path(os.environ.get("FOVEAL_SITE") or tmp_path_factory.mktemp("site") / "site")
    if not folder.exists():
        for model in MODELS:
            foveal.export(model, to="web", output=folder)
    with serve_folder(folder) as address:
        yield address


@pytest.fixture(scope="session", params=["site", "demo"])
def road(request: pytest.FixtureRequest) -> str:
    """Address of the page, on each road."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., PageDriver]]:
    """Open the page at an address; options are those of the browser's context."""
    opened: list[PageDriver] = []

    def open_page(address: str, **options: Any) -> PageDriver:
        opened.append(PageDriver(browser, address, **options))
        return opened[-1]

    yield open_page
    for driver in opened:
        driver.close()
        assert not driver.problems
