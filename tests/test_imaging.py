"""Images are read as the eye sees them, or refused in one line: never wrong in silence."""

from __future__ import annotations

import io
import itertools
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from foveal.errors import InputError
from foveal.imaging import (
    distinct_colours,
    list_images,
    network_size,
    prepare,
    raised_cosine,
    read_image,
    read_mask,
    tile_starts,
)
from foveal.info import Preprocess
from spoil import spoil

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def png(width: int, height: int, bits: int = 8, rows: bytes = b"") -> bytes:
    """An RGB PNG made by hand; without ``rows`` it only claims its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_files_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(PICTURE).save(path, **options)
    assert (read_image(path) == PICTURE).all()


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, (64, 48)).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "grey16.png")
    read = read_image(tmp_path / "grey16.png")
    assert (read[..., 0] == read[..., 2]).all()
    assert np.abs(read[..., 0] - wide / 257).max() <= 0.5 + 1e-9


def test_sixteen_bit_colour_is_right_to_one_level(tmp_path: Path) -> None:
    """Pillow reduces it to 8 bits by itself; written here by hand, since Pillow cannot write it."""
    wide = RNG.integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    (tmp_path / "rgb16.png").write_bytes(png(5, 6, bits=16, rows=rows))
    assert np.abs(read_image(tmp_path / "rgb16.png").astype(float) - wide.astype(float) / 257).max() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_applies_to_image_and_mask_alike(tmp_path: Path, orientation: int) -> None:
    """All eight EXIF orientations; the expected picture is made by hand from the tag's definition."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png")[..., 0] == upright).all()
    assert (read_mask(tmp_path / "turned.png") == upright).all()


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba).convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "rgba.png")[0, 0].tolist() == [10, 20, 30]
    assert read_image(tmp_path / "rgba.png")[1, 1].tolist() == [255, 255, 255]
    assert read_image(tmp_path / "la.png")[1, 1].tolist() == [255, 255, 255]
    assert read_image(tmp_path / "palette.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / f"other{suffix}")
    assert read_image(tmp_path / f"other{suffix}").shape == (40, 56, 3)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").tolist() == [[[255, 0, 0]] * 8] * 8


def test_wrong_suffix_is_read_by_content(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    (tmp_path / "really_png.jpg").write_bytes(buffer.getvalue())
    assert (read_image(tmp_path / "really_png.jpg") == PICTURE).all()


def broken(name: str) -> bytes:
    """Content that must be refused."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG" if "jpg" in name else "PNG")
    good = buffer.getvalue()
    return {
        "empty.png": b"",
        "garbage.png": b"\x00\x01 no picture",
        "half.jpg": good[: len(good) // 2],
        "half.png": good[: len(good) // 2],
        "bomb.png": png(20_000, 20_000),
        "lie.png": png(65_535, 65_535),
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "print.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }[name]


@pytest.mark.parametrize(
    "name", ["empty.png", "garbage.png", "half.jpg", "half.png", "bomb.png", "lie.png", "drawing.svg", "print.eps"]
)
def test_unusable_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(broken(name))
    with pytest.raises(InputError, match=name) as error:
        read_image(tmp_path / name)
    assert "\n" not in str(error.value)


def _kinds() -> dict[str, bytes]:
    """One good file of every format, mode and compression that is read."""
    image, turned = Image.fromarray(PICTURE), Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    writers = {
        "exif.jpg": (image, {"format": "JPEG", "exif": turned}),
        "progressive.jpg": (image, {"format": "JPEG", "progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), {"format": "JPEG"}),
        "several.jpg": (image, {"format": "MPO", "save_all": True, "append_images": [image]}),
        "rgb.png": (image, {"format": "PNG", "exif": turned}),
        "palette.png": (image.convert("P"), {"format": "PNG", "transparency": 3}),
        "grey16.png": (wide, {"format": "PNG"}),
        "lossy.webp": (image, {"format": "WEBP"}),
        "lossless.webp": (image, {"format": "WEBP", "lossless": True}),
        "plain.tif": (image, {"format": "TIFF"}),
        "lzw.tif": (image, {"format": "TIFF", "compression": "tiff_lzw"}),
        "jpeg.tif": (image, {"format": "TIFF", "compression": "jpeg"}),
        "grey16.tif": (wide, {"format": "TIFF"}),
        "rgb.bmp": (image, {"format": "BMP"}),
        "several.gif": (image, {"format": "GIF", "save_all": True, "append_images": [image.rotate(90)]}),
        "rgb.ppm": (image, {"format": "PPM"}),
    }
    files = {}
    for name, (picture, options) in writers.items():
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        files[name] = buffer.getvalue()
    return files


KINDS = _kinds()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage before it gives up on it, or does not
@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes_never_give_another_error(tmp_path: Path, name: str) -> None:
    """The good file is read; 60 spoilt ones are, too, or are refused in one line; as images and as masks."""
    path, rng = tmp_path / name, random.Random(0)
    path.write_bytes(KINDS[name])
    assert read_image(path).shape in {(40, 56, 3), (56, 40, 3)}
    for _ in range(60):
        path.write_bytes(spoil(KINDS[name], rng))
        for read in (read_image, read_mask):
            try:
                found = read(path)
            except InputError as error:
                message = str(error)
                assert name in message
                assert "\n" not in message
            else:
                assert found.size


def test_pillow_images_are_read_and_stay_usable(tmp_path: Path) -> None:
    """Opened but not yet decoded images too, with their orientation; damage is an InputError there as well."""
    turned = Image.Exif()
    turned[0x0112] = 8
    Image.fromarray(PICTURE).save(tmp_path / "good.png", exif=turned)
    with Image.open(tmp_path / "good.png") as image:
        assert (read_image(image) == read_image(tmp_path / "good.png")).all()
        assert (np.asarray(image) == PICTURE).all()
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    with Image.open(tmp_path / "half.png") as image, pytest.raises(InputError, match="damaged or truncated"):
        read_image(image)
    with pytest.raises(InputError, match="megapixels"):
        read_image(Image.new("1", (20_000, 6_000)))


@pytest.mark.parametrize(("width", "height"), [(12_000, 10_000), (20_000, 20_000), (65_535, 65_535)])
def test_bombs_are_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    """The pixels of these files are missing, yet it is their size that is named: nobody got as far as decoding."""
    (tmp_path / "bomb.png").write_bytes(png(width, height))
    with pytest.raises(InputError, match=r"bomb\.png: .*(megapixels|exceeds limit)"):
        read_image(tmp_path / "bomb.png")
    (tmp_path / "small.png").write_bytes(png(100, 100))
    with pytest.raises(InputError, match="damaged or truncated"):
        read_image(tmp_path / "small.png")


def test_nothing_to_see_is_refused() -> None:
    for empty in (np.zeros((0, 5, 3), np.uint8), np.zeros((4, 0), np.uint8), Image.new("RGB", (0, 5))):
        with pytest.raises(InputError, match="pixels"):
            read_image(empty)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS writes ._photo.jpg beside photo.jpg; interrupted writes leave .name files."""
    for name in ("b/photo.JPG", "a.png", "._a.png", ".a-x1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name, "PNG")
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == ["a.png", "b/photo.JPG"]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_masks_of_more_than_8_bits_keep_their_ids(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 300], [65535, 7]])
    raw = ids.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    Image.frombytes(mode, (2, 2), raw.tobytes()).save(tmp_path / "mask.tif")
    assert (read_mask(tmp_path / "mask.tif") == ids).all()


def test_size_limit_is_the_callers(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    with pytest.raises(InputError, match="above the limit"):
        read_image(tmp_path / "picture.png", max_pixels=1000)


def test_floats_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        list_images(tmp_path / "empty")


def test_arrays(tmp_path: Path) -> None:
    assert (read_image(PICTURE) == PICTURE).all()
    assert read_image(PICTURE[..., 0]).shape == (40, 56, 3)
    assert read_image(np.zeros((4, 5, 4), np.uint8)).tolist() == [[[255, 255, 255]] * 5] * 4
    with pytest.raises(InputError, match="expected uint8"):
        read_image(PICTURE / 255)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="shape"):
        read_image(np.zeros((2, 3, 4, 5), np.uint8))


def test_colour_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="class indices"):
        read_mask(tmp_path / "mask.png")


