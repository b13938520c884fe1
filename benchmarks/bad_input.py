"""What readers make of bad and unusual files: Foveal, Pillow, OpenCV, torchvision, EfficientViT's authors' evaluation.

Makes the files, gives each to every reader, in a process of its own, under a limit of memory and processor time,
compares what comes out with the picture that went in, and prints the Markdown tables of docs/bad_input.md. A reader
that crashes is started again for the next file. Times are processor time.

python benchmarks/bad_input.py [--readers foveal pillow ...] [--efficientvit CHECKOUT]
    (needs opencv-python-headless and torchvision; Linux. CHECKOUT: a clone of github.com/mit-han-lab/efficientvit,
    whose data sets for evaluation are run as they are; without it, its column and its masks are left out)
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal import assets

MEMORY = 4 << 30  # more than this above what the reader has after its imports is refused by the system
HOLES = 40
SECONDS = 120  # of processor time for one file

Truth = NDArray[Any] | None  # None: to be refused


def _foveal(path: str) -> NDArray[Any]:
    from foveal.images.reading import read_image

    return read_image(path)


def _pillow(path: str) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _opencv(path: str) -> NDArray[Any]:
    import cv2  # pyright: ignore[reportMissingImports] - for this comparison alone

    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("None")
    return image[..., ::-1]


def _torchvision(path: str) -> NDArray[Any]:
    from torchvision.io import ImageReadMode, decode_image

    image = decode_image(path, ImageReadMode.RGB).numpy()
    return image.transpose(1, 2, 0) if image.ndim == 3 else image


def _efficientvit(path: str) -> NDArray[Any]:
    data = authors()["CityscapesDataset"](os.devnull)
    mask = Path(path).with_name("mask.png")
    if not mask.exists():
        Image.new("L", (8, 8)).save(mask)
    data.samples, data.transform = [(path, str(mask))], dict
    return data[0]["data"]


def _foveal_weights(path: str) -> None:
    from foveal.weights.checkpoints import read_state

    read_state(Path(path))


def _usual_weights(path: str) -> None:
    import torch
    from safetensors.torch import load_file

    if path.endswith(".pt"):
        torch.load(path, map_location="cpu", weights_only=True)
    else:
        load_file(path)


def authors() -> dict[str, Any]:
    """The names in the authors' evaluation script, run once from the checkout."""
    if not _AUTHORS:
        script = Path(os.environ["EFFICIENTVIT"], "applications/efficientvit_seg/eval_efficientvit_seg_model.py")
        _AUTHORS.update(runpy.run_path(str(script)))
    return _AUTHORS


_AUTHORS: dict[str, Any] = {}
Reader = Callable[[str], NDArray[Any] | None]  # None: of weights, which are not compared
READERS: dict[str, tuple[str, Reader]] = {
    "foveal": ("Foveal", _foveal),
    "pillow": ('Pillow `.convert("RGB")`', _pillow),
    "opencv": ("OpenCV `imread`", _opencv),
    "torchvision": ("torchvision `decode_image`", _torchvision),
    "efficientvit": ("EfficientViT, the authors' evaluation", _efficientvit),
}
WEIGHT_READERS: dict[str, tuple[str, Reader]] = {
    "foveal-weights": ("Foveal", _foveal_weights),
    "usual-weights": ("`torch.load(weights_only=True)`, `safetensors`", _usual_weights),
}


