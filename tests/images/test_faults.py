"""Bad and unusual images, by their case numbers in docs/bad_input.md: the right image, or an error of one line."""

from __future__ import annotations

import io
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal import cli
from foveal.errors import ConfigError, InputError
from foveal.images.formats import SUFFIXES
from foveal.images.reading import read_image, read_mask
from helpers.memory import peak_growths
from helpers.pictures import PICTURE, chunk, encoded, kinds, png, tiff, ycck

REF = "efficientvit_b0.camvid"
RNG = np.random.default_rng(0)
IMAGE = Image.fromarray(PICTURE)
PHOTO = Image.open(Path(foveal.__file__).parent / "assets" / "street.jpg")
SMOOTH = np.dstack([np.add.outer(np.arange(40), np.arange(56)) * k % 200 for k in (1, 1.5, 2)]).astype(np.uint8)
WIDE = RNG.integers(0, 65536, (6, 5, 3)).astype(np.uint16)
KINDS = kinds()


def rows(values: NDArray) -> bytes:
    """The unfiltered rows of a PNG."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def holed(content: bytes, size: int, rng: random.Random) -> bytes:
    """``content`` with ``size`` random bytes somewhere in its middle."""
    start = rng.randrange(len(content) // 4, max(len(content) // 4 + 1, 3 * len(content) // 4 - size))
    return content[:start] + rng.randbytes(size) + content[start + size :]


FLOATS = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
NAN = np.where(FLOATS > 0.5, np.nan, FLOATS).astype(np.float32)
INF = np.where(FLOATS > 0.5, np.inf, FLOATS).astype(np.float32)

#: case and file name -> content of the file, part of the error message
REFUSED: dict[str, tuple[bytes, str]] = {
    "01-bomb.png": (png(20_000, 20_000), "20000x20000 is 400 megapixels, above the limit of 100"),
    "01-bomb.tif": (tiff(20_000, 20_000, 8, b""), "400 megapixels"),
    "01-just-above.png": (png(10_001, 10_000), "above the limit of 100"),
    "02-lie.png": (png(65_535, 65_535), "4295 megapixels"),
    "04-empty.png": (b"", "empty file"),
    "05-garbage.png": (random.Random(0).randbytes(3000), "not an image in a supported format"),
    "06-half.png": (half(KINDS["rgb.png"]), "damaged or truncated"),
    "06-half.jpg": (half(KINDS["exif.jpg"]), "damaged or truncated"),
    "06-half-progressive.jpg": (half(KINDS["progressive.jpg"]), "damaged or truncated"),
    "06-half.webp": (half(KINDS["lossy.webp"]), "damaged or truncated"),
    "06-half.tif": (half(KINDS["lzw.tif"]), "damaged or truncated"),
    "06-half.bmp": (half(KINDS["rgb.bmp"]), "damaged or truncated"),
    "06-header-alone.png": (png(100, 100), "damaged or truncated"),
    "07-corrupt.png": (holed(KINDS["rgb.png"], 64, random.Random(0)), "damaged or truncated"),
    "07-corrupt.jpg": (holed(encoded(PHOTO, "JPEG"), 4096, random.Random(0)), "damaged or truncated"),
    "09-drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "JPEG, PNG, WebP, TIFF, BMP"),
    "09-print.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported format"),
    "09-layers.psd": (b"8BPS\0\1" + bytes(200), "not an image in a supported format"),
    "09-icon.ico": (encoded(IMAGE, "ICO"), "not an image in a supported format"),
    "09-still.gif": (encoded(IMAGE, "GIF"), "not an image in a supported format"),
    "09-plain.ppm": (encoded(IMAGE, "PPM"), "not an image in a supported format"),
    "13-float.tif": (tiff(8, 8, 32, FLOATS.tobytes(), kind=3), "floating-point image; its range is unknown"),
    "13-int32.tif": (tiff(8, 8, 32, bytes(256), kind=2), "32-bit image; its range is unknown"),
    "13-lab.tif": (encoded(IMAGE.convert("LAB"), "TIFF"), "a LAB image; convert it to RGB"),
    "14-nan.tif": (tiff(8, 8, 32, NAN.tobytes(), kind=3), "floating-point image"),
    "14-inf.tif": (tiff(8, 8, 32, INF.tobytes(), kind=3), "floating-point image"),
    "18-moving.gif": (encoded(IMAGE, "GIF", save_all=True, append_images=[PHOTO]), "not an image in a supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_mask):
        if (name, read) == ("13-int32.tif", read_mask):
            continue  # masks may have ids of 32 bits
        with pytest.raises(InputError) as error:
            read(tmp_path / name)
        text = str(error.value)
        assert text.startswith(str(tmp_path / name))
        assert "\n" not in text
        assert message in text or (read is read_mask and "class indices" in text)
        with pytest.raises(InputError) as error:
            read(content, name=str(tmp_path / name))
        assert str(error.value) == text


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("01-just-above.png", "06-half.webp")])
def test_command_line_says_it_once_and_writes_nothing(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line on standard error (including output of C libraries), no output folder."""
    (tmp_path / name).write_bytes(REFUSED[name][0])
    with pytest.raises(SystemExit) as end:
        cli.main(["segment", str(tmp_path / name), "--model", REF, "--out", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith(f"foveal: {tmp_path / name}: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_all_of_them_names_each_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 1: the good image is segmented, every bad one is named once, and nothing else is written."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(KINDS["rgb.png"])
    for name, (content, _) in REFUSED.items():
        (folder / name).write_bytes(content)
    bad = {name for name in REFUSED if Path(name).suffix in SUFFIXES}
    with pytest.raises(SystemExit) as end:
        cli.main(["segment", str(folder), "--model", REF, "--out", str(tmp_path / "out")])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert end.value.code == 1
    assert {Path(line.removeprefix("failed: ").split(": ")[0]).name for line in lines} == bad
    assert len(lines) == len(bad)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
def test_01_bombs_take_no_memory(tmp_path: Path) -> None:
    """At most 100 MB more than before; the message is about the size, although the pixels are also missing."""
    names = ["01-bomb.png", "01-bomb.tif", "02-lie.png"]
    paths = [_written(tmp_path / name, REFUSED[name][0]) for name in names]
    for name, (message, growth) in zip(names, peak_growths("foveal.images.reading", "read_image", paths), strict=True):
        assert REFUSED[name][1] in message
        assert growth <= 95, name


def test_01_the_limit_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument or environment variable; also above Pillow's own limit of 179 megapixels, which does not change."""
    (tmp_path / "small.png").write_bytes(KINDS["rgb.png"])
    (tmp_path / "large.png").write_bytes(png(20_000, 20_000, bits=1, colour=0))
    with pytest.raises(InputError, match=r"above the limit.*FOVEAL_MAX_PIXELS"):
        read_image(tmp_path / "small.png", max_pixels=1000)
    with pytest.raises(
        InputError, match="damaged or truncated"
    ):  # the limit does not apply, so the missing pixels are reported
        read_image(tmp_path / "large.png", max_pixels=400_000_000)
    monkeypatch.setenv("FOVEAL_MAX_PIXELS", "4e8")
    with pytest.raises(InputError, match="damaged or truncated"):
        read_image(tmp_path / "large.png")
    monkeypatch.setenv("FOVEAL_MAX_PIXELS", "1000")
    with pytest.raises(InputError, match="above the limit"):
        read_mask(tmp_path / "small.png")
    monkeypatch.setenv("FOVEAL_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="FOVEAL_MAX_PIXELS='many'"):
        read_image(tmp_path / "small.png")


@pytest.mark.long
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_01_four_hundred_megapixels_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"large.{suffix}"
    large = Image.new("L", (20_000, 20_000), 90)
    large.paste(200, (19_000, 19_990, 20_000, 20_000))
    large.save(path, compress_level=1) if suffix == "png" else large.save(path)
    read = read_image(path, max_pixels=400_000_000)
    assert read.shape == (20_000, 20_000, 3)
    assert read[0, 0].tolist() == [90, 90, 90]
    assert abs(int(read[-1, -1, 2]) - 200) <= 1


@pytest.mark.parametrize("name", ["rgb.png", "exif.jpg", "progressive.jpg", "ycck.jpg", "rgb.bmp"])
def test_06_truncated_files_may_be_allowed(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The decoded part is the same as in the whole file, and a warning is logged."""
    whole, part = tmp_path / f"whole-{name}", tmp_path / f"part-{name}"
    large = IMAGE.resize((560, 400))
    files = {"rgb.png": ("PNG", {}), "rgb.bmp": ("BMP", {})}
    kind, options = files.get(name, ("JPEG", {"progressive": "progressive" in name}))
    whole.write_bytes(ycck(np.asarray(large)) if name == "ycck.jpg" else encoded(large, kind, **options))
    part.write_bytes(half(whole.read_bytes()))
    with pytest.raises(InputError, match="truncated"):
        read_image(part)
    assert not caplog.records
    result, expected = read_image(part, allow_truncated=True), read_image(whole)
    assert result.shape == expected.shape
    decoded = slice(-100, None) if name == "rgb.bmp" else slice(0, 100)  # BMP starts with the bottom row
    near = np.abs(result[decoded].astype(int) - expected[decoded])
    assert near.mean() < (40 if name == "progressive.jpg" else 1)  # the first scans are coarse
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_07_png_checksums_are_compared(tmp_path: Path) -> None:
    """A flipped bit in any byte of the pixel data or the palette is detected."""
    good = encoded(Image.fromarray(PICTURE[:6, :6]).convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    path = tmp_path / "flipped.png"
    begin = good.index(b"PLTE") - 4
    silent = []
    for place in range(begin, good.index(b"IEND") - 4):
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            read_image(path)
            silent.append(place)
        except InputError:
            pass
    assert not silent


@pytest.mark.parametrize("progressive", [False, True])
def test_07_jpeg_warnings_are_errors(tmp_path: Path, progressive: bool) -> None:
    """JPEG has no checksum, so a flipped bit may pass; 64 random bytes are detected nearly always, 4 kB always."""
    good = encoded(PHOTO.resize((640, 480)), "JPEG", progressive=progressive)
    path, rng, refused = tmp_path / "holed.jpg", random.Random(0), {64: 0, 4096: 0}
    for size in refused:
        for _ in range(30):
            path.write_bytes(holed(good, size, rng))
            try:
                read_image(path)
            except InputError:
                refused[size] += 1
    assert refused[64] >= 24
    assert refused[4096] == 30


def test_08_the_content_decides_not_the_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("rgb.png", "lossless.webp", "plain.tif", "rgb.bmp"):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(KINDS[name])
        assert sorted(read_image(path).shape) == [3, 40, 56]
        assert f"{path}: read as " in caplog.messages[-1]
    assert caplog.messages[0].endswith("read as PNG, the format of its content")
    read_image(_written(tmp_path / "named.png", KINDS["rgb.png"]))
    assert len(caplog.messages) == 4


def test_10_inks_become_colours(tmp_path: Path) -> None:
    """CMYK, and YCCK as image editors write it, look like the RGB image that they were made from."""
    for name, content in {
        "cmyk.jpg": encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encoded(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF"),
        "ycck.jpg": ycck(SMOOTH),
    }.items():
        read = read_image(_written(tmp_path / name, content))
        assert np.abs(read.astype(int) - SMOOTH).mean() < 3, name


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_10_jpegs_are_to_the_bit_what_pillow_decodes(tmp_path: Path, mode: str, progressive: bool) -> None:
    image = PHOTO.resize((131, 77)).convert(mode)
    for subsampling in (0, 1, 2):
        path = _written(tmp_path / "peer.jpg", encoded(image, "JPEG", subsampling=subsampling, progressive=progressive))
        with Image.open(path) as peer:
            assert (read_image(path) == np.asarray(peer.convert("RGB"))).all()


def test_11_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    """The mean error is below half a level, also for greys of 12 bits and negatives, as scanners write them."""
    wide = RNG.integers(0, 65536, (64, 48)).astype(np.uint16)
    narrow = (wide[:, :6] >> 4).astype(np.uint32)
    packed = np.stack(
        [narrow[:, ::2] >> 4, (narrow[:, ::2] & 15) << 4 | narrow[:, 1::2] >> 8, narrow[:, 1::2] & 255], 2
    )
    for name, content, expected in (
        ("grey16.png", encoded(Image.fromarray(wide), "PNG"), wide / 257),
        ("grey16.tif", encoded(Image.fromarray(wide), "TIFF"), wide / 257),
        ("lzw.tif", encoded(Image.fromarray(wide), "TIFF", compression="tiff_lzw"), wide / 257),
        ("negative.tif", tiff(48, 64, 16, wide.tobytes(), photometric=0), 255 - wide / 257),
        ("grey12.tif", tiff(6, 64, 12, packed.astype(np.uint8).tobytes()), narrow * 255 / 4095),
    ):  # fmt: skip
        read = read_image(_written(tmp_path / name, content))
        assert (read[..., 0] == read[..., 2]).all()
        error = np.abs(read[..., 0] - expected)
        assert error.mean() < 0.5, name
        assert error.max() <= 0.5 + 1e-9, name


def test_12_sixteen_bit_colours_are_scaled(tmp_path: Path) -> None:
    alpha = np.dstack([WIDE, np.full((6, 5), 65535, np.uint16)])
    for name, content in {
        "rgb16.png": png(5, 6, bits=16, rows=rows(WIDE.astype(">u2"))),
        "rgba16.png": png(5, 6, bits=16, colour=6, rows=rows(alpha.astype(">u2"))),
        "rgb16.tif": tiff(5, 6, 16, WIDE.tobytes(), samples=3, photometric=2),
    }.items():
        error = np.abs(read_image(_written(tmp_path / name, content)) - WIDE / 257)
        assert error.mean() < 0.5, name
        assert error.max() < 1, name


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "uint16", "bool"])
def test_14_arrays_other_than_uint8_are_refused(kind: str) -> None:
    """NaN and infinity are impossible, because floating-point arrays are refused."""
    array = np.zeros((4, 5, 3), kind)
    with pytest.raises(InputError, match=f"array of {kind}: expected uint8"):
        read_image(array)


def test_15_one_bit(tmp_path: Path) -> None:
    bits = PICTURE[..., 0] > 127
    for suffix in ("png", "tif", "bmp"):
        Image.fromarray(bits).save(tmp_path / f"bits.{suffix}")
        assert (read_image(tmp_path / f"bits.{suffix}") == bits[..., None] * 255).all()
        assert (read_mask(tmp_path / f"bits.{suffix}") == bits).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_16_palettes(tmp_path: Path, bits: int) -> None:
    """Images have the colours of the palette, white where it is transparent; masks have the indices."""
    colours = RNG.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    ids = RNG.integers(0, 1 << bits, (9, 8), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(9, -1), axis=1)
    table = chunk(b"PLTE", colours.tobytes())
    path = _written(tmp_path / "palette.png", png(8, 9, bits, 3, rows(packed), table))
    assert (read_image(path) == colours[ids]).all()
    assert (read_mask(path) == ids).all()
    _written(path, png(8, 9, bits, 3, rows(packed), table + chunk(b"tRNS", b"\0")))
    assert (read_image(path) == np.where(ids[..., None] == 0, 255, colours[ids])).all()
    assert (read_mask(path) == ids).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_16_grey_masks_of_any_depth_keep_their_ids(tmp_path: Path, bits: int) -> None:
    """Decoders scale greys of 2 and 4 bits to 0..255, which is right for images and wrong for class ids."""
    ids = np.arange(72).reshape(9, 8) % (1 << bits)
    if bits == 16:
        ids = ids * 900
    as_bits = np.unpackbits(ids.astype(">u2").view(np.uint8).reshape(9, 8, 2), axis=2)[..., 16 - bits :]
    path = _written(tmp_path / "ids.png", png(8, 9, bits, 0, rows(np.packbits(as_bits.reshape(9, -1), axis=1))))
    assert (read_mask(path) == ids).all()
    assert np.abs(read_image(path)[..., 0] - ids * 255 / ((1 << bits) - 1)).max() <= 0.5


def test_17_transparency_lies_over_white(tmp_path: Path) -> None:
    """colour * alpha + white * (1 - alpha), however the file stores alpha; also for a single transparent colour."""
    rgba = RNG.integers(0, 256, (12, 9, 4), dtype=np.uint8)
    rgba[0, 0], rgba[1, 1] = (10, 20, 30, 255), (10, 20, 30, 0)
    over = (rgba[..., :3] * (rgba[..., 3:] / 255)) + 255 * (1 - rgba[..., 3:] / 255)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        read = read_image(_written(tmp_path / "rgba", encoded(Image.fromarray(rgba), kind, **options)))
        assert np.abs(read - over).max() <= 1, kind
        assert read[0, 0].tolist() == [10, 20, 30]
        assert read[1, 1].tolist() == [255, 255, 255]
    assert np.abs(read_image(rgba) - over).max() <= 1
    grey = Image.fromarray(rgba).convert("LA")
    value, alpha = (np.asarray(plane) / 255 for plane in grey.split())
    read = read_image(_written(tmp_path / "la.png", encoded(grey, "PNG")))
    assert np.abs(read[..., 1] - 255 * (value * alpha + 1 - alpha)).max() <= 1
    wide = np.array([[0, 700], [65535, 700]], np.uint16)
    read = read_image(_written(tmp_path / "key.png", encoded(Image.fromarray(wide), "PNG", transparency=700)))
    assert read[..., 0].tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {})])
def test_18_the_first_of_several_frames(tmp_path: Path, kind: str, options: dict) -> None:
    frames = [Image.new("RGB", (8, 16), colour) for colour in ("red", "blue", "green")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    path = _written(tmp_path / "frames", content)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    read = read_image(path)
    assert read.shape == (16, 8, 3)
    assert np.abs(read.astype(int) - (255, 0, 0)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_19_orientation_applies_to_image_and_mask_alike(tmp_path: Path, orientation: int, suffix: str) -> None:
    """All eight EXIF orientations in every format that has them; the stored images follow from the EXIF definition."""
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(
        path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.abs(read_image(path).astype(int) - upright[..., None]).max() <= (1 if suffix == "jpg" else 0)
    if suffix in ("png", "tif"):
        assert (read_mask(path) == upright).all()
    if suffix == "png":
        with Image.open(path) as image:
            assert (read_image(image) == read_image(path)).all()


def test_19_masks_do_not_come_as_jpeg(tmp_path: Path) -> None:
    path = _written(tmp_path / "mask.png", encoded(Image.fromarray(PICTURE[..., 0]), "JPEG"))
    with pytest.raises(InputError, match="JPEG alters class indices"):
        read_mask(path)


@pytest.fixture(scope="module")
def predictor() -> foveal.Predictor:
    return foveal.load(REF)


def test_22_grey_images_are_three_equal_channels(tmp_path: Path, predictor: foveal.Predictor) -> None:
    grey = PICTURE[..., 0]
    stacked = np.repeat(grey[..., None], 3, axis=2)
    path = _written(tmp_path / "grey.png", encoded(Image.fromarray(grey), "PNG"))
    assert (read_image(path) == stacked).all()
    assert (read_image(grey) == stacked).all()
    assert (predictor.segment(path).mask == predictor.segment(stacked).mask).all()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_handmade_files_are_what_pillow_writes() -> None:
    """Pillow reads the files that the helpers write by hand."""
    with Image.open(io.BytesIO(png(56, 40, rows=rows(PICTURE)))) as image:
        assert (np.asarray(image) == PICTURE).all()
    with Image.open(io.BytesIO(tiff(56, 40, 8, PICTURE.tobytes(), samples=3, photometric=2))) as image:
        assert (np.asarray(image) == PICTURE).all()
