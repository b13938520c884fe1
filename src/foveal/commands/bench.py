"""The verb ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from .console import Json, parse_lengths, parse_size, print_json, print_table


def bench(
    refs: list[str] | None = None,
    /,
    *,
    preset: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    runtime: Literal["auto", "onnxruntime", "torch"] | None = None,
    tokens: str | None = None,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Measure models against each other: interleaved rounds, median of ratios, outputs compared first.

    Or make one of the textbook's comparisons on this machine: --preset architectures, attention or scaling.

    Parameters
    ----------
    refs
        Bundled names, checkpoints, exported files, architectures.
    preset
        architectures: classifiers, ResNet-50 of timm among them; attention: kinds of it against the number of tokens;
        scaling: EfficientNet B0 to B7.
    size
        Input as HEIGHTxWIDTH; default: 512x1024, of the architectures 224x224.
    batch
        Images per run; default: 1.
    threads
        Threads of the runtime; default: all cores.
    rounds
        Timed runs of each; default: 20, of attention 10, of scaling 3.
    runtime
        auto (the default), onnxruntime or torch.
    tokens
        Of attention: lengths, such as 256,1024,4096.
    plot
        PNG file for a preset's figure.
    """
    options: dict[str, Any] = {"batch": batch, "threads": threads, "rounds": rounds, "runtime": runtime}
    options |= {"size": parse_size(size) if size else None, "tokens": parse_lengths(tokens) if tokens else None}
    options = {key: value for key, value in options.items() if value is not None}
    if (preset is None) == (not refs):
        raise ConfigError("bench: give models, or --preset architectures, attention or scaling; not both")
    if preset is not None:
        return _bench_preset(preset, options, plot, json)
    if tokens or plot:
        raise ConfigError("bench: --tokens and --plot are for --preset")
    from .. import bench as run_bench

    report = run_bench(refs or [], **{"size": (512, 1024), **options})
    if json:
        print_json(report.to_dict())
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    return 0


def _bench_preset(name: str, options: dict[str, Any], plot: Path | None, json: bool) -> int:
    from .. import bench_preset
    from ..progress import Progress

    if plot:
        _check_plot(plot)
    report = bench_preset(name, **options, progress=Progress())
    if plot:
        report.draw(plot)
    if json:
        print_json({"preset": name, **report.to_dict()})
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    print("\n".join(report.notes()))
    return 0


def _check_plot(path: Path) -> None:
    """Refuse a figure that could not be written before minutes go into measuring."""
    from ..files import ensure_folder
    from ..images.figures import new_figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: figures are written as .png")
    ensure_folder(path.parent)
    new_figure(1, 1)