def cases() -> Iterator[tuple[int, str, str, bytes, Truth]]:
    """(case, what it is, file name, content, the picture upright in 0..255 or None where it should be refused)."""
    make = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "pictures.py"))
    png, tiff, encoded = make["png"], make["tiff"], make["encoded"]
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(96), np.arange(128))
    picture = np.dstack([ramp, ramp[::-1], 222 - ramp]).astype(np.uint8)
    image, white = Image.fromarray(picture), np.full_like(picture, 255)

    def rows(values: NDArray[Any]) -> bytes:
        return b"".join(b"\0" + row.tobytes() for row in values)

    jpeg, noise = encoded(image, "JPEG", quality=95), rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    blurred = np.asarray(Image.fromarray(noise).resize((160, 120)).resize((640, 480)))
    photo = encoded(Image.fromarray(blurred), "JPEG", quality=90)
    hole = random.Random(1).randbytes(4096)
    wide = rng.integers(0, 65536, (96, 128, 3)).astype(np.uint16)
    grey, floats = wide[..., 0], np.linspace(0, 1, 96 * 128, dtype=np.float32)
    three = np.repeat(grey[..., None], 3, axis=2) / 257
    negative = tiff(128, 96, 16, grey.tobytes(), photometric=0)

    yield 1, "bomb: 108 megapixels", "large.png", encoded(Image.new("L", (12_000, 9_000)), "PNG"), None
    yield 1, "bomb: 400 megapixels", "bomb.png", encoded(Image.new("L", (20_000, 20_000)), "PNG"), None
    yield 2, "header claims 65535 x 65535", "lie.png", png(65_535, 65_535), None
    yield 4, "zero bytes", "zero.png", b"", None
    yield 5, "garbage", "garbage.png", random.Random(0).randbytes(3000), None
    yield 6, "truncated JPEG", "half.jpg", jpeg[: len(jpeg) // 2], None
    yield 6, "truncated PNG", "half.png", (full := encoded(image, "PNG"))[: len(full) // 2], None
    yield 6, "truncated WebP", "half.webp", (full := encoded(image, "WEBP"))[: len(full) // 2], None
    middle = len(photo) // 2
    yield 7, "4 kB of a JPEG lost to random bytes", "hole.jpg", photo[:middle] + hole + photo[middle + 4096 :], None
    yield 7, "64 bytes of a JPEG lost", "hole64.jpg", photo[:middle] + hole[:64] + photo[middle + 64 :], None
    full = bytearray(encoded(Image.fromarray(picture[:6, :6]), "PNG"))
    full[full.index(b"IDAT") + 30] ^= 8
    yield 7, "one bit of a PNG flipped", "flipped.png", bytes(full), None
    yield 8, "PNG named .jpg", "named.jpg", encoded(image, "PNG"), picture
    yield 9, "EPS", "print.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None
    yield 9, "SVG", "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", None
    yield 10, "CMYK JPEG", "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=95), picture
    yield 10, "YCCK JPEG", "ycck.jpg", make["ycck"](picture), picture
    yield 11, "16-bit grey PNG", "grey16.png", encoded(Image.fromarray(grey), "PNG"), three
    yield 11, "16-bit grey TIFF", "grey16.tif", encoded(Image.fromarray(grey), "TIFF"), three
    yield 11, "16-bit grey TIFF, 0 is white", "white.tif", negative, 255 - three
    yield 12, "16-bit RGB PNG", "rgb16.png", png(128, 96, 16, rows=rows(wide.astype(">u2"))), wide / 257
    yield 12, "16-bit RGB TIFF", "rgb16.tif", tiff(128, 96, 16, wide.tobytes(), samples=3, photometric=2), wide / 257
    yield 13, "float TIFF, 0 to 1", "float.tif", tiff(128, 96, 32, floats.tobytes(), kind=3), None
    floats[::2] = np.nan
    yield 14, "float TIFF with NaN", "nan.tif", tiff(128, 96, 32, floats.tobytes(), kind=3), None
    bits = np.repeat((picture[..., :1] > 99) * 255, 3, axis=2)
    yield 15, "1-bit PNG", "bits.png", encoded(Image.fromarray(bits[..., 0] > 0), "PNG"), bits
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    yield 16, "palette PNG", "palette.png", encoded(palette, "PNG"), np.asarray(palette.convert("RGB"))
    clear = Image.new("P", (128, 96), 1)
    clear.putpalette([0, 0, 0, 200, 100, 50])
    yield 16, "palette PNG, all transparent", "clear.png", encoded(clear, "PNG", transparency=1), white
    alpha = Image.fromarray(np.dstack([picture, np.zeros_like(ramp, np.uint8)]))
    yield 17, "RGBA PNG, all transparent", "alpha.png", encoded(alpha, "PNG"), white
    several = {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
    yield 18, "animated WebP", "moving.webp", encoded(image, "WEBP", lossless=True, **several), picture
    for orientation in (2, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = image.transpose({2: Image.Transpose.FLIP_LEFT_RIGHT, 6: Image.Transpose.ROTATE_90}[orientation])
        content = encoded(turned, "JPEG", quality=95, exif=exif)
        yield 19, f"JPEG with EXIF orientation {orientation}", f"turned{orientation}.jpg", content, picture
    content = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(ramp.astype(np.uint8)))), "TIFF", exif=exif)
    yield 19, "grey TIFF with orientation 6", "turned.tif", content, np.repeat(ramp[..., None], 3, axis=2)
    thin = np.full((1, 30_000, 3), 90, np.uint8)
    yield 20, "1 x 30000", "thin.png", encoded(Image.fromarray(thin), "PNG"), thin
    yield (
        22,
        "grey JPEG",
        "grey.jpg",
        encoded(image.convert("L"), "JPEG", quality=95),
        np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2),
    )


def holes() -> Iterator[tuple[str, bytes]]:
    """A photograph as JPEG, again and again, with random bytes over some of its middle half, or one bit flipped."""
    with Image.open(assets.FOLDER / "street.jpg") as photo:
        small = photo.convert("RGB").resize((640, 480))
    for way in ("baseline", "progressive"):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85, progressive=way == "progressive")
        good = buffer.getvalue()
        for size in (0, 64, 4096):
            rng = random.Random(1)
            for index in range(HOLES):
                data, start = bytearray(good), rng.randrange(len(good) // 4, 3 * len(good) // 4 - size)
                data[start] ^= 1 << rng.randrange(8)
                data[start : start + size] = rng.randbytes(size)
                what = f"{size} bytes of it lost" if size else "one bit of it flipped"
                yield f"a photograph as {way} JPEG with {what}, {index}.jpg", bytes(data)


def weights(folder: Path) -> Iterator[tuple[int, str, str]]:
    """(case, what it is, file name) of weight files written into ``folder``; several of one kind share their title."""
    import torch

    from foveal.info import ModelInfo
    from foveal.weights.checkpoints import save_checkpoint

    make = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "hostile_weights.py"))
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