def test_prepare_is_the_formula_and_pads_small_images() -> None:
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    out = prepare(PICTURE, preprocess)
    expected = (PICTURE / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    assert out.shape == (1, 3, 40, 56)
    assert out.dtype == np.float32
    assert np.abs(out[0] - expected.transpose(2, 0, 1)).max() < 1e-6
    padded = prepare(PICTURE[:20, :30], preprocess, min_size=32)
    assert padded.shape == (1, 3, 32, 32)
    assert (padded[0, :, 25, :30] == padded[0, :, 19, :30]).all()


def test_resizing_follows_the_preprocess() -> None:
    assert prepare(PICTURE, Preprocess(size=(20, 24))).shape == (1, 3, 20, 24)
    assert prepare(PICTURE, Preprocess(max_side=28)).shape == (1, 3, 20, 28)
    assert network_size(40, 56, Preprocess(max_side=100)) == (40, 56)
    expected = np.asarray(Image.fromarray(PICTURE).resize((24, 20), Image.Resampling.BICUBIC))
    assert np.allclose(prepare(PICTURE, Preprocess(size=(20, 24))), prepare(expected, Preprocess()))
    with pytest.raises(InputError, match="bicubic"):
        prepare(PICTURE, Preprocess(size=(20, 24), resample="cubic"))


def test_centre_crop_keeps_the_middle() -> None:
    """As timm: short side to ceil(size / ratio), then the centre; an image of the right size is no exception."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[24:40, 24:40] = 255
    out = prepare(image, Preprocess(mean=(0, 0, 0), std=(1, 1, 1), size=(64, 64), crop_ratio=0.5))
    assert out[0, 0, 32, 32] == 1
    assert out[0].mean() == pytest.approx((32 / 64) ** 2, rel=0.1)


@settings(max_examples=30)
@given(height=st.integers(20, 90), width=st.integers(20, 90), size=st.integers(16, 64), ratio=st.floats(0.5, 1.0))
def test_crops_as_torchvision_does(height: int, width: int, size: int, ratio: float) -> None:
    """The published classifiers were evaluated with torchvision's Resize and CenterCrop on Pillow images."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resize = v2.Resize(math.ceil(size / ratio), interpolation=v2.InterpolationMode.BICUBIC)
    expected = np.asarray(v2.CenterCrop(size)(resize(Image.fromarray(image))))
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), size=(size, size), crop_ratio=ratio)
    found = prepare(image, preprocess)[0].transpose(1, 2, 0) * 255
    assert np.abs(found - expected).max() < 1e-3


@given(length=st.integers(1, 3000), tile=st.integers(2, 600), data=st.data())
def test_tiles_cover_with_the_overlap_asked_for(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile >= length
    for before, after in itertools.pairwise(starts):
        assert before < after <= before + tile - overlap


@given(length=st.integers(1, 200), ramp=st.integers(0, 100))
def test_blending_weights_are_positive_and_symmetric(length: int, ramp: int) -> None:
    weights = raised_cosine(length, ramp)
    assert (weights > 0).all()
    assert np.allclose(weights, weights[::-1])
    assert weights.max() <= 1


def test_made_up_colours_differ() -> None:
    colours = distinct_colours(150)
    assert len(set(colours)) == 150
    assert all(0 <= value <= 255 for colour in colours for value in colour)
