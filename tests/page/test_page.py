"""The page in Chromium: every control, and masks, classes and enlarged pictures that are Python's."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.images.regions import mask_of
from foveal.page import FOLDER
from helpers.browser import PageDriver, iou

CAT, STREET = FOLDER / "examples" / "cat.jpg", FOLDER / "examples" / "street.jpg"
SAME = 0.98  # least intersection over union with Python's masks
Visit = Callable[..., PageDriver]


@pytest.fixture(scope="module")
def predictor() -> foveal.Predictor:
    return foveal.load("tf_efficientnet_lite0.sam", runtime="onnxruntime")


def expected(
    predictor: foveal.Predictor, image: Any, points: list[list[float]], labels: list[int]
) -> NDArray[np.bool_]:
    """Python's best mask; points are shares of the width and height."""
    embedding = predictor.encode(image)
    places = np.array(points) * embedding.size[::-1]
    return embedding.prompt(places, labels, multimask=len(points) == 1).best


def test_a_click_on_the_page_of_the_demo_cuts_out_what_python_does(
    visit: Visit, demo: str, predictor: foveal.Predictor
) -> None:
    page = visit(demo)
    page.choose(CAT)
    page.click(0.5, 0.4)
    mask = np.asarray(page.saved_picture("#save-mask"))
    assert set(np.unique(mask)) == {0, 255}
    assert iou(mask, expected(predictor, CAT, [[0.5, 0.4]], [1])) >= SAME


@pytest.mark.long
def test_clicks_boxes_and_undo(visit: Visit, road: str, predictor: foveal.Predictor, tmp_path: Path) -> None:
    street = tmp_path / "street.png"  # decoders of JPEG differ by a level
    Image.open(STREET).save(street)
    page = visit(road)
    page.choose(street)
    page.click(0.68, 0.8)
    embedding = predictor.encode(street)
    size = np.array(embedding.size[::-1])
    points = json.loads(page.saved("#save-json")[1])["points"]
    np.testing.assert_allclose(points, [np.array([0.68, 0.8]) * size], atol=2)  # clicks are on pixels of the screen
    first = embedding.prompt(points, [1])
    order = first.by_area[::-1]  # the smallest first, as on the page
    for name, index in zip(("0", "1", "2"), order, strict=True):
        page.page.check(f"input[name=size][value='{name}']", force=True)
        assert iou(np.asarray(page.saved_picture("#save-mask")), first.masks[index]) >= SAME
    page.click(0.62, 0.75)
    page.click(0.5, 0.9, button="right")
    record = json.loads(page.saved("#save-json")[1])
    assert record["labels"] == [1, 1, 0]
    points = np.array(record["points"]) / size
    assert iou(np.asarray(page.saved_picture("#save-mask")), expected(predictor, street, points, [1, 1, 0])) >= SAME
    page.press("#undo")
    two = np.asarray(page.saved_picture("#save-mask"))
    assert iou(two, expected(predictor, street, points[:2], [1, 1])) >= SAME
    page.press("#clear")
    assert page.page.is_disabled("#save-mask")
    assert not page.overlay().any()
    page.press("#undo")
    np.testing.assert_array_equal(np.asarray(page.saved_picture("#save-mask")), two)
    page.press("#clear")
    page.drag((0.56, 0.55), (0.8, 0.9))
    box = embedding.prompt(boxes=np.array([0.56, 0.55, 0.8, 0.9]) * np.tile(size, 2), multimask=False).best
    assert iou(np.asarray(page.saved_picture("#save-mask")), box) >= SAME
    page.press("#clear")
    page.page.check("input[name=mode][value=background]", force=True)
    page.click(0.1, 0.1)
    page.page.check("input[name=mode][value=box]", force=True)
    page.click(0.56, 0.55)  # the corners one after the other, as on a touch screen
    page.click(0.8, 0.9)
    record = json.loads(page.saved("#save-json")[1])
    assert record["labels"] == [0]
    np.testing.assert_allclose(np.array(record["box"]) / np.tile(size, 2), [0.56, 0.55, 0.8, 0.9], atol=0.003)
    assert not page.error()