def masks(folder: Path) -> Iterator[tuple[int, str, str]]:
    """(case, mask, what the authors' data sets and their IoU make of it where every pixel is predicted right)."""
    every = (np.arange(64 * 96, dtype=np.uint16) % 34).astype(np.uint8).reshape(64, 96)
    two, unknown = np.full_like(every, 7), every.copy()  # 7 is road
    two[:, 48:], unknown[:4] = 26, 200  # 26 is car
    garbage = random.Random(0).randbytes(3000)
    for case, what, kind, mask, image in (
        (23, "Cityscapes, id 200", "CityscapesDataset", unknown, None),
        (23, "ADE20K, id 200", "ADE20KDataset", unknown, None),
        (24, "twice as large as its image", "CityscapesDataset", every.repeat(2, 0).repeat(2, 1), None),
        (25, "colours where ids are expected", "CityscapesDataset", np.dstack([every] * 3), None),
        (26, "none", "CityscapesDataset", None, None),
        (27, "no labelled pixel", "CityscapesDataset", np.zeros_like(every), None),
        (28, "two classes of nineteen", "CityscapesDataset", two, None),
        (30, "good, but the image is garbage", "CityscapesDataset", every, garbage),
    ):
        place = Path(tempfile.mkdtemp(dir=folder))
        cityscapes = kind == "CityscapesDataset"
        photo = place / ("leftImg8bit/a_leftImg8bit.png" if cityscapes else "images/a.jpg")
        labels = place / ("gtFine/a_gtFine_labelIds.png" if cityscapes else "annotations/a.png")
        photo.parent.mkdir()
        labels.parent.mkdir()
        Image.new("RGB", (96, 64)).save(photo)
        if image is not None:
            photo.write_bytes(image)
        if mask is not None:
            Image.fromarray(mask).save(labels)
        data = authors()[kind](str(photo.parent))
        try:
            found = data[0]["label"].float()
        except Exception as error:
            yield case, what, f"the run ends ({type(error).__name__})"
            continue
        shape = " x ".join(map(str, found.shape))
        if found.ndim > 2:
            yield case, what, f"**taken**, labels of shape {shape}"
            continue
        counts = authors()["SegIOU"](len(data.classes))(found.clamp(min=0), found)
        lost = int((found >= 0).sum() - counts["u"].sum())
        score = 100 * (counts["i"] / counts["u"]).mean().item()
        outcome = f"{lost} labelled pixels left out" if lost else f"mIoU {score:.0f} %"
        yield case, what, f"**taken** as {shape}, {outcome}"


