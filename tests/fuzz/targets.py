"""Everything that reads a file: how a good input is written, and what a user does with it."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import foveal
from foveal.batch.inputs import Search, find
from foveal.batch.plan import divide
from foveal.batch.reading import read_part
from foveal.config import build_config, read_yaml
from foveal.data.check import check_data
from foveal.data.class_map import read_class_map
from foveal.data.labelled import LabelledTask, open_labelled
from foveal.data.synthetic import NAMES, shapes_sample, write_shapes
from foveal.images import rasters
from foveal.images.bands import RGB
from foveal.images.exr import read_exr, write_exr
from foveal.images.reading import read_image, read_mask
from foveal.images.tiff_writing import TiffImage, write_tiff
from foveal.images.zarr_writing import write_zarr
from foveal.training.config import TrainConfig
from helpers.narrow import Plain

LABELLED: tuple[LabelledTask, ...] = ("segment", "classify", "regress")
PHOTO, MASK = shapes_sample(np.random.default_rng(0), (40, 56))


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        write: writes a good input into an empty folder.
        use: reads the input in a folder and uses what was read, as a user would.
        damage: pattern of the files to damage.
    """

    write: Callable[[Path], None]
    use: Callable[[Path], Any]
    damage: str = "**/*"

    def files(self, folder: Path) -> list[Path]:
        """The files of an input that may be damaged."""
        return sorted(path for path in folder.glob(self.damage) if path.is_file())


# ---- images and masks

_IMAGES: dict[str, dict[str, Any]] = {
    "photo.jpg": {},
    "progressive.jpg": {"progressive": True},
    "photo.png": {},
    "photo.webp": {"lossless": True},
    "photo.bmp": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "raw.tif": {},
}


def _write_images(folder: Path) -> None:
    for name, options in _IMAGES.items():
        Image.fromarray(PHOTO).save(folder / name, **options)
    Image.fromarray(np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)).save(folder / "grey16.png")
    Image.fromarray(PHOTO).convert("P").save(folder / "palette.png")
    Image.fromarray(PHOTO).convert("P").save(folder / "runs.bmp")
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., :1]])).save(folder / "alpha.png")


def _read_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        image = read_image(path)
        assert (image.dtype, image.shape[2]) == (np.uint8, 3)
        read_image(path.read_bytes(), name=path.name, allow_truncated=True)


def _write_masks(folder: Path) -> None:
    Image.fromarray(MASK).save(folder / "grey.png")
    palette = Image.fromarray(MASK)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128])
    palette.save(folder / "palette.png")
    Image.fromarray(MASK).save(folder / "grey.tif", compression="tiff_lzw")


def _read_masks(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        assert read_mask(path).ndim == 2


# ---- maps of values


def _write_exr(folder: Path) -> None:
    import OpenEXR

    values = np.random.default_rng(0).normal(2, 1, (40, 56)).astype(np.float32)
    kinds = ("NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
    for number, kind in enumerate(kinds):
        header = {"compression": getattr(OpenEXR, f"{kind}_COMPRESSION"), "type": OpenEXR.scanlineimage}
        if number % 3 == 2:
            tiles = OpenEXR.TileDescription()
            tiles.xSize, tiles.ySize = 16, 16
            header |= {"type": OpenEXR.tiledimage, "tiles": tiles}
        plain: Any = {"Y": values} if number % 2 else {name: values.astype(np.float16) for name in "XYZ"}
        OpenEXR.File(header, plain).write(str(folder / f"{kind}.exr"))


def _read_exr(folder: Path) -> None:
    """Read every file; what one of them has is read or refused independently of the others."""
    errors = []
    for path in sorted(folder.iterdir()):
        try:
            values = read_exr(path)
            assert (values.dtype, values.ndim) == (np.float32, 3)
        except foveal.InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _write_maps(folder: Path) -> None:
    """Each split has depths in another format: integers with a scale, or floating-point values."""
    (folder / "dataset.yaml").write_text("target: {kind: depth, unit: m, scale: 0.001, invalid: 0}")
    steps = np.random.default_rng(0).integers(0, 5000, (40, 56), np.uint16)
    values = np.where(steps, steps / 1000, np.nan).astype(np.float32)
    for suffix in ("png", "tif", "npy", "exr"):
        for kind in ("images", "depth", "valid"):
            (folder / suffix / kind).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / suffix / "images" / "a.jpg")
        Image.fromarray((steps > 0).astype(np.uint8)).save(folder / suffix / "valid" / "a.png")
        path = folder / suffix / "depth" / f"a.{suffix}"
        if suffix == "npy":
            np.save(path, values)
        elif suffix == "exr":
            write_exr(path, values[..., None])
        else:
            Image.fromarray(steps if suffix == "png" else values).save(path)


# ---- large images


def _write_large_images(folder: Path) -> None:
    image = TiffImage(40, 56, 3)
    for name, options in _IMAGES.items():
        if name.endswith(("g", "lzw.tif")):
            Image.fromarray(PHOTO).save(folder / name, **options)
    Image.fromarray(np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)).save(folder / "grey16.png")
    Image.fromarray(PHOTO).quantize(60).save(folder / "palette.png")
    write_tiff(folder / "tiles.tif", image, [PHOTO])
    write_zarr(folder / "x.zarr", image, [PHOTO])
    np.save(folder / "x.npy", PHOTO)


