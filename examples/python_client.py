"""Segment an image with an exported ONNX file, without Foveal and without torch.

pip install onnxruntime pillow numpy
python python_client.py MODEL.onnx IMAGE MASK.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, image_file, mask_file = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
if facts["task"] != "segment" or facts["layout"] != "NCHW":
    sys.exit(f"{model}: this example is for segmentation models that were exported without --bake")
if facts.get("image_type", "uint8") != "uint8":
    sys.exit(f"{model}: this example reads images of 8 bits, the model takes {facts['image_type']}")
image = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
if facts["resize"].startswith("longest side at most "):
    scale = min(1, int(facts["resize"].split()[-1]) / max(image.size))
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
else:
    small = image
mean, std = (np.array(facts[key].split(", "), np.float32) for key in ("mean", "std"))
pixels = (np.asarray(small, np.float32) / 255 - mean) / std
logits = np.asarray(session.run(["logits"], {"image": pixels.transpose(2, 0, 1)[None]})[0])[0]
stride = int(facts["output_stride"])
covered = (0, 0, small.width / stride, small.height / stride)  # the last position may reach beyond the image
planes = [Image.fromarray(plane).resize(image.size, Image.Resampling.BILINEAR, covered) for plane in logits]
mask = Image.fromarray(np.argmax([np.asarray(plane) for plane in planes], axis=0).astype(np.uint8))
if facts["palette"]:
    mask.putpalette(bytes.fromhex(facts["palette"].replace("#", "").replace(", ", "")))
mask.save(mask_file)
names = facts["names"].split(", ")
for index, count in enumerate(mask.histogram()[: len(names)]):
    print(f"{names[index]}: {count / (mask.width * mask.height):.1%}")
