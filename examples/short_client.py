"""Segment an image with an ONNX file that holds the preparation, without Foveal and without torch.

foveal export efficientvit_b0.camvid --bake --size 512x1024 --output camvid.onnx
pip install onnxruntime pillow numpy
python short_client.py camvid.onnx IMAGE MASK.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, image_file, mask_file = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
if (facts["task"], facts["input_type"]) != ("segment", "uint8"):
    sys.exit(f"{model}: this example is for segmentation models that were exported with --bake")
image = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
classes = session.run(["classes"], {"image": np.asarray(image)[None]})[0][0]
Image.fromarray(classes.astype(np.uint8)).save(mask_file)  # the index of a class for each pixel
for index, name in enumerate(facts["names"].split(", ")):
    print(f"{name}: {(classes == index).mean():.1%}")
