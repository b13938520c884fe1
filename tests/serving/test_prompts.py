"""Promptable models behind a service: the masks of a predictor, embeddings by content hash, all masks."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.images import regions
from foveal.images.sam_frame import at_image_size, logits_size
from helpers import browser
from helpers.pictures import encoded
from helpers.services import Running, running

CALL = "/api/sam"
POINT = [[80, 48]]


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """The bundled model as without torch, with room for two embeddings."""
    with running("sam=tf_efficientnet_lite0.sam", "--embeddings", "9", "--runtime", "onnxruntime") as started:
        yield started


@pytest.fixture(scope="module")
def model() -> foveal.Predictor:
    return foveal.load("tf_efficientnet_lite0.sam", runtime="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def embedding(model: foveal.Predictor, photo: bytes) -> Any:
    return model.encode(photo)


def test_an_image_is_encoded_once(service: Running) -> None:
    """An image that no other test sends."""
    photo = encoded(Image.new("RGB", (160, 96), "teal"), "PNG")
    first, second = service.post(f"{CALL}/encode", photo).json, service.post(f"{CALL}/encode", photo).json
    assert first["embedding"] == second["embedding"] == hashlib.sha256(photo).hexdigest()
    assert (first["width"], first["height"], first["cached"], second["cached"]) == (160, 96, False, True)


def test_masks_are_those_of_a_predictor(service: Running, photo: bytes, embedding: Any) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    expected = embedding.prompt(POINT, [1])
    content = service.post_json(f"{CALL}/prompt", {"embedding": name, "points": POINT}).json
    assert (content["width"], content["height"], content["embedding"]) == (160, 96, name)
    assert content["best"] == int(expected.iou.argmax())
    for found, mask, iou in zip(content["masks"], expected.masks, expected.iou, strict=True):
        assert (regions.decoded(found["rle"]) == mask).all()
        assert found["area"] == mask.sum()
        assert found["iou"] == pytest.approx(float(iou), abs=1e-5)
        if mask.any():
            x, y, width, height = found["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert mask[y].any()
            assert mask[:, x].any()


def test_every_form_of_a_prompt_gives_the_same(service: Running, photo: bytes) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    text = base64.b64encode(photo).decode()
    replies = [
        service.post_json(f"{CALL}/prompt", {"embedding": name, "points": POINT, "labels": [1]}),
        service.post_json(f"{CALL}/prompt", {"image": text, "points": POINT}),
        service.post(f"{CALL}/prompt?points=[[80,48]]", photo),
        service.post(f"{CALL}/prompt?points=[[80,48]]&embedding={name}"),
    ]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1


def test_formats_of_one_mask(service: Running, photo: bytes, embedding: Any) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    mask = embedding.prompt(POINT, [1]).masks[2]
    asked = {"embedding": name, "points": POINT, "index": 2}
    reply = service.post_json(f"{CALL}/prompt?format=png", asked)
    with Image.open(io.BytesIO(reply.body)) as image:
        assert (np.asarray(image) == mask).all()
    assert reply.headers["x-foveal-index"] == "2"
    assert (regions.decoded(service.post_json(f"{CALL}/prompt?format=rle", asked).json) == mask).all()
    features = service.post_json(f"{CALL}/prompt?format=polygons", asked).json["features"]
    assert sum(each["properties"]["pixels"] for each in features) == mask.sum()


def test_logits_are_those_of_the_masks(service: Running, photo: bytes, embedding: Any) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    expected = embedding.prompt(POINT, [1])
    asked = {"embedding": name, "points": POINT, "format": "logits"}
    reply = service.post_json(f"{CALL}/prompt", asked)
    assert reply.headers["content-type"] == "application/octet-stream"
    shape = [int(part) for part in reply.headers["x-foveal-shape"].split(",")]
    assert shape == [3, *logits_size(expected.size)]
    np.testing.assert_allclose(np.array(reply.headers["x-foveal-iou"].split(","), float), expected.iou, atol=1e-5)
    roots = np.frombuffer(reply.body, np.int8).reshape(shape).astype(np.float32)
    logits, (rows, columns) = np.zeros_like(expected.low_res[0]), shape[1:]
    logits[:, :rows, :columns] = np.sign(roots) * 8 * (roots / 127) ** 2
    cut = expected.low_res[0][:, :rows, :columns].clip(-8, 8)
    np.testing.assert_allclose(logits[:, :rows, :columns], cut, atol=0.07)  # half of the largest step
    masks = at_image_size(logits, expected.size) > 0
    for found, mask in zip(masks, expected.masks, strict=True):
        assert browser.iou(found, mask) >= 0.98
    one = service.post_json(f"{CALL}/prompt", {**asked, "index": 1})
    assert np.frombuffer(one.body, np.int8).tolist() == roots[1].ravel().tolist()
    boxes = {"embedding": name, "format": "logits", "boxes": [[10, 10, 60, 60], [40, 20, 150, 90]]}
    several = service.post_json(f"{CALL}/prompt", boxes)
    assert several.headers["x-foveal-shape"].startswith("2,")
    refused = service.post_json(f"{CALL}/prompt", {**asked, "max_side": 80})
    assert (refused.status, refused.error.partition(":")[0]) == (422, "max_side")


@pytest.mark.parametrize(
    "size", [(96, 160), (160, 96), (1, 1), (1, 4000), (768, 1024), (765, 1024), (767, 1024), (3, 5)]
)
def test_the_cut_of_logits_is_what_masks_need(size: tuple[int, int]) -> None:
    """What is cut off has no influence, and of images that are not tiny all else has one."""
    rows, columns = logits_size(size)
    logits = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    changed = logits.copy()
    changed[rows:], changed[:, columns:] = 100, 100
    np.testing.assert_array_equal(at_image_size(changed, size), at_image_size(logits, size))
    if min(size) > 90:
        last = np.zeros((256, 256), np.float32)
        last[rows - 2 :, columns - 2 :] = 100
        assert at_image_size(last, size)[-1, -1] > 0


def test_boxes_of_several_objects(service: Running, photo: bytes, embedding: Any) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    boxes = [[10, 10, 60, 60], [40, 20, 150, 90]]
    expected = embedding.prompt(boxes=boxes, multimask=False)
    masks = service.post_json(f"{CALL}/prompt", {"embedding": name, "boxes": boxes}).json["masks"]
    assert len(masks) == 2
    for found, mask in zip(masks, expected.best, strict=True):
        assert (regions.decoded(found["rle"]) == mask).all()
    one = service.post_json(f"{CALL}/prompt", {"embedding": name, "box": boxes[0]}).json
    assert one["masks"][0]["area"] == embedding.prompt(boxes=boxes[0], multimask=False).best.sum()


def test_masks_may_be_smaller_than_the_image(service: Running, photo: bytes) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    content = service.post_json(f"{CALL}/prompt", {"embedding": name, "points": POINT, "max_side": 80}).json
    assert (content["width"], content["height"]) == (80, 48)
    assert content["masks"][0]["rle"]["size"] == [48, 80]


def test_embeddings_make_room(service: Running, photo: bytes) -> None:
    names = []
    for value in range(3):
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (value, 0, 0)).save(file, "PNG")
        names.append(service.post(f"{CALL}/encode", file.getvalue()).json["embedding"])
    replies = [service.post_json(f"{CALL}/prompt", {"embedding": name, "points": [[9, 9]]}) for name in names]
    assert [reply.status for reply in replies] == [404, 200, 200]
    assert "encode the image again" in replies[0].error
    assert service.metric("foveal_embedding_bytes") <= 9 << 20


def test_all_masks(service: Running, photo: bytes, model: foveal.Predictor) -> None:
    options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 2, "fast": False}
    expected = model.everything(photo, **options)
    query = "&".join(f"{name}={value}" for name, value in options.items())
    content = service.post(f"{CALL}/everything?{query}", photo).json
    assert [mask["area"] for mask in content["masks"]] == [record["area"] for record in expected]
    assert content["prompts"] == expected.prompts
    for found, record in zip(content["masks"], expected, strict=True):
        assert (regions.decoded(found["rle"]) == record["segmentation"]).all()
    reply = service.post(f"{CALL}/everything?{query}&format=png", photo)
    with Image.open(io.BytesIO(reply.body)) as image:
        covered = np.asarray(image) > 0
    assert (covered == np.any([record["segmentation"] for record in expected], axis=0)).all()
    smaller = service.post(f"{CALL}/everything?{query}&max_side=80", photo).json
    assert (smaller["width"], smaller["height"]) == (80, 48)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no prompt: give points, box or boxes"),
        ({"points": [[80, 48]], "labels": [1, 0]}, "give one for each point"),
        ({"points": [[80, 480]]}, "point 80,480 is outside of the image of 160x96 pixels"),
        ({"points": [80, 48]}, "points[0]: give a list of numbers"),
        ({"points": "[[80"}, "points: not JSON"),
        ({"points": [[1, 1]] * 65}, "points: give at most 64"),
        ({"points": [[80]]}, "give x and y of each"),
        ({"points": [[80, 48], [1]]}, "points: give numbers"),
        ({"points": [["a", 48]]}, "points[0][0]: input should be a valid number"),
        ({"labels": [1]}, "no prompt"),
        ({"box": [1, 2, 3]}, "box: give at least 4"),
        ({"box": [60, 10, 10, 60]}, "give the left top corner, then the right bottom one"),
        ({"box": [1, 2, 3, 4], "boxes": [[1, 2, 3, 4]]}, "leave out points and box"),
        ({"points": [[80, 48]], "index": 3}, "index: input should be less than or equal to 2"),
        ({"box": [1, 2, 30, 40], "index": 1}, "index=1: there is one mask"),
        ({"points": [[1e400, 48]]}, "not all of them are finite"),
        ({"pionts": [[80, 48]]}, "unknown option 'pionts'; did you mean 'points'?"),
    ],
)
def test_mistakes_get_one_line(service: Running, photo: bytes, options: dict[str, Any], words: str) -> None:
    name = service.post(f"{CALL}/encode", photo).json["embedding"]
    reply = service.post_json(f"{CALL}/prompt", {"embedding": name, **options})
    assert reply.status == 422
    assert words in reply.error


def test_everything_needs_the_image(service: Running, photo: bytes) -> None:
    reply = service.post(f"{CALL}/everything?embedding={'0' * 64}")
    assert reply.status == 422
    assert "this call needs the image itself" in reply.error
