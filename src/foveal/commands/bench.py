"""The verb ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .console import Device, DType, Json, parse_lengths, parse_size, print_json, print_table, say


def bench(
    refs: list[str] | None = None,
    /,
    *,
    preset: str | None = None,
    task: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    device: Device = "cpu",
    dtype: DType = "auto",
    threads: int | None = None,
    rounds: int | None = None,
    runtime: str | None = None,
    memory: bool = True,
    tokens: str | None = None,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Measure models against each other: they take turns, ratios are medians over the rounds, outputs are compared.

    With --preset, make one of three comparisons of architectures on this machine instead.

    Parameters
    ----------
    refs
        Bundled names, checkpoints, exported files, names of architectures (with random weights), or module:callable for
        networks of others. REF@NAME=VALUE,... gives one of them settings of its own: task, size, batch, device, dtype,
        runtime, threads.
    preset
        architectures: classifiers, including ResNet-50 of timm. attention: kinds of attention against the number of
        tokens. scaling: EfficientNet B0 to B7.
    task
        Task for which models by name are built: classify, segment, upscale or prompt; default: each one's own.
    size
        Input as HEIGHTxWIDTH; default: 224x224 to classify, 512x1024 to segment, 270x480 to upscale, with --preset
        architectures 224x224.
    batch
        Images per run; default: 1.
    threads
        Threads of each runtime on the CPU; default: all cores that the process may use.
    rounds
        Timed runs of each; default: 20, with --preset attention 10, with --preset scaling 3.
    runtime
        auto (the default) or one of the runtimes; it runs checkpoints and models by name, too, exported if necessary.
        Presets run in torch.
    memory
        Measure the peak memory of each, in a process of its own.
    tokens
        For --preset attention: numbers of tokens, such as 256,1024,4096.
    plot
        PNG file for the figure of a preset.
    """
    options: dict[str, Any] = {"task": task, "batch": batch, "threads": threads, "rounds": rounds, "runtime": runtime}
    options |= {"size": parse_size(size) if size else None, "tokens": parse_lengths(tokens) if tokens else None}
    options = {key: value for key, value in options.items() if value is not None} | (
        {} if memory else {"memory": False}
    )
    if (preset is None) == (not refs):
        raise ConfigError("bench: give models, or --preset architectures, attention or scaling; not both")
    if preset is not None:
        if device not in ("cpu", "auto") or dtype not in ("float32", "auto"):
            raise ConfigError(f"bench: --preset {preset} runs on the CPU in float32: leave out --device and --dtype")
        if runtime is not None:
            raise ConfigError(
                f"bench: preset {preset} has no option 'runtime', it runs layers in torch: leave out --runtime"
            )
        return _bench_preset(preset, options, plot, json)
    if tokens or plot:
        raise ConfigError("bench: --tokens and --plot are for --preset; leave them out")
    from .. import bench as run_bench

    report = run_bench(refs or [], device=device, dtype=dtype, **options)
    if json:
        print_json(report.to_dict())
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    for note in report.notes():
        say(note)
    return 0


def _bench_preset(name: str, options: dict[str, Any], plot: Path | None, json: bool) -> int:
    """Make a comparison, print it, and draw its figure."""
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
    for note in report.notes():
        say(note)
    return 0


def _check_plot(path: Path) -> None:
    """Refuse a figure that cannot be written before minutes are spent on measuring."""
    from ..files import ensure_folder
    from ..images.figures import new_figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: figures are written as .png; give a name that ends in it")
    ensure_folder(path.parent)
    new_figure(1, 1)
