"""The verbs of the command line: they parse, call the library, and print. Heavy imports wait until a verb runs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from . import assets
from .errors import ConfigError, DependencyError, InputError, nearest

if TYPE_CHECKING:
    from .results import SegmentResult
    from .run.check import SplitReport
    from .run.predict import Predictor

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output.")]
Images = Annotated[list[Path], Parameter(help="Images, or folders of images.")]
Tile = Annotated[int | None, Parameter(help="Side of the windows for large images; default: the whole image.")]
Overlap = Annotated[int | None, Parameter(help="Pixels that windows share; default: a third of --tile.")]
Size = Annotated[str | None, Parameter(help="Network input as HEIGHTxWIDTH; default: each image's own size.")]


# ---- predicting


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
        Folder for masks (PNG of class indices with a palette) and overlays.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    label
        Index mask to compare a single image's result with (255 is left out).
    resume
        Leave out images whose mask exists.
    """
    from .run.load import load

    predictor = load(model)
    if predictor.info.task != "segment":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    return _predict(predictor, images, out, overlay, label, tile, overlap, resume, json)


def classify(images: Images, /, *, model: str, top: int = 5, json: Json = False) -> int:
    """Classify photographs: the most probable classes of each.

    Parameters
    ----------
    model
        Checkpoint or exported file of a classifier.
    top
        How many classes to print.
    """
    from .run.load import load

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
        Folder for the results of models that make images.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    resume
        Leave out images whose result exists.
    """
    from .run.load import load

    predictor = load(model)
    if predictor.info.task == "classify":
        return _classify(predictor, images, 5, json)
    return _predict(predictor, images, out, overlay, None, tile, overlap, resume, json)


def demo(*, out: Path = Path("foveal-demo"), json: Json = False) -> int:
    """Segment the bundled photograph with the bundled weights, and compare with its hand-made coarse label.

    Parameters
    ----------
    out
        Folder for mask and overlay.
    """
    return segment([assets.FOLDER / "street.jpg"], out=out, label=assets.FOLDER / "street.label.png", json=json)


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
    jobs, many = _jobs(images, out)
    if label is not None and many:
        raise ConfigError("--label compares a single image")
    if tile is not None:
        predictor.check_tiles(tile, overlap)
    overlays = not many if overlay is None else overlay
    if not many:
        source, target = jobs[0]
        return _segment_one(predictor, source, target, overlays, label, tile, overlap, as_json)
    if resume:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    return _segment_many(predictor, jobs, overlays, tile, overlap, out, as_json)


def _segment_one(
    predictor: Predictor,
    source: Path,
    target: Path,
    overlay: bool,
    label: Path | None,
    tile: int | None,
    overlap: int | None,
    as_json: bool,
) -> int:
    from . import machine

    started = time.perf_counter()
    result = predictor.segment(source, tile=tile, overlap=overlap)
    mask = result.mask
    seconds = time.perf_counter() - started
    written = _write(result, target, overlay)
    height, width = mask.shape
    report: dict[str, Any] = {
        "image": str(source),
        "size": [height, width],
        "model": f"{predictor.info.model}.{predictor.info.tag}".rstrip("."),
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
    if as_json:
        _print_json(report)
        return 0
    print(f"{source}  {width}x{height}  {report['model']}, {predictor.runtime}\n")
    rows = [(c["name"], f"{c['share']:7.2%}", f"{c['confidence']:.2f}") for c in report["classes"]]
    _print_table(("class", "pixels", "mean confidence"), rows)
    if label is not None:
        print(f"\nagrees with the hand-made label on {report['agreement']:.1%} of its pixels")
    print(f"\n{seconds:.2f} s for reading, network and mask on {machine.one_line()}")
    for path in written:
        print(path)
    return 0


def _segment_many(
    predictor: Predictor,
    jobs: list[tuple[Path, Path]],
    overlay: bool,
    tile: int | None,
    overlap: int | None,
    out: Path,
    as_json: bool,
) -> int:
    from .run.progress import Progress

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
        _print_json({"done": done, "failed": failed, "out": str(out), "seconds": round(seconds, 3)})
    else:
        print(f"{done} of {len(jobs)} images in {seconds:.1f} s, masks in {out}")
        for failure in failed:
            print(f"failed: {failure['error']}")
    return 1 if failed else 0


def _classify(predictor: Predictor, images: list[Path], top: int, as_json: bool) -> int:
    jobs, many = _jobs(images, Path())
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
            _print_table((str(source), "score"), [(name, f"{score:.4f}") for name, score in best])
    if as_json:
        _print_json(report)
    return 1 if report["failed"] else 0


def _jobs(images: list[Path], out: Path) -> tuple[list[tuple[Path, Path]], bool]:
    """(image, mask) paths, and whether this is a batch: a folder or several images."""
    from .imaging import list_images

    many = len(images) > 1 or images[0].is_dir()
    jobs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for given in images:
        for source in list_images(given) if given.is_dir() else [given]:
            inside = given.resolve() in out.resolve().parents
            if inside and out.resolve() in source.resolve().parents:
                continue  # results of an earlier run inside the folder
            target = _free_target(source, given, out, taken)
            taken.add(target)
            jobs.append((source, target))
    if not jobs:
        raise InputError(f"no images to work on in {', '.join(map(str, images))}")
    overwritten = {source.resolve() for source, _ in jobs} & {target.resolve() for target in taken}
    if overwritten:
        raise ConfigError(f"--out {out} would overwrite the image {min(overwritten)}: choose another folder")
    return jobs, many


def _free_target(source: Path, given: Path, out: Path, taken: set[Path]) -> Path:
    """Where the mask of ``source`` goes: its own name, with more of its path where two images share it."""
    relative = source.relative_to(given) if given.is_dir() else Path(source.name)
    owner = given if given.is_dir() else source.resolve().parent
    for name in (relative.with_suffix(".png"), Path(f"{relative}.png"), Path(owner.name) / f"{relative}.png"):
        if out / name not in taken:
            return out / name
    raise ConfigError(f"{source}: another image has the same name; segment the folders one by one")


def _write(result: SegmentResult, target: Path, overlay: bool) -> list[Path]:
    from .results import save_picture

    written = [result.save(target)]
    if overlay:
        written.append(target.with_name(f"{target.stem}.overlay.jpg"))
        save_picture(result.overlay(), written[-1])
    return written


def _agreement(result: SegmentResult, label: Path) -> float:
    from .imaging import read_mask
    from .info import IGNORE

    expected = read_mask(label)
    if expected.shape != result.mask.shape:
        raise InputError(f"{label}: size {expected.shape} (H, W) is not the image's {result.mask.shape}")
    labelled = expected != IGNORE
    return float((result.mask[labelled] == expected[labelled]).mean())


# ---- models and files


def models(pattern: str = "*", /, *, task: str | None = None, json: Json = False) -> int:
    """List the models: bundled weights, and (with torch installed) published weights and the architectures.

    Parameters
    ----------
    pattern
        Shell-style pattern, such as "efficientvit_b*".
    task
        Only models for this task.
    """
    import fnmatch

    rows: list[dict[str, Any]] = [
        {"name": ref, "tasks": [w.task], "licence": w.licence, "figures": [w.figure], "bundled": True}
        for ref, w in assets.WEIGHTS.items()
        if fnmatch.fnmatch(ref, pattern) and task in (None, w.task)
    ]
    try:
        rows += _published(pattern, task) + _architectures(pattern, task)
    except DependencyError as error:
        print(f"published weights and architectures are not listed: {error}", file=sys.stderr)
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}{nearest(pattern.strip('*'), _all_names())}")
    if json:
        _print_json({"models": rows})
    elif len(rows) == 1:
        _print_table(("", rows[0]["name"]), [(key, _flat(value)) for key, value in rows[0].items() if key != "name"])
    else:
        columns = ("name", "tasks", "params", "licence", "figures")
        _print_table(columns, [[_flat(row.get(column, "")) for column in columns] for row in rows])
    return 0


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {text}" for key, text in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value / 1e6:.2f} M" if isinstance(value, int) and value > 1000 else str(value)


def _published(pattern: str, task: str | None) -> list[dict[str, Any]]:
    """One row per published set of weights, with its authors' figure and where it is fetched from."""
    from . import list_models  # raises DependencyError without torch

    names = list_models(pattern, task=task, pretrained=True)
    from .registry import published

    return [
        {
            "name": ref,
            "tasks": [entry.task],
            "licence": entry.licence or family.licence,
            "figures": [f"{entry.metric} {entry.value} at {entry.size} ({entry.source})"],
            "bundled": False,
            "repo": entry.repo,
            "file": entry.file,
            "sha256": entry.sha256 or "unknown: the first download counts",
        }
        for ref, (family, _, entry) in published().items()
        if ref in names
    ]