def _read_large_images(folder: Path) -> None:
    """Read windows of every image, also of those that are small enough to be decoded at once."""
    small, rasters._AT_ONCE = rasters._AT_ONCE, 0
    try:
        for path in sorted(folder.iterdir()):
            with rasters.open_raster(path, RGB) as raster:
                height, width, _ = raster.shape
                for rows, columns in (
                    (slice(0, min(height, 30)), slice(0, min(width, 50))),
                    (slice(max(0, height - 30), height), slice(max(0, width - 50), width)),
                ):
                    window = rasters.as_bands(raster.read(rows, columns), raster, RGB)
                    assert window.shape == (rows.stop - rows.start, columns.stop - columns.start, 3)
    finally:
        rasters._AT_ONCE = small


# ---- data sets


def _write_pairs(folder: Path) -> None:
    write_shapes(folder, train=2, val=1, size=(32, 32))


def _write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / split).mkdir()
        Image.fromarray(PHOTO).save(folder / split / "a.jpg")
        polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[3, 3, 30, 3, 30, 20]], "iscrowd": 0}
        runs = {"size": [40, 56], "counts": [100, 40, 2100]}
        crowd = {"id": 2, "image_id": 1, "category_id": 2, "segmentation": runs, "iscrowd": 1}
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 56, "height": 40}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [polygon, crowd],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _write_yolo(folder: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / "images" / split / "0.jpg")
        (folder / "labels" / split / "0.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")


def _write_voc(folder: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name, split in (("one", "train"), ("two", "val")):
        Image.fromarray(PHOTO).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(np.minimum(MASK, 1))
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(folder / "SegmentationClass" / f"{name}.png")
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")


def _write_labelme(folder: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(PHOTO).save(folder / f"{name}.jpg")
        shape = {"label": "cat", "points": [[3, 3], [30, 3], [30, 20]], "shape_type": "polygon", "group_id": None}
        content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
        (folder / f"{name}.json").write_text(json.dumps({**content, "imageHeight": 40, "imageWidth": 56}))


def _write_supervisely(folder: Path) -> None:
    part = io.BytesIO()
    Image.fromarray(np.full((5, 6), 255, np.uint8)).save(part, "PNG")
    packed = base64.b64encode(zlib.compress(part.getvalue())).decode()
    square = {"exterior": [[3, 3], [30, 3], [30, 20], [3, 20]], "interior": [[[5, 5], [9, 5], [9, 9]]]}
    objects = [
        {"classTitle": "cat", "geometryType": "polygon", "points": square},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": [8, 4]}},
    ]
    classes = [{"title": "cat", "color": "#FF0000"}, {"title": "dog", "color": "#00FF00"}]
    (folder / "meta.json").write_text(json.dumps({"classes": classes}))
    for split in ("train", "val"):
        for kind in ("img", "ann"):
            (folder / split / kind).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / split / "img" / "a.jpg")
        content = {"size": {"height": 40, "width": 56}, "objects": objects}
        (folder / split / "ann" / "a.jpg.json").write_text(json.dumps(content))


def _write_label_studio(folder: Path) -> None:
    # Four values of 56 x 40 pixels, in words of 8 bits, as one run of 255: the header, then the run.
    bits = f"{4 * 40 * 56:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += f"111{4 * 40 * 56 - 1:016b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    values: dict[str, dict[str, Any]] = {
        "brushlabels": {"format": "rle", "rle": rle},
        "polygonlabels": {"points": [[10, 10], [60, 10], [60, 60]]},
        "rectanglelabels": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 5},
        "ellipselabels": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0},
    }
    size = {"original_height": 40, "original_width": 56, "image_rotation": 0}
    results = [{**size, "id": kind, "type": kind, "value": {**v, kind: [kind]}} for kind, v in values.items()]
    Image.fromarray(PHOTO).save(folder / "a.jpg")
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/01234567-a.jpg"}, "annotations": [{"result": results}]}]
    (folder / "project-1.json").write_text(json.dumps(tasks))


def _write_roboflow(folder: Path) -> None:
    for split in ("train", "valid"):
        (folder / split).mkdir()
        Image.fromarray(PHOTO).save(folder / split / "a.jpg")
        Image.fromarray(MASK).save(folder / split / "a_mask.png")
        rows = [f"{number}, {name}" for number, name in enumerate(NAMES)]
        (folder / split / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]))


