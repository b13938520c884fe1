"""Times of the page in headless Chromium, bytes that a visitor downloads, and the pictures of the documentation.

    python benchmarks/page.py                      # a site is exported first, which needs npm
    python benchmarks/page.py --site site          # a site that `foveal export ... --to web --output site` wrote
    python benchmarks/page.py --site site --pictures docs

A photograph of 12 megapixels, the bundled one enlarged, is dropped on the page and clicked as soon as it is shown.
Times are taken inside of the page, from the event to the frame in which the mask is on the screen.
"""

from __future__ import annotations

import argparse
import base64
import functools
import io
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import foveal
from foveal import assets
from foveal.measuring import machine
from foveal.page import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.browser import (  # pyright: ignore[reportMissingImports]
    PageDriver,
    open_browser,
    run_demo,
    serve_folder,
    why_not,
)

MODELS = ("tf_efficientnet_lite0.sam", "efficientvit_b0.camvid", "efficientvit_sr.x2")
SIZE = (4000, 3000)  # W, H of the photograph
CLICKS = ((0.68, 0.8), (0.4, 0.75), (0.55, 0.3), (0.2, 0.6), (0.8, 0.5))  # shares of its width and height
_PROBE = """() => {
  window.times = {};
  addEventListener("drop", () => { times.drop = performance.now(); }, true);
  addEventListener("pointerup", () => { times.click = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => {
    if (found.textContent) times.done?.([times.click, performance.now()]);
  })).observe(found, { childList: true });
}"""
# Promises instead of Playwright's waiting, which looks at the page in each frame and so competes with the networks.
_AWAIT = "() => { times.next = new Promise((resolve) => { times.done = resolve; }); }"
_DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


def large_photograph() -> str:
    """A JPEG of 12 megapixels, in base64."""
    file = io.BytesIO()
    with Image.open(assets.path("street", ".jpg")) as street:
        street.resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()


def measure(browser: Any, address: str, photograph: str) -> dict[str, float]:
    """Seconds from the drop to the first mask and from a click to the next one, and the megabytes that were loaded."""
    driver = PageDriver(browser, address)
    page = driver.page
    sizes = [int(request.response().headers.get("content-length", 0)) for request in driver.requests]
    page.evaluate(_PROBE)
    page.evaluate(_DROP, [photograph, "street.jpg"])
    page.wait_for_selector("#view:visible")
    first = _click(driver, CLICKS[0])
    dropped = page.evaluate("times.drop")
    clicks = []
    for place in CLICKS:
        driver.press("#clear")
        clicks.append(_click(driver, place))
    place = page.inner_text("#place")
    driver.close()
    if driver.problems:
        raise SystemExit(driver.problems[0])
    seconds = [(end - start) / 1e3 for start, end in clicks]
    print(
        f"  {place}: first mask {(first[1] - dropped) / 1e3:.2f} s, clicks {', '.join(f'{s:.3f}' for s in seconds)} s"
    )
    return {"first": (first[1] - dropped) / 1e3, "click": statistics.median(seconds), "MB": sum(sizes) / 1e6}


def _click(driver: PageDriver, place: tuple[float, float]) -> tuple[float, float]:
    """Click, wait for the mask, and return when both happened."""
    driver.page.evaluate(_AWAIT)
    driver.page.mouse.click(*driver.place(*place))
    clicked, shown = driver.page.evaluate("times.next")
    driver.wait()
    return clicked, shown


def take_pictures(browser: Any, address: str, folder: Path) -> None:
    """The pictures of docs/page.md."""
    cat, street = (FOLDER / "examples" / name for name in ("cat.jpg", "street.jpg"))
    shoot = functools.partial(_shoot, folder)
    still = {"reduced_motion": "reduce"}
    driver = PageDriver(browser, address, viewport={"width": 1120, "height": 700}, **still)
    driver.choose(cat)
    driver.click(0.5, 0.4)
    driver.click(0.3, 0.93)
    shoot(driver, "page.jpg")
    driver.close()
    driver = PageDriver(browser, address, viewport={"width": 1120, "height": 700}, color_scheme="dark", **still)
    driver.choose(street)
    driver.press("#tab-segment")
    shoot(driver, "page.classes.jpg")
    driver.close()
    driver = PageDriver(
        browser, address, viewport={"width": 360, "height": 720}, has_touch=True, is_mobile=True, **still
    )
    driver.choose(street)
    driver.page.touchscreen.tap(*driver.place(0.68, 0.8))
    driver.page.wait_for_selector("#found:not(:empty)")
    driver.wait()
    shoot(driver, "page.phone.jpg")
    driver.close()


def _shoot(folder: Path, driver: PageDriver, name: str) -> None:
    driver.page.mouse.move(0, 0)
    with Image.open(io.BytesIO(driver.page.screenshot())) as picture:
        picture.convert("RGB").save(folder / name, quality=88, optimize=True)
    print(folder / name, f"{(folder / name).stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Measure both roads, or take pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, help="folder of an exported site")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--road", choices=("site", "server", "both"), default="both")
    parser.add_argument("--runtime", default="onnxruntime", help="of the server; default: that of the base install")
    parser.add_argument("--pictures", type=Path, help="take pictures into this folder instead")
    given = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        site = given.site or Path(folder) / "site"
        for model in () if given.site or given.road == "server" else MODELS:
            print(foveal.export(model, to="web", output=site))
        with serve_folder(site) as static, run_demo(given.runtime) as server, open_browser() as browser:
            if given.pictures:
                return take_pictures(browser, static, given.pictures)
            photograph = large_photograph()
            print(f"{machine.one_line()}; Chromium {browser.version}")
            for name, address in (("site", static), ("server", server)):
                if given.road in (name, "both"):
                    rounds = [measure(browser, address, photograph) for _ in range(given.rounds)]
                    middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
                    about = f"{middle['MB']:.1f} MB loaded" if name == "site" else given.runtime
                    print(f"{name}: first mask {middle['first']:.2f} s, next click {middle['click']:.3f} s, {about}")


if __name__ == "__main__":
    main()