def _architectures(pattern: str, task: str | None) -> list[dict[str, Any]]:
    """One row per architecture; published figures are the authors', the best of each data set."""
    from . import list_models  # raises DependencyError without torch

    names = list_models(pattern, task=task)
    import torch

    from .registry import variants

    rows = []
    known = variants()
    for name in names:
        family, variant = known[name]
        with torch.device("meta"):
            params = sum(p.numel() for p in variant.backbone(3).parameters())
        best: dict[str, str] = {}
        for figure in sorted(variant.published, key=lambda p: p.value):
            data = figure.tag.rpartition("_")[2]  # of r224_in1k, say
            best[data] = f"{figure.metric} {figure.value} at {figure.size} ({figure.source})"
        rows.append(
            {
                "name": name,
                "family": f"{family.name} ({family.paper})",
                "tasks": ["classify", "segment"] if variant.classifier else ["segment"],
                "params": params,
                "licence": family.licence,
                "figures": [f"{tag} {text}" for tag, text in best.items()],
                "options": dict(family.options),
            }
        )
    return rows


def _all_names() -> list[str]:
    try:
        from . import list_models

        return [*list_models(pretrained=True), *list_models()]
    except DependencyError:
        return list(assets.WEIGHTS)


def convert(
    source: Path,
    target: Path,
    /,
    *,
    half: bool = False,
    tag: str = "",
    licence: str = "",
    max_side: int | None = None,
) -> int:
    """Read any published checkpoint and write it as a Foveal safetensors file; the description goes inside.

    Parameters
    ----------
    source
        Checkpoint or training run.
    target
        File to write, ending in .safetensors.
    half
        Store weights in float16; norms and biases stay float32. Loading gives float32 again.
    tag
        Name of the data set or setting, for the description.
    licence
        SPDX name of the weights' licence, for the description; default: what the source says.
    max_side
        Shrink larger images to this many pixels on their longer side, for weights that have only seen small ones.
    """
    from . import load_model
    from .info import info_of
    from .weights import save_checkpoint

    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: the new file must end in .safetensors")
    model = load_model(source)
    info = info_of(model)
    info = info.replace(tag=tag or info.tag, licence=licence or info.licence)
    if max_side is not None:
        info = info.replace(preprocess=dataclasses.replace(info.preprocess, max_side=max_side))
    state = model.state_dict()
    if half:
        state = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in state.items()}
    save_checkpoint(target, state, info)
    print(f"{source} is {info.model} for {info.task}; written as {target}")
    return 0