@pytest.mark.long
def test_files_of_a_cut_out(visit: Visit, road: str) -> None:
    page = visit(road)
    page.choose(CAT)
    page.click(0.5, 0.4)
    name, content = page.saved("#save-cutout")
    cutout, mask = Image.open(io.BytesIO(content)), np.asarray(page.saved_picture("#save-mask"))
    assert (name, cutout.mode) == ("cat.cutout.png", "RGBA")
    pixels = np.asarray(cutout)
    np.testing.assert_array_equal(pixels[..., 3], mask)
    inside = np.abs(pixels[mask > 0][:, :3].astype(int) - np.asarray(Image.open(CAT))[mask > 0])
    assert inside.mean() < 1  # decoders differ by a level
    name, content = page.saved("#save-json")
    record = json.loads(content)
    (found,) = record["masks"]
    assert name == "cat.json"
    assert record["image"] == {"name": "cat.jpg", "width": 451, "height": 300}
    decoded = mask_of(np.array(found["segmentation"]["counts"], np.uint32), (300, 451))
    np.testing.assert_array_equal(decoded, mask > 0)
    assert found["area"] == decoded.sum()
    rows, columns = np.nonzero(decoded)
    x, y, width, height = found["bbox"]
    assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max(), rows.max())


@pytest.mark.long
def test_everything(visit: Visit, road: str, predictor: foveal.Predictor) -> None:
    page = visit(road)
    page.choose(CAT)
    page.press("#everything")
    found = json.loads(page.saved("#save-json")[1])["masks"]
    masks = [mask_of(np.array(each["segmentation"]["counts"], np.uint32), (300, 451)) for each in found]
    reference = predictor.everything(CAT, fast=True, points_per_side=16)
    assert len(masks) == len(reference) > 3
    for record in reference:
        assert max(iou(record["segmentation"], mask) for mask in masks) >= SAME
    numbers = np.asarray(page.saved_picture("#save-mask"))
    assert numbers.max() == len(masks)
    page.click(0.5, 0.3)
    assert "photograph" in page.page.inner_text("#found")
    chosen = np.asarray(page.saved_picture("#save-mask"))
    assert max(iou(chosen, mask) for mask in masks) >= SAME
    page.press("#undo")
    assert "objects" in page.page.inner_text("#found")


@pytest.mark.long
def test_classes(visit: Visit, road: str) -> None:
    page = visit(road)
    page.choose(STREET)
    page.press("#tab-segment")
    result = foveal.load("efficientvit_b0.camvid", runtime="onnxruntime")(STREET)
    mask = page.saved_picture("#save-classes")
    assert mask.mode == "P"
    assert (np.asarray(mask) == result.mask).mean() >= 0.995
    assert mask.getpalette()[:33] == np.array(result.palette).ravel().tolist()
    shares = json.loads(page.saved("#save-shares")[1])["classes"]
    for name, share, _ in result.shares():
        assert next(each["share"] for each in shares if each["name"] == name) == pytest.approx(share, abs=0.005)
    legend = page.page.locator("#legend li")
    assert legend.count() == len(result.shares())
    assert legend.first.inner_text().startswith(result.shares()[0][0])
    full = page.overlay()
    assert (full[..., 3] > 0).all()
    legend.first.locator("input").uncheck()
    hidden = (page.overlay()[..., 3] == 0).mean()
    assert hidden == pytest.approx(result.shares()[0][1], abs=0.01)
    legend.first.locator("input").check()
    page.slide("#opacity", 20)
    assert page.overlay()[..., 3].max() == 51
    page.slide("#least", 20)
    large = sum(share for _, share, _ in result.shares() if share >= 0.2)
    assert (page.overlay()[..., 3] > 0).mean() == pytest.approx(large, abs=0.01)
    assert page.saved_picture("#save-overlay").size == result.image.shape[1::-1]


@pytest.mark.long
def test_enlarging(visit: Visit, road: str) -> None:
    page = visit(road)
    page.choose(CAT)
    page.press("#tab-upscale")
    page.press("#upscale")
    large = np.asarray(page.saved_picture("#save-large").convert("RGB"))
    expected = foveal.load("efficientvit_sr.x2", runtime="onnxruntime")(CAT).image
    assert large.shape == expected.shape
    assert np.abs(large.astype(int) - expected).mean() < 1  # decoders, and the borders of tiles
    page.slide("#compare", 25)
    assert page.page.locator("#divider").evaluate("(line) => line.style.left") == "25%"
    covered = (page.overlay()[..., 3] > 0).mean()
    assert covered == pytest.approx(0.25, abs=0.01)
    page.drag((0.25, 0.5), (0.75, 0.5))
    assert float(page.page.input_value("#compare")) == pytest.approx(75, abs=1)
    page.press("#back")
    assert page.page.is_enabled("#upscale")


