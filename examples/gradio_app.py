"""Click on a photograph in a browser to cut out an object.

pip install 'foveal[gradio]'
python gradio_app.py
"""

from functools import lru_cache

import gradio as gr
import numpy as np

import foveal

predictor = foveal.load("tf_efficientnet_lite0.sam")


@lru_cache(maxsize=8)
def encode(pixels: bytes, height: int, width: int):
    """The embedding of an image: computed once for all clicks on it."""
    return predictor.encode(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))


def cut_out(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The object at a point, on a transparent background, (H, W, 4) uint8."""
    try:
        result = encode(image.tobytes(), *image.shape[:2]).prompt(points=[[x, y]], labels=[1])
    except foveal.FovealError as error:
        raise gr.Error(str(error)) from None
    return np.dstack([image, np.where(result.best, 255, 0).astype(np.uint8)])


def place(event: gr.SelectData) -> tuple[int, int]:
    return event.index


with gr.Blocks(title="Click to cut out") as app:
    gr.Markdown("Drop a photograph at the left, then click on an object.")
    with gr.Row():
        photograph = gr.Image(type="numpy", image_mode="RGB", label="photograph")
        result = gr.Image(format="png", label="cut out", interactive=False)
    with gr.Row():
        x, y = gr.Number(label="column", precision=0), gr.Number(label="row", precision=0)
    # Programs call the same: gradio_client.Client(URL).predict(handle_file("a.jpg"), 437, 560, api_name="/cut_out")
    click = photograph.select(place, None, [x, y], api_name=False)
    click.then(cut_out, [photograph, x, y], result, api_name="cut_out")

if __name__ == "__main__":
    app.launch(show_error=True)