def export(
    ref: str, /, *, to: str = "onnx", output: Path | None = None, upsample: bool = False, json: Json = False
) -> int:
    """Write a model as a file that runs without torch, checked against the model at several sizes.

    Parameters
    ----------
    ref
        Bundled name, checkpoint or training run.
    to
        Format: onnx.
    output
        File to write; default: the reference's name beside the current folder.
    upsample
        Segmentation: put the upsampling to the image's size into the graph.
    """
    from . import export as export_model

    report = export_model(ref, to=to, output=output, upsample=upsample)
    if json:
        _print_json({k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(report).items()})
    else:
        print(report)
    return 0


# ---- training and measuring

_SET_HELP = "Any other setting: --set.epochs 50 --set.lr 1e-3 --set.loss '{cross_entropy: 1, lovasz: 0.5}'."


def _settings(_: Any, tokens: Any) -> dict[str, str]:
    """Values of --set by name; a setting with entries is one value, since naming some would leave the rest open."""
    if not isinstance(tokens, dict):
        raise ConfigError("--set: name the setting, such as --set.epochs 50")
    for key, given in tokens.items():
        if isinstance(given, dict):
            entries = ", ".join(f"{entry}: ..." for entry in given)
            raise ConfigError(f"--set.{key}.{next(iter(given))}: give all entries at once, --set.{key} '{{{entries}}}'")
    return {key: given[-1].value for key, given in tokens.items()}