@pytest.mark.long
def test_a_part_of_a_large_photograph_is_enlarged(visit: Visit, site: str, tmp_path: Path) -> None:
    street = Image.open(STREET)
    street.resize((1500, 1000)).save(tmp_path / "large.png")
    page = visit(site)
    page.choose(tmp_path / "large.png")
    page.press("#tab-upscale")
    page.click(0.0, 0.0)
    page.page.keyboard.press("Enter")
    page.wait()
    large = np.asarray(page.saved_picture("#save-large").convert("RGB"))
    part = np.asarray(Image.open(tmp_path / "large.png"))[:512, :512]
    expected = foveal.load("efficientvit_sr.x2", runtime="onnxruntime")(part).image
    assert np.abs(large.astype(int) - expected).mean() < 0.5


@pytest.mark.long
def test_keys_do_what_clicks_do(visit: Visit, demo: str) -> None:
    page = visit(demo)
    page.choose(CAT)
    page.page.focus("#view")
    for key in ("ArrowRight", "ArrowUp", "Enter"):
        page.page.keyboard.press(key)
    page.wait()
    (point,) = json.loads(page.saved("#save-json")[1])["points"]
    assert point == pytest.approx([225.5 + 4.51, 150 - 4.51], abs=0.02)
    page.page.focus("#view")
    page.page.keyboard.press("Shift+ArrowLeft")
    page.page.keyboard.press("x")
    page.wait()
    assert json.loads(page.saved("#save-json")[1])["labels"] == [1, 0]
    page.page.focus("#view")
    for key in ("Backspace", "b", "Shift+ArrowRight", "Shift+ArrowDown", "b"):
        page.page.keyboard.press(key)
    page.wait()
    record = json.loads(page.saved("#save-json")[1])
    assert record["box"][2] - record["box"][0] == pytest.approx(22.55, abs=0.05)
    page.page.focus("#view")
    page.page.keyboard.press("Escape")
    assert page.page.is_disabled("#save-json")
    page.page.keyboard.press("e")
    page.wait()
    assert "objects" in page.page.inner_text("#found")
    page.page.focus("#tab-prompt")
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    page.wait()
    assert page.page.get_attribute("#tab-segment", "aria-selected") == "true"


@pytest.mark.long
def test_a_photograph_that_is_encoded_late_does_not_replace_the_one_after_it(
    visit: Visit, demo: str, predictor: foveal.Predictor
) -> None:
    """The server answers about the second photograph first; a click then is on the second one."""
    page, held = visit(demo), list[Any]()
    page.page.route("**/encode*", lambda route: route.continue_() if held else held.append(route))
    with page.page.expect_request("**/encode*"):
        page.page.set_input_files("#file", STREET)
    with page.page.expect_response("**/encode*"):
        page.page.set_input_files("#file", CAT)
    held[0].continue_()
    page.wait()
    page.click(0.5, 0.4)
    name, content = page.saved("#save-mask")
    assert name == "cat.mask.png"
    mask = np.asarray(Image.open(io.BytesIO(content)))
    assert iou(mask, expected(predictor, CAT, [[0.5, 0.4]], [1])) >= SAME


@pytest.mark.long
def test_keys_that_take_back_no_more_than_they_should(visit: Visit, demo: str) -> None:
    """Control, Shift and Z together are for redoing; Escape after the first corner of a box forgets the corner only."""
    page = visit(demo)
    page.choose(CAT)
    page.click(0.5, 0.4)
    record = json.loads(page.saved("#save-json")[1])
    assert record["labels"] == [1]
    for keys in (["Control+Shift+Z"], ["b", "Shift+ArrowRight", "Shift+ArrowDown", "Escape"]):
        page.page.focus("#view")
        for key in keys:
            page.page.keyboard.press(key)
        page.wait()
        assert json.loads(page.saved("#save-json")[1]) == record
    page.page.focus("#view")
    page.page.keyboard.press("Escape")
    assert page.page.is_disabled("#save-json")


@pytest.mark.long
def test_the_button_says_how_much_a_model_enlarges(visit: Visit, demo: str) -> None:
    page = visit(demo)
    assert page.page.text_content("#upscale") == "Double its size"

    def answer(route: Any) -> None:
        response = route.fetch()
        content = response.json()
        next(model for model in content["models"] if model["task"] == "upscale")["scale"] = 4
        route.fulfill(response=response, json=content)

    page.page.route("**/api/models", answer)
    page.page.reload()
    page.page.wait_for_selector("html[data-state=ready]")
    page.wait()
    assert page.page.text_content("#upscale") == "Enlarge it 4 times"


