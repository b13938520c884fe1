"""Give bad and unusual files to several readers and print what each does with them: the tables of docs/bad_input.md.

The readers are Foveal, Pillow, OpenCV, torchvision and the evaluation code of EfficientViT's authors. Each runs in a
process of its own, with a limit on memory and processor time, and is started again after a crash. Its result is
compared with the picture that the file was made from. Times are processor time.

python benchmarks/bad_input.py [--readers foveal pillow ...] [--efficientvit CHECKOUT]
    Needs Linux, opencv-python-headless and torchvision. CHECKOUT is a clone of github.com/mit-han-lab/efficientvit,
    whose evaluation data sets run unchanged; without it, its column and its table of masks are left out.
"""

from __future__ import annotations

import argparse
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
from bad_input_files import Truth, cases, holes, weights
from numpy.typing import NDArray
from PIL import Image

import foveal

MEMORY = 4 << 30  # bytes that a reader may take in addition to what it has after its imports
SECONDS = 120  # processor time for one file


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
    """The names that the authors' evaluation script defines; it runs once, from the checkout."""
    if not _AUTHORS:
        script = Path(os.environ["EFFICIENTVIT"], "applications/efficientvit_seg/eval_efficientvit_seg_model.py")
        _AUTHORS.update(runpy.run_path(str(script)))
    return _AUTHORS


_AUTHORS: dict[str, Any] = {}
Reader = Callable[[str], NDArray[Any] | None]  # None for weights, which are not compared
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


def masks(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Case, title, and what the authors' data sets and IoU do with a mask whose pixels are all predicted right."""
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
            label = data[0]["label"].float()
        except Exception as error:
            yield case, what, f"the run ends ({type(error).__name__})"
            continue
        shape = " x ".join(map(str, label.shape))
        if label.ndim > 2:
            yield case, what, f"**taken**, labels of shape {shape}"
            continue
        counts = authors()["SegIOU"](len(data.classes))(label.clamp(min=0), label)
        lost = int((label >= 0).sum() - counts["u"].sum())
        score = 100 * (counts["i"] / counts["u"]).mean().item()
        outcome = f"{lost} labelled pixels left out" if lost else f"mIoU {score:.0f} %"
        yield case, what, f"**taken** as {shape}, {outcome}"


def judge(path: Path, truth: Truth, read: Reader) -> str:
    """Read one file and describe the outcome in a few words."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
    before, started = _status("VmRSS"), time.process_time()
    try:
        output = read(str(path))
    except Exception as error:  # each reader raises its own types
        too_much = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # torch's is a RuntimeError
        verdict = "**asks for more than 4 GB**" if too_much else f"refused ({type(error).__name__})"
    else:
        if truth is None or output is None:
            verdict = "**taken**"
        elif output.dtype != np.uint8:
            verdict = f"{output.dtype}, for the caller to scale"
        elif output.shape != truth.shape:
            verdict = f"**wrong: {' x '.join(map(str, output.shape))}**"
        else:
            off = float(np.abs(output.astype(float) - truth).mean())
            verdict = f"right (off by {off:.2f})" if off < 3 else f"**wrong by {off:.0f} levels**"
    seconds, grown = time.process_time() - started, (_status("VmHWM") - before) >> 10
    return (
        f"{verdict}, {1000 * seconds:.0f} ms, {grown} MB" if path.stem.startswith(("bomb", "large", "lie")) else verdict
    )


def _status(key: str) -> int:
    """A memory figure of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def work(reader: str, folder: Path, names: list[str]) -> None:
    """Judge files one by one and print a line of JSON for each at once, so that a crash loses only one file."""
    read, first = (READERS | WEIGHT_READERS)[reader][1], folder / "good.safetensors"
    if reader in READERS:
        first = folder / f"first-{reader}.png"
        Image.new("RGB", (8, 8)).save(first)
    read(str(first))  # imports the reader's packages, and fails here where they are missing
    resource.setrlimit(resource.RLIMIT_AS, ((_status("VmSize") << 10) + MEMORY, resource.RLIM_INFINITY))
    for name in names:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
        truth = np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None
        print(json.dumps([name, judge(folder / name, truth, read)]), flush=True)


def main() -> None:
    """Make the files, run the readers, print the tables."""
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
    """Print a table with one row per title; for several files with one title, how many each reader refused."""
    verdicts = {reader: run(reader, folder, [name for _, _, name in files]) for reader in readers}
    print("| case | file |", " | ".join(readers.values()), "|")
    print("|---|---|" + "---|" * len(readers))
    for case, title in dict.fromkeys((case, title) for case, title, _ in files):
        names = [name for _, other, name in files if other == title]
        columns = [[by_name[name] for name in names] for by_name in verdicts.values()]
        cells = [c[0] if len(c) == 1 else f"{sum('refused' in v for v in c)} of {len(c)} refused" for c in columns]
        print(f"| {case} | {title} |", " | ".join(cells), "|")


def run(reader: str, folder: Path, names: list[str]) -> dict[str, str]:
    """Verdict per file. Where the process ends, that is the verdict of the file, and a new process goes on."""
    verdicts: dict[str, str] = {}
    while left := [name for name in names if name not in verdicts]:
        command = [sys.executable, __file__, "--work", reader, str(folder), *left]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        verdicts.update(json.loads(line) for line in done.stdout.splitlines())
        if done.returncode:
            if not verdicts and done.returncode > 0:
                sys.exit(f"{reader} cannot be run: {' '.join(command)}")
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
            verdicts[next(name for name in names if name not in verdicts)] = f"**process ended ({ended})**"
    return verdicts


if __name__ == "__main__":
    main()
