"""A backend of Label Studio: what annotators click on or draw a box around becomes a brush mask.

pip install foveal flask requests
export LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=...   # from Account & Settings
flask --app label_studio_backend run --port 9090

In the project: Settings > Model > Connect Model, http://localhost:9090, interactive preannotations on. Labels:

<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="object"/></BrushLabels>
  <KeyPointLabels name="click" toName="image"><Label value="object" smart="true"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image"><Label value="object" smart="true"/></RectangleLabels>
</View>

Images are fetched from Label Studio alone, with its key; addresses of other hosts are refused.
"""

import os
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

import numpy as np
import requests
from flask import Flask, abort, jsonify, request

import foveal

STUDIO = os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080")
KEY = os.environ.get("LABEL_STUDIO_API_KEY", "")
LARGEST = 64 * 1024 * 1024  # bytes of an image file

app = Flask(__name__)
predictor = foveal.load("tf_efficientnet_lite0.sam")


@app.get("/health")
@app.get("/")
def health():
    return jsonify(status="UP", model_class="Foveal")


@app.post("/setup")
def setup():
    return jsonify(model_version=predictor.info.ref)


@app.post("/webhook")
def webhook():
    return jsonify(status="ignored")  # this backend does not learn from annotations


@app.post("/predict")
def predict():
    """One mask for each task from the clicks and boxes of the annotator; none before there are any."""
    body = request.get_json()
    drawn = ((body.get("params") or {}).get("context") or {}).get("result") or []
    if not drawn:
        return jsonify(results=[{"result": [], "score": 0} for _ in body["tasks"]])
    return jsonify(results=[annotate(task["data"]["image"], drawn) for task in body["tasks"]])


def annotate(address: str, drawn: list[dict]) -> dict:
    """The prediction for an image, in Label Studio's form."""
    width, height = drawn[0]["original_width"], drawn[0]["original_height"]
    points, labels, boxes, name = [], [], [], "object"
    for region in drawn:
        value, kind = region["value"], region["type"]
        name = value[kind][0] if value.get(kind) else name
        x, y = value["x"] * width / 100, value["y"] * height / 100  # Label Studio counts in percent
        if kind == "keypointlabels":
            points.append([x, y])
            labels.append(int(region.get("is_positive", 1)))
        elif kind == "rectanglelabels":
            boxes.append([x, y, x + value["width"] * width / 100, y + value["height"] * height / 100])
    try:
        prompt = {"points": points, "labels": labels} if points else {}
        result = embedding(address).prompt(**prompt, **({"boxes": boxes[-1]} if boxes else {}))
    except foveal.FovealError as error:
        abort(422, str(error))
    region = {
        "from_name": "mask",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush(result.best), "brushlabels": [name]},
    }
    score = float(result.iou.max())
    return {"result": [{**region, "score": score}], "score": score, "model_version": predictor.info.ref}


@lru_cache(maxsize=8)
def embedding(address: str):
    """The embedding of an image of Label Studio: computed once for all clicks on it."""
    full = urljoin(STUDIO, address)
    if urlsplit(full)[:2] != urlsplit(STUDIO)[:2]:
        abort(403, f"{full} is not on {STUDIO}")
    answer = requests.get(
        full, headers={"Authorization": f"Token {KEY}"}, timeout=30, stream=True, allow_redirects=False
    )
    answer.raise_for_status()
    content = answer.raw.read(LARGEST + 1, decode_content=True)
    if len(content) > LARGEST:
        abort(413, f"{full} is larger than {LARGEST} bytes")
    return predictor.encode(content)


def brush(mask: np.ndarray) -> list[int]:
    """A mask (H, W) as Label Studio's brush: run lengths of the bytes of an RGBA image, packed as bits.

    32 bits: the number of bytes; 5 bits: the size of a byte less one; four times 4 bits: the sizes of numbers less one.
    Then runs: a bit 1, two bits for the size of the number, its length less one, and the byte that repeats.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * 4  # red, green, blue and alpha are equal
    bits = [f"{flat.size * 4:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (4, 8, 12, 16))]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        while length:
            part = min(length, 65536)
            bits.append(f"111{part - 1:016b}{255 * int(flat[start]):08b}")
            length -= part
    packed = "".join(bits)
    packed += "0" * (-len(packed) % 8)
    return [int(packed[at : at + 8], 2) for at in range(0, len(packed), 8)]