def _write_cityscapes(folder: Path) -> None:
    for kind in ("leftImg8bit", "gtFine"):
        (folder / kind / "train" / "ulm").mkdir(parents=True)
    Image.fromarray(PHOTO).save(folder / "leftImg8bit" / "train" / "ulm" / "a_leftImg8bit.png")
    objects = [{"label": name, "polygon": [[1, 1], [40, 2], [30, 30]]} for name in ("road", "cargroup", "static")]
    content = {"imgHeight": 40, "imgWidth": 56, "objects": objects}
    (folder / "gtFine" / "train" / "ulm" / "a_gtFine_polygons.json").write_text(json.dumps(content))


def _write_tars(folder: Path) -> None:
    pairs = folder / "pairs"
    write_shapes(pairs, train=2, val=1, size=(32, 32))
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as archive:
            for image in sorted((pairs / split).iterdir()):
                archive.add(image, f"{image.stem}.png")
                archive.add(pairs / f"{split}annot" / image.name, f"{image.stem}.mask.png")
    (pairs / "dataset.yaml").rename(folder / "dataset.yaml")
    for path in sorted(pairs.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    pairs.rmdir()


def _use_data(folder: Path) -> None:
    """Check a data set; where the check finds no problem, read all of it as training does."""
    report = check_data(folder)
    task: LabelledTask | None = next((name for name in LABELLED if name in report.tasks), None)
    if report.problems or task is None:
        return
    for split in report.splits:
        try:
            data = open_labelled(folder, [split.name], task)
            for index in range(len(data)):
                data[index]
        except foveal.FovealError as error:
            raise AssertionError(f"the check found no problem, but {task} cannot read {split.name}: {error}") from error


def _write_classes(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(PHOTO).save(folder / split / name / "0.png")


# ---- settings


def _write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("epochs: 2\nbatch_size: 4\ncrop: [64, 64]\nscale: [0.5, 2.0]\nlr: 0.001\n")
    (folder / "map.yaml").write_text("ground: road\ndisc: sign\nsquare: sign\ntriangle: sign\n")


def _read_recipe(folder: Path) -> None:
    build_config(TrainConfig, read_yaml(folder / "recipe.yaml"), "recipe.yaml")
    read_class_map(folder / "map.yaml", NAMES, ("road", "sign"))


# ---- models


def _upscaler() -> Any:
    return foveal.create_model("realtime_sr", scale=2).eval()


def _write_checkpoint(folder: Path) -> None:
    from foveal.info import info_of
    from foveal.weights.checkpoints import save_checkpoint

    model = _upscaler()
    save_checkpoint(folder / "model.safetensors", model.state_dict(), info_of(model))


def _write_pickle(folder: Path) -> None:
    import torch

    torch.save({"state_dict": _upscaler().state_dict()}, folder / "model.pt")


def _write_hub_folder(folder: Path) -> None:
    foveal.save_pretrained(_upscaler(), folder)


def _write_segmenter(folder: Path) -> None:
    from foveal.info import Labels, info_of
    from foveal.weights.checkpoints import save_checkpoint

    model = foveal.create_model("mobilenetv3_small_100", "segment", num_classes=4).eval()
    info = info_of(model).replace(labels=Labels(NAMES, ()))
    save_checkpoint(folder / "model.safetensors", model.state_dict(), info)


def _write_onnx(folder: Path) -> None:
    foveal.export(_upscaler(), output=folder / "model.onnx")


def _write_executorch(folder: Path) -> None:
    foveal.export(Plain(), "executorch", output=folder / "model.pte", input_size=(32, 32))
    (folder / "model.pte.json").unlink()


def _write_litert(folder: Path) -> None:
    """A file that gives the means of the three colours as logits; its converter is not among the test tools."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    from foveal.exporting.graph import metadata
    from foveal.info import Preprocess
    from foveal.prediction.input_limits import InputLimits
    from foveal.prediction.sealed import seal, with_outputs

    limits = InputLimits((32, 32), 1, fixed=True).to_notes()
    model_info = foveal.ModelInfo("plain", "classify", 3, preprocess=Preprocess(size=(32, 32)), notes=limits)
    info = with_outputs(model_info, ["logits"])
    texts = [text.encode() for text in (np.array([2, 3], np.int32).tobytes().decode(), *metadata(info).values())]
    kinds = schema.TensorType
    tensors = [
        schema.TensorT(name=name, shape=list(shape), type=kind, buffer=buffer)
        for name, shape, kind, buffer in (
            ("image", (1, 3, 32, 32), kinds.FLOAT32, 0),
            ("axes", (2,), kinds.INT32, 1),
            ("logits", (1, 3), kinds.FLOAT32, 0),
        )
    ]
    mean = schema.OperatorT(inputs=[0, 1], outputs=[2], builtinOptionsType=schema.BuiltinOptions.ReducerOptions)
    mean.builtinOptions = schema.ReducerOptionsT()
    operator = schema.BuiltinOperator.MEAN
    signature = schema.SignatureDefT(
        inputs=[schema.TensorMapT(name="image", tensorIndex=0)],
        outputs=[schema.TensorMapT(name="logits", tensorIndex=2)],
        signatureKey="serving_default",
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=operator, builtinCode=operator)],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[2], operators=[mean])],
        buffers=[schema.BufferT(), *(schema.BufferT(data=list(text)) for text in texts)],
        metadata=[schema.MetadataT(name=name, buffer=2 + i) for i, name in enumerate(metadata(info))],
        signatureDefs=[signature],
    )
    (folder / "model.tflite").write_bytes(seal(bytes(convert_object_to_bytearray(model)), info.to_json()))


def _predict(folder: Path) -> None:
    """Load the only model in the folder, or the folder, and run it."""
    suffixes = (".safetensors", ".pt", ".onnx", ".pte", ".tflite")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    ref = folder if (folder / "config.json").exists() else files[0]
    result: Any = foveal.load(ref)(PHOTO)
    repr(result)


# ---- embeddings


def _write_embedding(folder: Path) -> None:
    np.savez(folder / "embedding.npz", features=np.zeros((256, 64, 64), np.float16))


def _read_embedding(folder: Path) -> None:
    from foveal.training.teacher_folder import read_stored

    read_stored(folder / "embedding.npz", (256, 64, 64))


def _write_batch(folder: Path) -> None:
    """Images in a tar file, a Parquet file and a list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "images").mkdir()
    images = []
    for index in range(4):
        path = folder / "images" / f"{index}.png"
        Image.fromarray(PHOTO).save(path)
        images.append(path.read_bytes())
    with tarfile.open(folder / "x.tar", "w") as archive:
        archive.add(folder / "images", "images")
    pq.write_table(pa.table({"image": images}), folder / "x.parquet", row_group_size=2)
    (folder / "x.txt").write_text("\n".join(f"images/{index}.png" for index in range(4)))


def _read_batch(folder: Path) -> None:
    """Read all inputs; what one of the three files has is refused or read independently of the others."""
    errors = []
    for name in ("x.tar", "x.parquet", "x.txt"):
        try:
            for part in divide(find(Search(str(folder / name), part_size=3)), 3, 1):
                for _, image in read_part(part):
                    if isinstance(image, foveal.InputError):
                        errors.append(image)
                    else:
                        read_image(image)
        except foveal.FovealError as error:
            errors.append(error)
    if errors:
        raise errors[0]


TARGETS: dict[str, Target] = {
    "batch: tar and Parquet files, lists": Target(_write_batch, _read_batch, "x.*"),
    "images": Target(_write_images, _read_images),
    "masks": Target(_write_masks, _read_masks),
    "large images": Target(_write_large_images, _read_large_images),
    "OpenEXR files": Target(_write_exr, _read_exr),
    "data: maps of values": Target(_write_maps, _use_data),
    "data: images and masks": Target(_write_pairs, _use_data),
    "data: COCO": Target(_write_coco, _use_data, "**/*.json"),
    "data: YOLO": Target(_write_yolo, _use_data, "**/*.[ty][xa][tm]*"),
    "data: Pascal VOC": Target(_write_voc, _use_data),
    "data: labelme": Target(_write_labelme, _use_data, "**/*.json"),
    "data: Supervisely": Target(_write_supervisely, _use_data, "**/*.json"),
    "data: Label Studio": Target(_write_label_studio, _use_data, "**/*.json"),
    "data: Roboflow's masks": Target(_write_roboflow, _use_data, "**/*_*"),
    "data: Cityscapes' polygons": Target(_write_cityscapes, _use_data, "**/*.json"),
    "data: tar archives": Target(_write_tars, _use_data),
    "data: a folder per class": Target(_write_classes, _use_data),
    "recipes and class maps": Target(_write_recipe, _read_recipe),
    "checkpoints: .safetensors": Target(_write_checkpoint, _predict),
    "checkpoints: .safetensors of a segmenter": Target(_write_segmenter, _predict),
    "checkpoints: .pt": Target(_write_pickle, _predict),
    "checkpoints: folder for the hub": Target(_write_hub_folder, _predict),
    "checkpoints: .onnx": Target(_write_onnx, _predict),
    "checkpoints: .pte": Target(_write_executorch, _predict),
    "checkpoints: .tflite": Target(_write_litert, _predict),
    "embeddings": Target(_write_embedding, _read_embedding),
}
