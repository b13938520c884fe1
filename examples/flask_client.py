"""A web page that sends photographs to `foveal serve` and shows the classes over them.

pip install flask requests
foveal serve efficientvit_b0.camvid
flask --app flask_client run --port 5000

The service runs elsewhere: FOVEAL_URL is its address, FOVEAL_MODEL the model, FOVEAL_KEY its key if it has one.
"""

import os
import time

import requests
from flask import Flask, Response, request

SERVICE = os.environ.get("FOVEAL_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("FOVEAL_MODEL", "efficientvit_b0.camvid")
KEY = os.environ.get("FOVEAL_KEY")

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 32 * 1024 * 1024

FORM = """<!doctype html><meta name="viewport" content="width=device-width"><title>Classes of a photograph</title>
<form method="post" action="/overlay" enctype="multipart/form-data">
<input type="file" name="photo" accept="image/*" required> <button>Segment</button></form>"""


@app.get("/")
def form() -> str:
    return FORM


@app.post("/overlay")
def overlay() -> Response:
    """The photograph with its classes as a JPEG; what the service refuses is answered with its own words."""
    answer = ask("predict", request.files["photo"].read(), format="overlay", alpha=0.5)
    if answer.ok:
        return Response(answer.content, content_type=answer.headers["Content-Type"])
    return Response(answer.json()["error"], status=answer.status_code, content_type="text/plain")


@app.post("/shares")
def shares() -> dict[str, float]:
    """The share of each class, as JSON."""
    answer = ask("predict", request.files["photo"].read())
    answer.raise_for_status()
    return {entry["name"]: entry["share"] for entry in answer.json()["classes"]}


def ask(call: str, image: bytes, **options: object) -> requests.Response:
    """Send the bytes of an image file to the service."""
    headers = {"Content-Type": "application/octet-stream"}
    if KEY:
        headers["Authorization"] = f"Bearer {KEY}"
    address = f"{SERVICE}/api/{MODEL}/{call}"
    answer = requests.post(address, image, headers=headers, params=options, timeout=60)
    if answer.status_code == 503:  # busy: once more, when the service says so
        time.sleep(float(answer.headers.get("Retry-After", 1)))
        answer = requests.post(address, image, headers=headers, params=options, timeout=60)
    return answer
