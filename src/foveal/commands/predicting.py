"""Verbs that predict: ``segment``, ``classify``, ``predict``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import ConfigError, InputError
from .console import Images, Json, Overlap, Tile, print_json, print_table

if TYPE_CHECKING:
    from ..results import SegmentResult
    from ..run.predict import Predictor


def segment(
    images: Images,
    /,
    *,
    model: str = assets.DEFAULTS["segment"],
    out: Path = Path("foveal-out"),
    overlay: bool | None = None,
    label: Path | None = None,
    tile: Tile = None,
    overlap: Overlap = None,
    resume: bool = False,
    json: Json = False,
) -> int:
    """Segment photographs. A single image also prints its classes; a folder gives one mask per image.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for masks (PNG of class indices with a palette) and overlays, or the PNG of a single image's mask.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    label
        Index mask to compare a single image's result with (255 is left out).
    resume
        Leave out images whose mask exists.
    """
    from ..run.load import load

    predictor = load(model)
    if predictor.info.task != "segment":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    return _predict(predictor, images, out, overlay, label, tile, overlap, resume, json)


def classify(images: Images, /, *, model: str = assets.DEFAULTS["classify"], top: int = 5, json: Json = False) -> int:
    """Classify photographs: the most probable classes of each.

    Parameters
    ----------
    model
        Checkpoint or exported file of a classifier; default: published weights, fetched once.
    top
        How many classes to print.
    """
    from ..run.load import load

    predictor = load(model)
    if predictor.info.task != "classify":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    return _classify(predictor, images, top, json)


def predict(
    images: Images,
    /,
    *,
    model: str,
    out: Path = Path("foveal-out"),
    overlay: bool | None = None,
    tile: Tile = None,
    overlap: Overlap = None,
    resume: bool = False,
    json: Json = False,
) -> int:
    """Predict with any model; what comes out is its task's.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for the results of models that make images, or the file of a single one.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    resume
        Leave out images whose result exists.
    """
    from ..run.load import load

    predictor = load(model)
    if predictor.info.task == "classify":
        return _classify(predictor, images, 5, json)
    if predictor.info.task == "upscale":
        from . import upscaling

        return upscaling.run(predictor, images, out, tile=tile, overlap=overlap, resume=resume, as_json=json)
    if predictor.info.task == "prompt":
        from . import prompting

        if tile is not None or overlap is not None:
            raise ConfigError(f"--tile, --overlap: {model} is promptable and sees the whole image; leave them out")
        return prompting.run(predictor, images, out, overlay, resume, json)
    return _predict(predictor, images, out, overlay, None, tile, overlap, resume, json)


def _predict(
    predictor: Predictor,
    images: list[Path],
    out: Path,
    overlay: bool | None,
    label: Path | None,
    tile: int | None,
    overlap: int | None,
    resume: bool,
    as_json: bool,
) -> int:
    jobs, many = jobs_of(images, out)
    if label is not None and many:
        raise ConfigError("--label compares a single image")
    if tile is not None:
        predictor.check_tiles(tile, overlap)
    elif overlap is not None:
        raise ConfigError(f"--overlap {overlap} goes with --tile")
    overlays = not many if overlay is None else overlay
    if not many:
        report = segmented(predictor, *jobs[0], overlays, label, tile, overlap)
        if as_json:
            print_json(report)
        else:
            say_segmented(report)
        return 0
    if resume:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    return _segment_many(predictor, jobs, overlays, tile, overlap, out, as_json)


def segmented(
    predictor: Predictor,
    source: Path,
    target: Path,
    overlay: bool,
    label: Path | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> dict[str, Any]:
    """Segment one image, write what is to be written, and tell what was found."""
    from .. import machine

    started = time.perf_counter()
    result = predictor.segment(source, tile=tile, overlap=overlap)
    mask = result.mask
    seconds = time.perf_counter() - started
    written = _write(result, target, overlay)
    height, width = mask.shape
    report: dict[str, Any] = {
        "image": str(source),
        "size": [height, width],
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "seconds": round(seconds, 4),
        "machine": machine.describe(),
        "classes": [
            {"name": name, "share": round(share, 6), "confidence": round(confidence, 6)}
            for name, share, confidence in result.shares()
        ],
        "files": [str(path) for path in written],
    }
    if label is not None:
        report["agreement"] = round(_agreement(result, label), 6)
    return report


def say_segmented(report: dict[str, Any]) -> None:
    """Print what :func:`segmented` tells."""
    from .. import machine

    height, width = report["size"]
    print(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}\n")
    rows = [(c["name"], f"{c['share']:7.2%}", f"{c['confidence']:.2f}") for c in report["classes"]]
    print_table(("class", "pixels", "mean confidence"), rows)
    if "agreement" in report:
        print(f"\nagrees with the hand-made label on {report['agreement']:.1%} of its pixels")
    print(f"\n{report['seconds']:.2f} s for reading, network and mask on {machine.one_line()}")
    print(*report["files"], sep="\n")


def _segment_many(
    predictor: Predictor,
    jobs: list[tuple[Path, Path]],
    overlay: bool,
    tile: int | None,
    overlap: int | None,
    out: Path,
    as_json: bool,
) -> int:
    from ..run.progress import Progress

    progress = Progress()
    failed: list[dict[str, str]] = []
    started = time.perf_counter()
    with progress.bar("segment", len(jobs)) as bar:
        for source, target in jobs:
            try:
                _write(predictor.segment(source, tile=tile, overlap=overlap), target, overlay)
            except InputError as error:
                failed.append({"image": str(source), "error": str(error)})
                progress.note(str(error))
            bar.advance()
    seconds = time.perf_counter() - started
    done = len(jobs) - len(failed)
    if as_json:
        print_json({"done": done, "failed": failed, "out": str(out), "seconds": round(seconds, 3)})
    else:
        print(f"{done} of {len(jobs)} images in {seconds:.1f} s, masks in {out}")
        for failure in failed:
            print(f"failed: {failure['error']}")
    return 1 if failed else 0


def _classify(predictor: Predictor, images: list[Path], top: int, as_json: bool) -> int:
    jobs, many = jobs_of(images, Path())
    report: dict[str, Any] = {"images": [], "failed": []}
    for source, _ in jobs:
        try:
            result = predictor.classify(source)
        except InputError as error:
            if not many:
                raise
            report["failed"].append({"image": str(source), "error": str(error)})
            print(f"failed: {error}", file=sys.stderr)
            continue
        best = result.top(top)
        report["images"].append({"image": str(source), "classes": [{"name": n, "score": round(s, 6)} for n, s in best]})
        if not as_json:
            print_table((str(source), "score"), [(name, f"{score:.4f}") for name, score in best])
    if as_json:
        print_json(report)
    return 1 if report["failed"] else 0


def jobs_of(images: list[Path], out: Path, suffix: str = ".png") -> tuple[list[tuple[Path, Path]], bool]:
    """(image, result) paths, and whether this is a batch: a folder or several images.

    ``out`` is the results' folder or, where it ends as a picture or as the results do, the file of the only one.

    Raises:
        InputError: no images.
        ConfigError: a result would overwrite an image, or two have one name; a file for several results, or one of
            another format.
    """
    from ..imaging import SUFFIXES, list_images

    many = len(images) > 1 or images[0].is_dir()
    if out.suffix.lower() in (suffix, *SUFFIXES) and not out.is_dir():
        if many:
            raise ConfigError(f"--out {out}: several results need a folder, a name without {out.suffix}")
        if out.suffix.lower() != suffix:
            raise ConfigError(f"--out {out}: the result is a {suffix} file")
        if out.resolve() == images[0].resolve():
            raise ConfigError(f"--out {out} would overwrite the image: choose another name")
        return [(images[0], out)], False
    jobs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for given in images:
        for source in list_images(given) if given.is_dir() else [given]:
            inside = given.resolve() in out.resolve().parents
            if inside and out.resolve() in source.resolve().parents:
                continue  # results of an earlier run inside the folder
            target = _free_target(source, given, out, taken, suffix)
            taken.add(target)
            jobs.append((source, target))
    if not jobs:
        raise InputError(f"no images to work on in {', '.join(map(str, images))}")
    overwritten = {source.resolve() for source, _ in jobs} & {target.resolve() for target in taken}
    if overwritten:
        raise ConfigError(f"--out {out} would overwrite the image {min(overwritten)}: choose another folder")
    return jobs, many


def _free_target(source: Path, given: Path, out: Path, taken: set[Path], suffix: str) -> Path:
    """Where the result of ``source`` goes: its own name, with more of its path where two images share it."""
    relative = source.relative_to(given) if given.is_dir() else Path(source.name)
    owner = given if given.is_dir() else source.resolve().parent
    for name in (relative.with_suffix(suffix), Path(f"{relative}{suffix}"), Path(owner.name) / f"{relative}{suffix}"):
        if out / name not in taken:
            return out / name
    raise ConfigError(f"{source}: another image has the same name; give the folders one by one")


def _write(result: SegmentResult, target: Path, overlay: bool) -> list[Path]:
    from ..results import save_picture

    written = [result.save(target)]
    if overlay:
        written.append(target.with_name(f"{target.stem}.overlay.jpg"))
        save_picture(result.overlay(), written[-1])
    return written


def _agreement(result: SegmentResult, label: Path) -> float:
    from ..imaging import read_mask
    from ..info import IGNORE

    expected = read_mask(label)
    if expected.shape != result.mask.shape:
        raise InputError(f"{label}: size {expected.shape} (H, W) is not the image's {result.mask.shape}")
    labelled = expected != IGNORE
    return float((result.mask[labelled] == expected[labelled]).mean())
