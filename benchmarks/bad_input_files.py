"""The image and weight files that bad_input.py gives to every reader."""

from __future__ import annotations

import io
import random
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal import assets

HOLES = 40  # files of each kind of damage
Truth = NDArray[Any] | None  # the picture in a file; None: the file should be refused
HELPERS = Path(__file__).parents[1] / "tests" / "helpers"
Case = tuple[int, str, str, bytes, Truth]  # case, what the file is, its name, content, the picture in it


class Material(NamedTuple):
    """What the test files are made of.

    Attributes:
        make: the functions of tests/helpers/pictures.py that write files.
        picture: RGB image ``(96, 128, 3)`` of 8 bits.
        wide: RGB image ``(96, 128, 3)`` of 16 bits.
        photo: a JPEG of 640x480 pixels.
    """

    make: dict[str, Any]
    picture: NDArray[np.uint8]
    wide: NDArray[np.uint16]
    photo: bytes

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)

    def encode(self, image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return self.make["encoded"](image, kind, **options)


def cases() -> Iterator[Case]:
    """Image files. The picture is upright, in 0..255, or None where the file should be refused."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(96), np.arange(128))
    picture = np.dstack([ramp, ramp[::-1], 222 - ramp]).astype(np.uint8)
    noise = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    blurred = Image.fromarray(noise).resize((160, 120)).resize((640, 480))
    make = runpy.run_path(str(HELPERS / "pictures.py"))
    wide = rng.integers(0, 65536, (96, 128, 3)).astype(np.uint16)
    material = Material(make, picture, wide, make["encoded"](blurred, "JPEG", quality=90))
    for group in (_bombs, _damage, _formats, _wide, _floats, _few_colours, _alpha, _turned, _shapes):
        yield from group(material)


def _bombs(material: Material) -> Iterator[Case]:
    encode, png = material.encode, material.make["png"]
    yield 1, "bomb: 108 megapixels", "large.png", encode(Image.new("L", (12_000, 9_000)), "PNG"), None
    yield 1, "bomb: 400 megapixels", "bomb.png", encode(Image.new("L", (20_000, 20_000)), "PNG"), None
    yield 2, "header claims 65535 x 65535", "lie.png", png(65_535, 65_535), None


def _damage(material: Material) -> Iterator[Case]:
    encode, image, photo = material.encode, material.image, material.photo
    yield 4, "zero bytes", "zero.png", b"", None
    yield 5, "garbage", "garbage.png", random.Random(0).randbytes(3000), None
    whole = {"JPEG": encode(image, "JPEG", quality=95), "PNG": encode(image, "PNG"), "WebP": encode(image, "WEBP")}
    for kind, content in whole.items():
        name = f"half.{'jpg' if kind == 'JPEG' else kind.lower()}"
        yield 6, f"truncated {kind}", name, content[: len(content) // 2], None
    hole, middle = random.Random(1).randbytes(4096), len(photo) // 2
    yield 7, "4 kB of a JPEG lost to random bytes", "hole.jpg", photo[:middle] + hole + photo[middle + 4096 :], None
    yield 7, "64 bytes of a JPEG lost", "hole64.jpg", photo[:middle] + hole[:64] + photo[middle + 64 :], None
    flipped = bytearray(encode(material.picture[:6, :6], "PNG"))
    flipped[flipped.index(b"IDAT") + 30] ^= 8
    yield 7, "one bit of a PNG flipped", "flipped.png", bytes(flipped), None


def _formats(material: Material) -> Iterator[Case]:
    encode, image, picture = material.encode, material.image, material.picture
    yield 8, "PNG named .jpg", "named.jpg", encode(image, "PNG"), picture
    yield 9, "EPS", "print.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None
    yield 9, "SVG", "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", None
    yield 10, "CMYK JPEG", "cmyk.jpg", encode(image.convert("CMYK"), "JPEG", quality=95), picture
    yield 10, "YCCK JPEG", "ycck.jpg", material.make["ycck"](picture), picture


def _wide(material: Material) -> Iterator[Case]:
    """Files of 16 bits."""
    encode, png, tiff, wide = material.encode, material.make["png"], material.make["tiff"], material.wide
    grey = wide[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2) / 257
    negative = tiff(128, 96, 16, grey.tobytes(), photometric=0)
    rows = b"".join(b"\0" + row.tobytes() for row in wide.astype(">u2"))
    yield 11, "16-bit grey PNG", "grey16.png", encode(grey, "PNG"), three
    yield 11, "16-bit grey TIFF", "grey16.tif", encode(grey, "TIFF"), three
    yield 11, "16-bit grey TIFF, 0 is white", "white.tif", negative, 255 - three
    yield 12, "16-bit RGB PNG", "rgb16.png", png(128, 96, 16, rows=rows), wide / 257
    yield 12, "16-bit RGB TIFF", "rgb16.tif", tiff(128, 96, 16, wide.tobytes(), samples=3, photometric=2), wide / 257


def _floats(material: Material) -> Iterator[Case]:
    tiff, floats = material.make["tiff"], np.linspace(0, 1, 96 * 128, dtype=np.float32)
    yield 13, "float TIFF, 0 to 1", "float.tif", tiff(128, 96, 32, floats.tobytes(), kind=3), None
    floats[::2] = np.nan
    yield 14, "float TIFF with NaN", "nan.tif", tiff(128, 96, 32, floats.tobytes(), kind=3), None


def _few_colours(material: Material) -> Iterator[Case]:
    encode, image, picture = material.encode, material.image, material.picture
    bits = np.repeat((picture[..., :1] > 99) * 255, 3, axis=2)
    yield 15, "1-bit PNG", "bits.png", encode(bits[..., 0] > 0, "PNG"), bits
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    yield 16, "palette PNG", "palette.png", encode(palette, "PNG"), np.asarray(palette.convert("RGB"))
    clear = Image.new("P", (128, 96), 1)
    clear.putpalette([0, 0, 0, 200, 100, 50])
    white = np.full_like(picture, 255)
    yield 16, "palette PNG, all transparent", "clear.png", encode(clear, "PNG", transparency=1), white


def _alpha(material: Material) -> Iterator[Case]:
    encode, image, picture = material.encode, material.image, material.picture
    transparent = np.dstack([picture, np.zeros_like(picture[..., 0])])
    yield 17, "RGBA PNG, all transparent", "alpha.png", encode(transparent, "PNG"), np.full_like(picture, 255)
    several = {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
    yield 18, "animated WebP", "moving.webp", encode(image, "WEBP", lossless=True, **several), picture


def _turned(material: Material) -> Iterator[Case]:
    """Files whose EXIF orientation differs from that of their pixels."""
    encode, image, picture = material.encode, material.image, material.picture
    for orientation, method in ((2, Image.Transpose.FLIP_LEFT_RIGHT), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(image.transpose(method), "JPEG", quality=95, exif=exif)
        yield 19, f"JPEG with EXIF orientation {orientation}", f"turned{orientation}.jpg", content, picture
    grey = picture[..., 0]
    content = encode(np.ascontiguousarray(np.rot90(grey)), "TIFF", exif=exif)
    yield 19, "grey TIFF with orientation 6", "turned.tif", content, np.repeat(grey[..., None], 3, axis=2)


def _shapes(material: Material) -> Iterator[Case]:
    encode, grey = material.encode, material.image.convert("L")
    thin = np.full((1, 30_000, 3), 90, np.uint8)
    yield 20, "1 x 30000", "thin.png", encode(thin, "PNG"), thin
    three = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    yield 22, "grey JPEG", "grey.jpg", encode(grey, "JPEG", quality=95), three


def holes() -> Iterator[tuple[str, bytes]]:
    """Many copies of a photograph as JPEG, with random bytes in the middle half or with one bit flipped."""
    with Image.open(assets.FOLDER / "street.jpg") as photo:
        small = photo.convert("RGB").resize((640, 480))
    for mode in ("baseline", "progressive"):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85, progressive=mode == "progressive")
        good = buffer.getvalue()
        for size in (0, 64, 4096):
            rng = random.Random(1)
            for index in range(HOLES):
                data, start = bytearray(good), rng.randrange(len(good) // 4, 3 * len(good) // 4 - size)
                data[start] ^= 1 << rng.randrange(8)
                data[start : start + size] = rng.randbytes(size)
                damage = f"{size} bytes of it lost" if size else "one bit of it flipped"
                yield f"a photograph as {mode} JPEG with {damage}, {index}.jpg", bytes(data)


def weights(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Write weight files into ``folder``; case, title and name of each. Files of one kind share their title."""
    import torch

    from foveal.info import ModelInfo
    from foveal.weights.checkpoints import save_checkpoint

    make = runpy.run_path(str(HELPERS / "hostile_weights.py"))
    torch.save({"weight": torch.zeros(2), "evil": make["Evil"](folder / "executed")}, folder / "evil.pt")
    yield 31, "pickle that calls something", "evil.pt"
    for kind, what in (
        ("bytearray", "byte array of 8 GB in an archive of 1 kB"),
        ("legacy bytearray", "the same as a bare pickle"),
        ("zip", "archive that inflates 100 MB"),
        ("overlapping zip", "archive whose 1,000 entries are the same bytes"),
        ("storage", "storage that claims 8 GB"),
        ("header", "safetensors header of 90 MB"),
        ("claim", "safetensors tensor that claims 8 GB"),
    ):
        name = f"bomb-{kind}.{'safetensors' if kind in ('header', 'claim') else 'pt'}"
        (folder / name).write_bytes(make["bomb"](kind))
        yield 32, what, name
    torch.save({"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, folder / "view.pt")
    yield 32, "one number viewed as a million million", "view.pt"
    for kind, content in make["HOSTILE_SAFETENSORS"].items():
        (folder / f"{kind}.safetensors").write_bytes(content)
        what = "tensor of a name twice" if kind == "duplicate" else "impossible headers"
        yield 33, f"safetensors, {what}", f"{kind}.safetensors"
    state = {"weight": torch.arange(4096.0)}
    save_checkpoint(folder / "good.safetensors", state, ModelInfo(model="efficientvit_b0", tag="mine"))
    torch.save(state, folder / "good.pt")
    rng = random.Random(0)
    for name, what in (("good.safetensors", "a file of ours"), ("good.pt", "an archive of torch's")):
        good = (folder / name).read_bytes()
        for index in range(HOLES):
            spoilt = make["flipped"](good, rng.randrange(len(good) // 4, 3 * len(good) // 4))
            (folder / f"flip{index}-{name}").write_bytes(spoilt)
            yield 34, f"one flipped bit in {what}", f"flip{index}-{name}"
