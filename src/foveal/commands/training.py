"""Verbs that train: ``train``, and ``data check`` before it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import ConfigError
from .console import Json, print_json, print_table

if TYPE_CHECKING:
    from ..run.check import SplitReport


_SET_HELP = "Any other setting: --set.epochs 50 --set.lr 1e-3 --set.loss '{cross_entropy: 1, lovasz: 0.5}'."


def _settings(_: Any, tokens: Any) -> dict[str, str]:
    """Values of --set by name."""
    if not isinstance(tokens, dict):
        raise ConfigError("--set: name the setting, such as --set.epochs 50")
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
    fsdp: bool | None = None,
    set: Annotated[dict[str, str] | None, Parameter(help=_SET_HELP, converter=_settings)] = None,
    json: Json = False,
) -> int:
    """Train on images and masks, or on a folder per class. ``torchrun -m foveal train ...`` scales the same command.

    Parameters
    ----------
    data
        Folder of the data set, which 'foveal data check' looks into, or a pattern of tar files.
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
    fsdp
        Shard the model over torchrun's processes (FSDP2), where it does not fit on each of them.
    """
    from .. import train as train_model

    overrides = {key: _yaml_value(key, text) for key, text in (set or {}).items()}
    named = {"model": model, "task": task, "fsdp": fsdp}
    overrides |= {key: value for key, value in named.items() if value is not None}
    result = train_model(data, config=config, out=out, resume=resume, **overrides)
    figure = {result.metric: result.value} if math.isfinite(result.value) else {}
    report = {"folder": str(result.folder), "best": str(result.best), "loss": result.losses[-1], **figure}
    report |= {"bad": dict(result.bad)} if result.bad else {}
    if json:
        print_json(report)
    else:
        from ..run.metrics import in_words

        scored = "".join(f"  {in_words(name, value)}" for name, value in figure.items())
        print(f"{report['best']}  loss {report['loss']:.4f}{scored}")
        if result.bad:
            print(f"bad training images left out: {len(result.bad)}, listed in {result.folder / 'bad.txt'}")
    under_torchrun = "WORLD_SIZE" in os.environ  # it would take 1 for a failure, and may start all anew
    return 1 if result.bad and not under_torchrun else 0


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
    out: Annotated[Path | None, Parameter(help="Folder for overview.png: classes and samples as a picture.")] = None,
    json: Json = False,
) -> int:
    """Read a whole data set: its layout, splits, sizes and classes, and everything that is wrong with it, by file.

    Parameters
    ----------
    data
        Folder of the data set.
    """
    from ..files import made_folder, written_whole
    from ..results import save_picture
    from ..run.check import check_data
    from ..run.overview import draw_overview
    from ..run.progress import Progress

    if out is not None:
        made_folder(out)  # now, not after hours
    report = check_data(data, progress=Progress())
    if quarantine is not None:
        with written_whole(quarantine) as file:
            file.write_text("".join(f"{path}\n" for path in report.bad_files), "utf-8", errors="surrogateescape")
    if out is not None:
        save_picture(draw_overview(report), out / "overview.png")
    if json:
        print_json(report.to_dict())
        return 1 if report.problems else 0
    print(f"{data}: {report.layout or 'no known layout'}\n")
    if report.splits:
        header = ("split", "samples", "readable", "sizes (W x H)", "ignored")
        print_table(header, [_split_row(split) for split in report.splits])
    if any(split.objects for split in report.splits):
        print_table(("split", "objects"), [(split.name, str(split.objects)) for split in report.splits])
    counted = [split for split in report.splits if len(split.images)]
    if counted:
        header = ("class", *(f"{split.name} {kind}" for split in counted for kind in ("pixels", "images")))
        print_table(header, [_class_row(name, i, counted) for i, name in enumerate(report.labels.names)])
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