def train(
    data: Path,
    /,
    *,
    model: str | None = None,
    task: str | None = None,
    config: Path | None = None,
    out: Path = Path("runs/train"),
    resume: bool = False,
    set: Annotated[dict[str, str] | None, Parameter(help=_SET_HELP, converter=_settings)] = None,
    json: Json = False,
) -> int:
    """Train on images and masks, or on a folder per class. ``torchrun -m foveal train ...`` scales the same command.

    Parameters
    ----------
    data
        Folder of the data set; 'foveal data check' tells whether it can be used.
    model
        Architecture to train.
    task
        What to train it for.
    config
        Recipe in YAML; unknown keys are errors.
    out
        Folder of the run.
    resume
        Go on from the run in --out.
    """
    from . import train as train_model

    overrides = {key: _yaml_value(key, text) for key, text in (set or {}).items()}
    overrides |= {key: value for key, value in (("model", model), ("task", task)) if value is not None}
    result = train_model(data, config=config, out=out, resume=resume, **overrides)
    figure = {result.metric: result.value} if math.isfinite(result.value) else {}
    report = {"folder": str(result.folder), "best": str(result.best), "loss": result.losses[-1], **figure}
    if json:
        _print_json(report)
    else:
        scored = "".join(f"  {name} {value:.2%}" for name, value in figure.items())
        print(f"{report['best']}  loss {report['loss']:.4f}{scored}")
    return 0


def _yaml_value(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"--set.{key} {text!r}: {' '.join(str(error).split())}") from error


def data_check(
    data: Path,
    /,
    *,
    quarantine: Annotated[Path | None, Parameter(help="File to write the bad files' paths to, one per line.")] = None,
    json: Json = False,
) -> int:
    """Read a whole data set: its layout, splits, sizes and classes, and everything that is wrong with it, by file.

    Parameters
    ----------
    data
        Folder of the data set.
    """
    from .files import written_whole
    from .run.check import check_data
    from .run.progress import Progress

    report = check_data(data, progress=Progress())
    if quarantine is not None:
        with written_whole(quarantine) as file:
            file.write_text("".join(f"{path}\n" for path in report.bad_files), encoding="utf-8")
    if json:
        _print_json(report.to_dict())
        return 1 if report.problems else 0
    print(f"{data}: {report.layout or 'no known layout'}\n")
    if report.splits:
        header = ("split", "samples", "readable", "sizes (W x H)", "ignored")
        _print_table(header, [_split_row(split) for split in report.splits])
    counted = [split for split in report.splits if len(split.images)]
    if counted:
        header = ("class", *(f"{split.name} {kind}" for split in counted for kind in ("pixels", "images")))
        _print_table(header, [_class_row(name, i, counted) for i, name in enumerate(report.labels.names)])
    for text in report.notes:
        print(f"note: {text}")
    for problem in report.problems:
        named = str(problem.file) in problem.error
        print(f"problem: {problem.error}" if named else f"problem: {problem.file}: {problem.error}")
    print(f"{len(report.problems)} problems" if report.problems else "no problems")
    return 1 if report.problems else 0


def _split_row(split: SplitReport) -> list[str]:
    sizes = [f"{width}x{height} ({count})" for (height, width), count in split.sizes.most_common(4)]
    more = f", {len(split.sizes) - 4} more" if len(split.sizes) > 4 else ""
    ignored = f"{split.ignored_share:.1%}" if split.ignored else ""
    return [split.name, str(split.items), str(split.readable), ", ".join(sizes) + more, ignored]


def _class_row(name: str, index: int, splits: list[SplitReport]) -> list[str]:
    """Shares of a class in the labelled pixels and in the images of each split."""
    cells = [name]
    for split in splits:
        pixels = f"{split.shares[index]:.2%}" if split.pixels.any() else ""
        cells += [pixels, f"{split.images[index]} ({split.images[index] / max(1, split.readable):.0%})"]
    return cells


