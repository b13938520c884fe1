"""Cut out objects by clicks in napari: points of the layer "clicks" become a mask in the layer "object".

pip install foveal 'napari[all]'
python napari_clicks.py IMAGE

Add points with the tool of the layer "clicks". Points of the layer "background" are not part of the object.
"""

import sys

import napari
import numpy as np
from napari.components import ViewerModel
from PIL import Image, ImageOps

import foveal


def add_clicks(viewer: ViewerModel, image: np.ndarray, model: str = "tf_efficientnet_lite0.sam") -> None:
    """Show an image with layers for clicks and for the object at them.

    Args:
        viewer: of napari.
        image: (H, W, 3) uint8.
    """
    embedding = foveal.load(model).encode(image)
    viewer.add_image(image, name="image")
    mask = viewer.add_labels(np.zeros(image.shape[:2], np.uint8), name="object")
    background = viewer.add_points(name="background", face_color="red", ndim=2)
    clicks = viewer.add_points(name="clicks", face_color="lime", ndim=2)

    def update() -> None:
        points = np.concatenate([clicks.data, background.data])[:, ::-1]  # napari counts rows first
        if not len(clicks.data):
            mask.data = np.zeros_like(mask.data)
            return
        labels = [1] * len(clicks.data) + [0] * len(background.data)
        mask.data = embedding.prompt(points=points, labels=labels).best.astype(np.uint8)

    for layer in (clicks, background):
        layer.events.data.connect(update)


if __name__ == "__main__":
    window = napari.Viewer()
    add_clicks(window, np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")))
    napari.run()
