"""Everything that reads a file: how a good input is written, and what a user does with it."""

from __future__ import annotations

import tarfile
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
from foveal.data.class_map import read_class_map
from foveal.data.synthetic import NAMES
from foveal.images import rasters
from foveal.images.bands import RGB
from foveal.images.exr import read_exr
from foveal.images.reading import read_image, read_mask
from foveal.images.tiff_writing import TiffImage, write_tiff
from foveal.images.zarr_writing import write_zarr
from foveal.training.config import TrainConfig

from . import data_sets, model_files
from .sample import MASK, PHOTO


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


# ---- OpenEXR files


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


# ---- settings


def _write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("epochs: 2\nbatch_size: 4\ncrop: [64, 64]\nscale: [0.5, 2.0]\nlr: 0.001\n")
    (folder / "map.yaml").write_text("ground: road\ndisc: sign\nsquare: sign\ntriangle: sign\n")


def _read_recipe(folder: Path) -> None:
    build_config(TrainConfig, read_yaml(folder / "recipe.yaml"), "recipe.yaml")
    read_class_map(folder / "map.yaml", NAMES, ("road", "sign"))


# ---- embeddings


def _write_embedding(folder: Path) -> None:
    np.savez(folder / "embedding.npz", features=np.zeros((256, 64, 64), np.float16))


def _read_embedding(folder: Path) -> None:
    from foveal.training.teacher_folder import read_stored

    read_stored(folder / "embedding.npz", (256, 64, 64))


# ---- inputs of batch jobs


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
    "data: maps of values": Target(data_sets.write_maps, data_sets.use_data),
    "data: images and masks": Target(data_sets.write_pairs, data_sets.use_data),
    "data: COCO": Target(data_sets.write_coco, data_sets.use_data, "**/*.json"),
    "data: YOLO": Target(data_sets.write_yolo, data_sets.use_data, "**/*.[ty][xa][tm]*"),
    "data: Pascal VOC": Target(data_sets.write_voc, data_sets.use_data),
    "data: labelme": Target(data_sets.write_labelme, data_sets.use_data, "**/*.json"),
    "data: Supervisely": Target(data_sets.write_supervisely, data_sets.use_data, "**/*.json"),
    "data: Label Studio": Target(data_sets.write_label_studio, data_sets.use_data, "**/*.json"),
    "data: Roboflow's masks": Target(data_sets.write_roboflow, data_sets.use_data, "**/*_*"),
    "data: Cityscapes' polygons": Target(data_sets.write_cityscapes, data_sets.use_data, "**/*.json"),
    "data: tar archives": Target(data_sets.write_tars, data_sets.use_data),
    "data: a folder per class": Target(data_sets.write_classes, data_sets.use_data),
    "recipes and class maps": Target(_write_recipe, _read_recipe),
    "checkpoints: .safetensors": Target(model_files.write_checkpoint, model_files.predict),
    "checkpoints: .safetensors of a segmenter": Target(model_files.write_segmenter, model_files.predict),
    "checkpoints: .pt": Target(model_files.write_pickle, model_files.predict),
    "checkpoints: folder for the hub": Target(model_files.write_hub_folder, model_files.predict),
    "checkpoints: .onnx": Target(model_files.write_onnx, model_files.predict),
    "checkpoints: .pte": Target(model_files.write_executorch, model_files.predict),
    "checkpoints: .tflite": Target(model_files.write_litert, model_files.predict),
    "embeddings": Target(_write_embedding, _read_embedding),
}
