"""What a service answers: the results of ``foveal.load``, in every format, for every way to send an image."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.images import regions
from foveal.info import ModelInfo
from foveal.prediction.batching import Batches
from foveal.serving.calls import Served
from foveal.serving.limits import Limits
from foveal.serving.models import describe
from helpers.pictures import encoded, png, tiff
from helpers.services import Running, form

SEGMENT = "/api/efficientvit_b0.camvid/predict"


@pytest.fixture(scope="module")
def expected(photo: bytes) -> Any:
    """The result without a service."""
    return foveal.load("efficientvit_b0.camvid", runtime="onnxruntime", threads=1)(photo)


def pixels_of(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image)


def test_models_are_described(service: Running) -> None:
    reply = service.get("/api/models")
    segmenter, upscaler = reply.json["models"]
    assert (segmenter["name"], segmenter["task"], segmenter["calls"]) == (
        "efficientvit_b0.camvid",
        "segment",
        ["predict"],
    )
    assert segmenter["classes"][0] == {"name": "sky", "colour": [128, 128, 128]}
    assert (upscaler["name"], upscaler["ref"], upscaler["scale"]) == ("up", "efficientvit_sr.x2", 2)
    assert reply.json["limits"]["pixels"] == 50_000_000


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_classes_of_pixels_have_colours_without_a_palette(task: str) -> None:
    """Those in which the masks are drawn; classes of images need none."""
    predictor = foveal.Predictor(lambda batch: batch, ModelInfo("plain", task, 3), "")
    served = Served("plain", predictor, Batches(predictor.runner, predictor.prepare, 1))
    (model,) = describe({"plain": served}, Limits())["models"]
    assert [each["name"] for each in model["classes"]] == ["class 0", "class 1", "class 2"]
    colours = [tuple(each["colour"]) for each in model["classes"] if "colour" in each]
    assert len(set(colours)) == (3 if task == "segment" else 0)


@pytest.mark.parametrize("path", ["/", "/main.js", "/site.json"])
def test_browsers_ask_whether_the_page_has_changed(service: Running, path: str) -> None:
    reply = service.get(path)
    assert (reply.status, reply.headers["cache-control"]) == (200, "no-cache")


def test_a_service_of_exported_files_imports_no_torch(service: Running) -> None:
    if sys.platform != "linux":
        pytest.skip("the files that a process has mapped are read from /proc")
    with open(f"/proc/{service.process.pid}/maps", encoding="utf-8") as maps:
        assert "libtorch" not in maps.read()


def test_masks_are_those_of_a_predictor(service: Running, photo: bytes, expected: Any) -> None:
    reply = service.post(f"{SEGMENT}?format=png", photo)
    assert reply.headers["content-type"] == "image/png"
    assert (pixels_of(reply.body) == expected.mask).all()


def test_every_way_to_send_an_image_gives_the_same(service: Running, photo: bytes, expected: Any) -> None:
    body, kind = form(photo, format="png", timeout="20")
    text = base64.b64encode(photo).decode()
    replies = [
        service.post(SEGMENT, photo, "image/png", Accept="image/png"),
        service.post(f"{SEGMENT}?format=png", photo, "application/x-www-form-urlencoded"),
        service.post(SEGMENT, body, kind),
        service.post_json(SEGMENT, {"image": text, "format": "png"}),
        service.post_json(SEGMENT, {"image": f"data:image/png;base64,{text}", "format": "png"}),
    ]
    assert [reply.status for reply in replies] == [200] * 5
    assert {reply.body for reply in replies} == {replies[0].body}
    assert (pixels_of(replies[0].body) == expected.mask).all()


def test_json_has_shares_and_the_runs_of_each_class(service: Running, photo: bytes, expected: Any) -> None:
    content = service.post(SEGMENT, photo).json
    assert (content["width"], content["height"]) == (160, 96)
    named = {name: share for name, share, _ in expected.shares()}
    assert {each["name"]: each["share"] for each in content["classes"]} == pytest.approx(named, abs=1e-6)
    runs = service.post(f"{SEGMENT}?format=rle", photo).json
    mask = np.full((96, 160), 255, np.uint8)
    for each in runs["classes"]:
        mask[regions.decoded(each["rle"])] = each["index"]
    assert (mask == expected.mask).all()


def test_polygons_cover_the_pixels_of_their_classes(service: Running, photo: bytes, expected: Any) -> None:
    reply = service.post(SEGMENT, photo, Accept="application/geo+json")
    assert reply.headers["content-type"] == "application/geo+json"
    areas = dict.fromkeys(range(len(expected.names)), 0)
    for feature in reply.json["features"]:
        areas[feature["properties"]["class"]] += feature["properties"]["pixels"]
    counts = np.bincount(expected.mask.ravel(), minlength=len(expected.names))
    assert areas == dict(enumerate(counts.tolist()))


def test_overlays_are_drawn_with_the_opacity(service: Running, photo: bytes) -> None:
    reply = service.post(f"{SEGMENT}?format=overlay&alpha=0", photo)
    assert reply.headers["content-type"] == "image/jpeg"
    assert np.abs(pixels_of(reply.body).astype(int) - pixels_of(photo)).mean() < 4, "JPEG's loss alone"


def test_upscaled_images_are_those_of_a_predictor(service: Running, photo: bytes) -> None:
    result = foveal.load("efficientvit_sr.x2", runtime="onnxruntime", threads=1)(photo)
    reply = service.post("/api/up/predict", photo)
    assert (pixels_of(reply.body) == result.image).all()
    content = service.post("/api/up/predict?format=json", photo).json
    assert (content["width"], content["height"], content["scale"]) == (320, 192, 2)
    assert base64.b64decode(content["image"]) == reply.body


def test_orientation_is_applied(service: Running, photo: bytes) -> None:
    with Image.open(io.BytesIO(photo)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = encoded(image, "JPEG", exif=exif)
    content = service.post(SEGMENT, turned).json
    assert (content["width"], content["height"]) == (96, 160)


# ---- mistakes


@pytest.mark.parametrize(
    ("path", "options", "status", "words"),
    [
        ("/api/efficientvit_b0.camvi/predict", "", 404, "did you mean 'efficientvit_b0.camvid'?"),
        ("/api/efficientvit_b0.camvid/encode", "", 404, "is for 'segment': it has predict, not 'encode'"),
        ("/api/efficientvit_b0.camvid/nothing", "", 404, "no such address"),
        (SEGMENT, "?alpha=2", 422, "alpha: input should be less than or equal to 1"),
        (SEGMENT, "?alfa=1", 422, "unknown option 'alfa'; did you mean 'alpha'?"),
        (SEGMENT, "?top=3", 422, "unknown option 'top'"),
        (SEGMENT, "?format=pgn", 422, "format 'pgn'; did you mean 'png'?"),
        (SEGMENT, "?timeout=0", 422, "timeout: input should be greater than 0"),
        (SEGMENT, "?embedding=abc", 422, "give an image, and only one"),
    ],
)
def test_mistakes_get_one_line(
    service: Running, photo: bytes, path: str, options: str, status: int, words: str
) -> None:
    reply = service.post(path + options, photo)
    assert reply.status == status
    assert words in reply.error


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 422, "give an image, and only one"),
        (b"hello", 422, "image: not an image in a supported format"),
        (png(20_000, 20_000), 413, "20000x20000 is 400 megapixels, above this service's limit of 50: shrink it"),
        (png(65_535, 65_535), 413, "65535x65535 is 4295 megapixels, above this service's limit"),
        (png(64, 64), 422, "image: damaged or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 422, "not an image in a supported format"),
        (tiff(1, 1, 32, np.float32(np.nan).tobytes(), kind=3), 422, "floating-point image; its range is unknown"),
        (npy(np.full((8, 8, 3), np.nan, np.float32)), 422, "array of float32"),
    ],
)
def test_images_that_cannot_be_used_get_the_commands_line(
    service: Running, content: bytes, status: int, words: str
) -> None:
    reply = service.post(SEGMENT, content)
    assert reply.status == status
    assert words in reply.error


def test_a_truncated_photograph_is_refused(service: Running, photo: bytes) -> None:
    reply = service.post(SEGMENT, photo[: len(photo) // 2])
    assert reply.status == 422
    assert "damaged or truncated" in reply.error


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "the body is no JSON"),
        (b"[]", "application/json", 400, "the body is no JSON object"),
        (b'{"image": 5}', "application/json", 422, "image: give the file in base64"),
        (b'{"image": "***"}', "application/json", 422, "image: no valid base64"),
        (b'{"a": 1, "a": 2}', "application/json", 400, "key 'a' is there twice"),
        (b"[" * 10_000, "application/json", 400, "nested deeper"),
        (b'{"points": [' + b"0," * 200_000 + b"0]}", "application/json", 413, "values in JSON"),
        (b"\xff\xfe", "application/json", 400, "the body is no JSON"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400, "the form cannot be read"),
        (b"nonsense", "multipart/form-data", 400, "the form cannot be read: Missing boundary"),
        (form(b"a")[0].replace(b'name="image"', b'name="photo"'), form(b"")[1], 400, "name the field of the image"),
        (b"<a/>", "text/xml", 415, "Content-Type 'text/xml'"),
    ],
)
def test_bodies_that_cannot_be_read_get_one_line(
    service: Running, body: bytes, kind: str, status: int, words: str
) -> None:
    reply = service.post(SEGMENT, body, kind)
    assert reply.status == status
    assert words in reply.error


def test_compressed_bodies_are_refused(service: Running) -> None:
    reply = service.post(SEGMENT, b"x", Content_Encoding="gzip")
    assert reply.status == 415
    assert "Content-Encoding 'gzip'" in reply.error


def test_an_option_twice_is_refused(service: Running, photo: bytes) -> None:
    body, kind = form(photo, format="png")
    assert service.post(f"{SEGMENT}?format=png", body, kind).status == 400
    reply = service.post(f"{SEGMENT}?format=png&format=json", photo)
    assert (reply.status, "'format' is in the query twice" in reply.error) == (400, True)


def test_a_format_that_is_no_text_is_refused(service: Running) -> None:
    reply = service.post_json(SEGMENT, {"image": "", "format": ["png"]})
    assert reply.status == 422
    assert "format" in reply.error


def test_images_are_not_read_from_paths_and_addresses(service: Running) -> None:
    for url in ("http://127.0.0.1/a.png", "file:///etc/passwd", "https://example.org/a.png"):
        reply = service.post_json(SEGMENT, {"url": url})
        assert reply.status == 422
        assert "this service takes no addresses" in reply.error


def test_the_log_has_a_line_per_request_without_content(photo: bytes) -> None:
    import json

    from helpers.services import running

    secret = base64.b64encode(photo).decode()
    with running("efficientvit_b0.camvid", "--runtime", "onnxruntime") as service:
        service.post_json(f"{SEGMENT}?format=png", {"image": secret})
        service.get('/a"b%0ac')
        service.end()
    lines = [json.loads(line) for line in service.log]
    requests = [line for line in lines if line.get("event") == "request"]
    assert [line["status"] for line in requests] == [200, 400]
    assert requests[0]["pixels"] == 160 * 96
    assert secret[:40] not in "".join(service.log)
    assert not [line for line in lines if line["level"] != "info"]
