"""The verb ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import ConfigError
from .console import DType, Json, parse_lengths, parse_size, print_json, print_table, say

if TYPE_CHECKING:
    from ..progress import Progress


_PRESETS = "architectures, attention, cost-laws, headline or scaling"


def bench(
    refs: list[str] | None = None,
    /,
    *,
    preset: str | None = None,
    task: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    device: str | None = None,
    dtype: DType = "auto",
    threads: int | None = None,
    rounds: int | None = None,
    runtime: str | None = None,
    memory: bool = True,
    budget: str | None = None,
    groups: str | None = None,
    seconds: float | None = None,
    resume: Path | None = None,
    page: Path | None = None,
    toy: Annotated[bool, Parameter(negative="")] = False,
    tokens: str | None = None,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Measure models against each other: they take turns, ratios are medians over the rounds, outputs are compared.

    With --preset, make one of several comparisons on this machine instead. With --budget, rank the models of a task
    that run within a time by their published quality.

    Parameters
    ----------
    refs
        Bundled names, checkpoints, exported files, names of architectures (with random weights), or module:callable for
        networks of others. REF@NAME=VALUE,... gives one of them settings of its own: task, size, batch, device, dtype,
        runtime, threads. With --budget and --preset headline or cost-laws: only these models.
    preset
        architectures: classifiers, including ResNet-50 of timm. attention: kinds of attention against the number of
        tokens. scaling: EfficientNet B0 to B7. headline: Foveal's models against those of others, in a checkout of the
        repository. cost-laws: time and memory against the number of pixels.
    task
        Task for which models by name are built: classify, segment, upscale or prompt; default: each one's own.
    size
        Input as HEIGHTxWIDTH, or the side of a square; default: 224x224 to classify, 512x1024 to segment, 270x480 to
        upscale, with --preset architectures 224x224, with --preset headline several.
    batch
        Images per run; default: 1, with --preset headline for classifiers also 16.
    device
        cpu (the default), cuda, ...; with --preset headline by default the GPU, too, if there is one.
    dtype
        float32 (the default), float16 or bfloat16; with --preset headline float32 and bfloat16 by default.
    threads
        Threads of each runtime on the CPU; default: all cores that the process may use, with headline one, too.
    rounds
        Timed runs of each; default: 20, with --preset attention 10, scaling 3, cost-laws and --budget 7.
    runtime
        auto (the default) or one of the runtimes; it runs checkpoints and models by name, too, exported if necessary.
        With --preset headline and cost-laws several with commas, of eager (torch modules as they are), native,
        onnxruntime, openvino and torch. The other presets run in torch.
    memory
        Measure the peak memory of each, in a process of its own.
    budget
        With --task: milliseconds for one image, such as 100ms.
    groups
        For --preset headline: segmentation, promptable, super-resolution, classification, with commas; default: all.
    seconds
        For --preset headline: seconds for the rounds of a pair, default 60. For cost-laws: if one run takes longer
        than this, larger images are left out; default 20.
    resume
        For --preset headline, cost-laws and --budget: file of rows; what it has already is not measured again.
    page
        With --resume: Markdown page of all rows of that file, with its figures beside it.
    toy
        For --preset: its smallest networks or sizes and one round, to try it out; the figures say nothing.
    tokens
        For --preset attention: numbers of tokens, such as 256,1024,4096.
    plot
        PNG file for the figure of a preset.
    """
    options: dict[str, Any] = {"task": task, "batch": batch, "threads": threads, "rounds": rounds, "runtime": runtime}
    options |= {"size": parse_size(size) if size else None, "tokens": parse_lengths(tokens) if tokens else None}
    options |= {"groups": tuple(groups.split(",")) if groups else None, "seconds": seconds, "resume": resume}
    options |= {"device": device, "dtype": None if dtype == "auto" else dtype, "memory": None if memory else False}
    options = {key: value for key, value in options.items() if value is not None}
    if page and not resume:
        raise ConfigError("bench: --page is made from the rows of a file: add --resume FILE")
    if plot:
        _check_plot(plot)
    if toy and preset is None:
        raise ConfigError("bench: --toy is for --preset; leave it out")
    if toy and (resume or page):
        raise ConfigError("bench: --toy measures nothing to keep: leave out --resume and --page")
    report, name = _measure(list(refs or []), preset, budget, options | ({"toy": True} if toy else {}), plot, tokens)
    if plot:
        report.draw(plot)
    if page and resume:
        from ..measuring.page import write_page

        write_page(resume, page)
    if json:
        print_json({"preset": name, **report.to_dict()} if name else report.to_dict())
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    for note in report.notes():
        say(note)
    return 0


def _measure(
    refs: list[str], preset: str | None, budget: str | None, options: dict[str, Any], plot: Path | None, tokens: object
) -> tuple[Any, str]:
    """The report, and the name of the preset."""
    from ..progress import Progress

    if budget is not None:
        if preset is not None or plot:
            raise ConfigError("bench: --budget ranks the models of --task: leave out --preset and --plot")
        return _within_budget(refs, budget, options, Progress()), ""
    if preset is not None:
        return _bench_preset(refs, preset, options, Progress()), preset
    if not refs:
        raise ConfigError(f"bench: give models, or --preset {_PRESETS}, or --task with --budget")
    if tokens or plot:
        raise ConfigError("bench: --tokens and --plot are for --preset; leave them out")
    for name in ("groups", "seconds", "resume"):
        if name in options:
            also = " and for --budget" if name == "resume" else ""
            raise ConfigError(f"bench: --{name} is for --preset headline and cost-laws{also}; leave it out")
    from .. import bench as run_bench

    return run_bench(refs, **options), ""


def _within_budget(refs: list[str], budget: str, options: dict[str, Any], progress: Progress) -> Any:
    """Rank models that fit into a time."""
    import inspect

    from ..measuring.budget import parse_milliseconds, rank_within

    if "task" not in options:
        raise ConfigError("bench: --budget needs a task: add --task segment, classify, upscale or prompt")
    known = inspect.signature(rank_within).parameters
    for name in options:
        if name not in known:
            raise ConfigError(f"bench: --{name} is not for --budget; leave it out")
    return rank_within(parse_milliseconds(budget), models=refs, **options, progress=progress)


def _bench_preset(refs: list[str], name: str, options: dict[str, Any], progress: Progress) -> Any:
    """Make a comparison."""
    import inspect

    from .. import bench_preset
    from ..measuring.presets import PRESETS

    known = inspect.signature(PRESETS[name]).parameters if name in PRESETS else {}
    if refs and "models" not in known:
        raise ConfigError(f"bench: give models, or --preset {_PRESETS}; not both")
    for option, plain in (("device", ("cpu", "auto")), ("dtype", ("float32",))):
        if options.get(option) in plain and option not in known:
            options.pop(option)
        elif name in PRESETS and option in options and option not in known:
            raise ConfigError(f"bench: --preset {name} runs on the CPU in float32: leave out --device and --dtype")
    if name in PRESETS and "runtime" in options and "runtime" not in known:
        raise ConfigError(f"bench: preset {name} has no option 'runtime', it runs layers in torch: leave out --runtime")
    if refs:
        options["models"] = tuple(refs)
    return bench_preset(name, **options, progress=progress)


def _check_plot(path: Path) -> None:
    """Refuse a figure that cannot be written before minutes are spent on measuring."""
    from ..files import ensure_folder
    from ..images.figures import new_figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: figures are written as .png; give a name that ends in it")
    ensure_folder(path.parent)
    new_figure(1, 1)