@pytest.mark.long
def test_files_come_by_drop_and_paste_and_the_camera(visit: Visit, demo: str) -> None:
    page = visit(demo, has_touch=True)
    page.give("drop", CAT.read_bytes(), "one.jpg", "image/jpeg")
    assert page.page.evaluate("getComputedStyle(stage).getPropertyValue('--ratio')") == str(451 / 300)
    page.give("paste", STREET.read_bytes(), "two.jpg", "image/jpeg")
    page.click(0.5, 0.5)
    assert page.saved("#save-mask")[0] == "two.mask.png"
    page.page.set_input_files("#camera-file", CAT)
    page.wait()
    page.click(0.5, 0.5)
    assert page.saved("#save-mask")[0] == "cat.mask.png"
    assert page.page.get_attribute("#camera-file", "capture") == "environment"


@pytest.mark.long
def test_photographs_are_turned_upright(visit: Visit, road: str, predictor: foveal.Predictor, tmp_path: Path) -> None:
    image = Image.open(CAT).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    page = visit(road)
    page.choose(tmp_path / "turned.jpg")
    page.click(0.5, 0.4)
    mask = np.asarray(page.saved_picture("#save-mask"))
    assert mask.shape == (300, 451)
    assert iou(mask, expected(predictor, tmp_path / "turned.jpg", [[0.5, 0.4]], [1])) >= SAME


@pytest.mark.long
@pytest.mark.parametrize("content", [b"no image", CAT.read_bytes()[:200]], ids=["text", "cut off"])
def test_what_is_no_photograph_is_one_line(visit: Visit, road: str, content: bytes) -> None:
    page = visit(road)
    page.give("drop", content, "notes.jpg", "image/jpeg")
    assert page.error() == "notes.jpg is no image that this browser can read: use JPEG, PNG or WebP."
    page.press("#dismiss")
    assert not page.error()
    page.choose(CAT)  # the page goes on
    assert not page.error()


@pytest.mark.long
def test_photographs_never_leave_the_browser(visit: Visit, site: str) -> None:
    page = visit(site)
    page.choose(CAT)
    page.click(0.5, 0.4)
    page.press("#tab-segment")
    page.saved("#save-classes")
    addresses = [request.url for request in page.requests if not request.url.startswith("blob:")]
    assert len(addresses) > 10
    assert all(address.startswith(site) for address in addresses)
    assert {request.method for request in page.requests} == {"GET"}
    assert all(request.post_data is None for request in page.requests)


@pytest.mark.long
def test_touch_at_360_pixels(visit: Visit, road: str) -> None:
    page = visit(road, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.page.is_visible("#camera")
    page.page.tap('[data-example="examples/cat.jpg"]')
    page.page.wait_for_selector("#view:visible")
    page.wait()
    page.page.touchscreen.tap(*page.place(0.5, 0.4))
    page.page.wait_for_selector("#found:not(:empty)")
    for tab in ("#tab-prompt", "#tab-segment", "#tab-upscale"):
        page.page.tap(tab)
        page.wait()
        assert page.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The code of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "pack", "axe-core@4", "--silent"], cwd=folder, check=True, capture_output=True)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as opened:
        file = opened.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit: Visit, demo: str, axe: str, width: int, scheme: str) -> None:
    """No finding of axe is serious or critical, in any state of the page."""
    page = visit(demo, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page.page.evaluate(axe)

    def check(state: str) -> None:
        found = page.page.evaluate("axe.run()")["violations"]
        bad = {
            each["id"]: [node["html"] for node in each["nodes"]]
            for each in found
            if each["impact"] in ("serious", "critical")
        }
        assert not bad, state

    check("start")
    page.choose(CAT)
    check("photograph")
    page.click(0.5, 0.4)
    check("mask")
    page.press("#tab-segment")
    check("classes")
    page.press("#tab-upscale")
    page.press("#upscale")
    check("enlarged")
    page.give("drop", b"no image", "notes.txt", "text/plain")
    check("error")


@pytest.mark.long
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_photographs_are_resized_as_by_pillow(visit: Visit, demo: str, name: str) -> None:
    """Bit for bit."""
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    pixels = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    code = """async ([values, width, height, toWidth, toHeight, name]) => {
        const { resize } = await import("./resample.js");
        return Array.from(resize({ data: Uint8Array.from(values), width, height }, toWidth, toHeight, name).pixels);
    }"""
    page = visit(demo)
    for width, height in ((61, 40), (200, 130)):
        found = page.page.evaluate(code, [pixels.ravel().tolist(), 140, 90, width, height, name])
        expected = Image.fromarray(image).resize((width, height), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(np.reshape(found, (height, width, 3)), expected)