def evaluate(
    ref: str,
    data: Path,
    /,
    *,
    split: str | None = None,
    size: Size = None,
    class_map: Path | None = None,
    protocol: Literal["plain", "cityscapes", "ade20k"] = "plain",
    boundary: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Score a model on a labelled data set. Images that cannot be scored are named, and the exit code is 1.

    Parameters
    ----------
    ref
        Bundled name, checkpoint, exported file or training run.
    data
        Folder of the data set.
    split
        Part of it; default: test, or val for a published protocol.
    class_map
        YAML file "model class: data class", for a model with other classes.
    protocol
        Sizes and interpolation of the figures published on a data set; plain: the model's own.
    boundary
        Score the contours too: boundary F-score and boundary IoU.
    out
        Folder for report.json, per_image.csv and samples.png (the best, median and worst image).
    """
    from . import evaluate as evaluate_model
    from .run.progress import Progress

    found = evaluate_model(
        ref,
        data,
        split=split,
        size=parse_size(size) if size else None,
        class_map=class_map,
        protocol=protocol,
        boundary=boundary,
        out=out,
        progress=Progress(),
    )
    report = {"ref": ref, "data": str(data), **found.to_dict()}
    if json:
        _print_json(report)
        return 1 if found.skipped else 0
    columns = {"IoU": report["iou"], "accuracy": report["accuracy"]}
    if boundary:
        columns |= {"boundary F": report["boundary"]["f_score"], "boundary IoU": report["boundary"]["boundary_iou"]}
    _print_table(
        ("class", *columns),
        [(name, *("-" if c[name] is None else f"{c[name]:.2%}" for c in columns.values())) for name in report["iou"]],
    )
    where = f"{found.images} images of {found.split}" + (f" at {size}" if size else "")
    where += f", protocol {protocol}" if protocol != "plain" else ""
    scores = found.scores
    print(f"\nmIoU {scores.miou:.2%}  pixel accuracy {scores.pixel_accuracy:.2%}  ", end="")
    print(f"mean accuracy {scores.mean_accuracy:.2%}  ({where})")
    if found.boundary:
        print(f"mean boundary F {found.boundary.mean_f_score:.2%}  mean boundary IoU {found.boundary.miou:.2%}")
    if scores.absent:
        print(f"absent from the data, left out of the means: {', '.join(scores.absent)}")
    for image, error in found.skipped.items():
        print(f"skipped {image}: {error}")
    if out:
        print(f"report.json, per_image.csv and samples.png are in {out}")
    return 1 if found.skipped else 0


def compare(a: Path, b: Path, /, *, resamples: int = 10_000, seed: int = 0, json: Json = False) -> int:
    """Tell which of two evaluated models is better, and how sure that is: a paired bootstrap over the images.

    Parameters
    ----------
    a
        Folder that foveal evaluate --out wrote.
    b
        The same for the other model, on the same images.
    resamples
        How often the images are drawn.
    seed
        Of the draws.
    """
    from . import compare as compare_reports

    found = compare_reports(a, b, resamples=resamples, seed=seed)
    if json:
        _print_json({"a": str(a), "b": str(b), **found.to_dict()})
        return 0
    _print_table(("report", "mIoU"), [(str(a), f"{found.miou_a:.2%}"), (str(b), f"{found.miou_b:.2%}")])
    print(f"\ndifference {100 * found.difference:+.2f} points, 95 % interval ", end="")
    print(f"{100 * found.low:+.2f} to {100 * found.high:+.2f}, p = {found.p:.2g}  ", end="")
    print(f"({found.images} images, {found.resamples} resamples, seed {found.seed})")
    return 0


def bench(
    refs: list[str],
    /,
    *,
    size: str = "512x1024",
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    runtime: Literal["auto", "onnxruntime", "torch"] = "auto",
    json: Json = False,
) -> int:
    """Measure models against each other: interleaved rounds, median of ratios, outputs compared first.

    Parameters
    ----------
    refs
        Bundled names, checkpoints, exported files, architectures.
    size
        Input as HEIGHTxWIDTH.
    batch
        Images per run.
    threads
        Threads of the runtime; default: all cores.
    rounds
        Timed runs of each.
    runtime
        auto, onnxruntime or torch.
    """
    from . import bench as run_bench

    report = run_bench(refs, size=parse_size(size), batch=batch, threads=threads, rounds=rounds, runtime=runtime)
    if json:
        _print_json(report.to_dict())
        return 0
    header, *rows = report.table()
    _print_table(header, rows)
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """``"512x1024"`` -> (512, 1024), height first.

    Raises:
        ConfigError: anything else.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"size {text!r}: write HEIGHTxWIDTH, such as 512x1024")
    return int(height), int(width)


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report))


def _print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; wrapped rows would be no use to grep
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(name), no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