def judge(path: Path, truth: Truth, read: Reader) -> str:
    """Read one file and say in a few words what came of it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
    before, started = _status("VmRSS"), time.process_time()
    try:
        found = read(str(path))
    except Exception as error:  # each reader has its own
        too_much = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # torch's is a RuntimeError
        verdict = "**asks for more than 4 GB**" if too_much else f"refused ({type(error).__name__})"
    else:
        if truth is None or found is None:
            verdict = "**taken**"
        elif found.dtype != np.uint8:
            verdict = f"{found.dtype}, for the caller to scale"
        elif found.shape != truth.shape:
            verdict = f"**wrong: {' x '.join(map(str, found.shape))}**"
        else:
            off = float(np.abs(found.astype(float) - truth).mean())
            verdict = f"right (off by {off:.2f})" if off < 3 else f"**wrong by {off:.0f} levels**"
    seconds, grown = time.process_time() - started, (_status("VmHWM") - before) >> 10
    return (
        f"{verdict}, {1000 * seconds:.0f} ms, {grown} MB" if path.stem.startswith(("bomb", "large", "lie")) else verdict
    )


def _status(key: str) -> int:
    """A figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def work(reader: str, folder: Path, names: list[str]) -> None:
    """Judge files one by one, a line of JSON for each; what has been printed is safe from a crash."""
    read, first = (READERS | WEIGHT_READERS)[reader][1], folder / "good.safetensors"
    if reader in READERS:
        first = folder / f"first-{reader}.png"
        Image.new("RGB", (8, 8)).save(first)
    read(str(first))  # imports what the reader imports, and ends where that is missing
    resource.setrlimit(resource.RLIMIT_AS, ((_status("VmSize") << 10) + MEMORY, resource.RLIM_INFINITY))
    for name in names:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
        truth = np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None
        print(json.dumps([name, judge(folder / name, truth, read)]), flush=True)


def main() -> None:
    """Make the files, run the readers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--readers", nargs="+", default=list(READERS)[:-1], choices=list(READERS)[:-1])
    parser.add_argument("--efficientvit", type=Path, metavar="CHECKOUT")
    parser.add_argument("--work", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        reader, folder, *names = arguments.work
        work(reader, Path(folder), names)
        return
    if arguments.efficientvit:
        os.environ["EFFICIENTVIT"] = str(arguments.efficientvit.resolve())
        arguments.readers.append("efficientvit")
    with tempfile.TemporaryDirectory() as place:
        folder, table = Path(place), []
        for case, title, name, content, truth in cases():
            (folder / name).write_bytes(content)
            if truth is not None:
                np.save(folder / f"{name}.npy", truth)
            table.append((case, title, name))
        holed = dict(holes())
        for name, content in holed.items():
            (folder / name).write_bytes(content)
        many = [(7, name.partition(",")[0], name) for name in holed]
        show({reader: READERS[reader][0] for reader in arguments.readers}, folder, [*table, *many])
    if arguments.efficientvit:
        print(f"\n| case | mask | {READERS['efficientvit'][0]} |\n|---|---|---|")
        with tempfile.TemporaryDirectory() as place:
            for case, what, verdict in masks(Path(place)):
                print(f"| {case} | {what} | {verdict} |")
    print()
    with tempfile.TemporaryDirectory() as place:
        show({reader: title for reader, (title, _) in WEIGHT_READERS.items()}, Path(place), [*weights(Path(place))])
        print(f"executed: {Path(place, 'executed').exists()}")
    installed = {"foveal": foveal.__version__}
    for name in ("pillow", "opencv-python-headless", "torchvision"):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    print("\n" + ", ".join(f"{name} {version}" for name, version in installed.items()))


def show(readers: dict[str, str], folder: Path, files: list[tuple[int, str, str]]) -> None:
    """Print the table of what each reader makes of each file; of files with one title it says how many were refused."""
    found = {reader: run(reader, folder, [name for _, _, name in files]) for reader in readers}
    print("| case | file |", " | ".join(readers.values()), "|")
    print("|---|---|" + "---|" * len(readers))
    for case, title in dict.fromkeys((case, title) for case, title, _ in files):
        names = [name for _, other, name in files if other == title]
        cells = [[verdicts[name] for name in names] for verdicts in found.values()]
        told = [
            c[0] if len(c) == 1 else f"{sum('refused' in verdict for verdict in c)} of {len(c)} refused" for c in cells
        ]
        print(f"| {case} | {title} |", " | ".join(told), "|")


def run(reader: str, folder: Path, names: list[str]) -> dict[str, str]:
    """Verdict per file; a file at which the process ends is named for it, and the rest goes on."""
    found: dict[str, str] = {}
    while left := [name for name in names if name not in found]:
        command = [sys.executable, __file__, "--work", reader, str(folder), *left]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found.update(json.loads(line) for line in done.stdout.splitlines())
        if done.returncode:
            if not found and done.returncode > 0:
                sys.exit(f"{reader} cannot be run: {' '.join(command)}")
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
            found[next(name for name in names if name not in found)] = f"**process ended ({ended})**"
    return found


if __name__ == "__main__":
    main()
