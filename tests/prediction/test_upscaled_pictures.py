"""Upscaling of real files: 16 bits, alpha, grey and the colour profile are kept, or the file is refused."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

import foveal
from foveal.errors import InputError
from foveal.images.reading import Picture, read_picture
from foveal.images.resampling import interpolated
from foveal.prediction.tiles import WHOLE, check_upscale_tiles, enlarged_bands
from helpers.upscalers import model_of, photo, predictor_of


def written_png(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """A 16-bit PNG, written by hand: Pillow has none in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, channels: int) -> None:
    """Read to the bit; a gentle ramp comes out finer than 8 bits could hold."""
    ramp = np.linspace(10_000, 10_600, 64 * 48).reshape(64, 48, 1).repeat(channels, 2).astype(np.uint16)
    source = written_png(tmp_path / "in.png", ramp)
    picture = read_picture(source)
    assert np.array_equal(picture.pixels, ramp[..., :3] if channels > 1 else ramp.repeat(3, 2))
    result = foveal.load("bicubic.x2")(source)
    assert result.image.dtype == np.uint16
    again = read_picture(result.save(tmp_path / "out.png"))
    assert again.grey == (channels == 1)
    assert np.array_equal(again.pixels, result.image[..., :3])
    assert len(np.unique(again.pixels)) > 300
    if channels == 4:
        assert again.alpha is not None
        assert np.array_equal(again.alpha, result.image[..., 3])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_alpha_grey_and_profile_are_kept(tmp_path: Path, mode: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgba = Image.fromarray(np.dstack([photo(40, 50), np.linspace(0, 255, 2000).reshape(40, 50).astype(np.uint8)]))
    rgba.convert(mode).save(tmp_path / "in.png", icc_profile=profile)
    model = model_of("realtime_sr")
    result = predictor_of(model).upscale(tmp_path / "in.png")
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == mode
        assert out.size == (100, 80)
        assert out.info["icc_profile"] == profile
        out.load()
        if mode.endswith("A"):
            alpha = np.asarray(out.getchannel("A"))
            expected = interpolated(np.asarray(rgba.getchannel("A"))[..., None] / 1.0, 2)[..., 0]
            assert np.abs(alpha - expected.clip(0, 255)).max() <= 0.501


def test_png_bands_are_one_picture(tmp_path: Path) -> None:
    """Our writer's file read by Pillow, in every kind, from uneven bands."""
    from foveal.images.writing import Canvas, write_picture

    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        pixels = rng.integers(0, 256, (201, 37, channels), dtype=np.uint8)
        bands = [pixels[:1], pixels[1:150], pixels[150:]]
        write_picture(tmp_path / "x.png", Canvas(201, 37, channels), bands)
        with Image.open(tmp_path / "x.png") as found:
            assert np.array_equal(np.asarray(found).reshape(pixels.shape), pixels)


def test_png_blocks_are_one_stream(tmp_path: Path) -> None:
    """Blocks that several threads compress end up in order, with the checksum of all of them (which Pillow ignores)."""
    from foveal.images.writing import Canvas, write_picture

    pixels = np.random.default_rng(0).integers(0, 256, (300, 2000, 4), dtype=np.uint8)
    pixels[:150] = pixels[:1]
    write_picture(tmp_path / "x.png", Canvas(300, 2000, 4), [pixels[:290], pixels[290:]])
    with Image.open(tmp_path / "x.png") as found:
        assert np.array_equal(np.asarray(found), pixels)
    content, position, stream = (tmp_path / "x.png").read_bytes(), 8, b""
    while position < len(content):
        length, kind = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        stream += content[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += 12 + length
    assert len(zlib.decompress(stream)) == 300 * (1 + 4 * 2000)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(32, 32, seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="2 pictures in one file"):
        read_picture(tmp_path / "moving.png")
    result = foveal.load("bicubic.x2")(np.zeros((32, 32, 4), np.uint8))
    with pytest.raises(InputError, match="JPEG has no transparency"):
        result.save(tmp_path / "x.jpg")
    wide = foveal.load("bicubic.x2").upscale(np.zeros((32, 32, 3), np.uint16))
    with pytest.raises(InputError, match="16 bits per channel are written as"):
        wide.save(tmp_path / "x.webp")
    with pytest.raises(InputError, match="expected uint8 or uint16"):
        read_picture(np.zeros((4, 4, 3), np.float32))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((743, 1280), None, None), ((33, 17_000), None, 100), ((900, 650), None, 300), ((150, 333), 128, 50)],
)
def test_tiles_of_one_size_join_without_a_seam(size: tuple[int, int], tile: int | None, overlap: int | None) -> None:
    """A network that looks at one pixel only gives in tiles what it gives for the whole image."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    seen: list[tuple[int, ...]] = []

    def double(window: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(window.shape[:2])
        return window.transpose(2, 0, 1).repeat(2, axis=1).repeat(2, axis=2).transpose(1, 2, 0)

    result = np.concatenate(list(enlarged_bands(double, Picture(pixels), 2, tile, overlap)))
    assert np.array_equal(result, pixels.repeat(2, axis=0).repeat(2, axis=1))
    assert len(seen) > 1
    assert len(set(seen)) == 1
    assert tile is not None or math.prod(seen[0]) <= 1.02 * WHOLE


@pytest.mark.parametrize("overlap", range(17))
def test_every_pixel_is_in_a_tile_with_weight(overlap: int) -> None:
    pixels = np.full((70, 184, 3), 200, np.uint8)
    bands = enlarged_bands(lambda window: window.repeat(2, 0).repeat(2, 1), Picture(pixels), 2, 64, overlap)
    assert (np.concatenate(list(bands)) == 200).all()


def test_a_tile_may_be_as_large_as_the_file_takes() -> None:
    """Larger than the default, which is for files without limits."""
    pixels = np.zeros((900, 1000, 3), np.uint8)

    def upscaled(tile: int) -> list[NDArray[np.uint8]]:
        double = lambda window: window.repeat(2, 0).repeat(2, 1)  # noqa: E731
        return list(enlarged_bands(double, Picture(pixels), 2, tile, 32, largest=(800, 2048)))

    assert np.concatenate(upscaled(768)).shape == (1800, 2000, 3)
    with pytest.raises(InputError, match=r"tile=800: .* images up to 800x2048 \(H x W\): give 792 or less"):
        upscaled(800)


@pytest.mark.parametrize("overlap", [-50, -1, 100_000])
def test_overlaps_without_tiles_are_checked(overlap: int) -> None:
    with pytest.raises(InputError, match="without tile, give 0 to 512"):
        check_upscale_tiles(None, overlap)
