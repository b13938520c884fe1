"""The textbook's comparisons, measured here: networks, kinds of attention, compound scaling.

Each preset gives a report with ``table()``, ``notes()``, ``to_dict()`` and ``draw(path)``. Times are of networks and
layers alone, in float32 on the CPU, and candidates take turns as in :mod:`foveal.deploy.benchmark`.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from .. import machine
from ..costs import Costs, count
from ..errors import ConfigError, DependencyError, InputError, nearest
from ..factory import create_model
from ..layers.attention import Attention, AttentionPaths, LinformerAttention, attention_traffic
from ..layers.linear_attention import LinearSelfAttention
from ..layers.optimize import optimize
from ..models.efficientnet import EFFICIENTNET_COEFFICIENTS, Scale, compound_scale, scaled_config
from ..models.mobilenet import ClassifierHead, MobileNet
from ..registry import variants
from ..run.progress import Progress
from ..tasks.classify import ClassificationModel
from .benchmark import K, interleaved, peak_memory, ratio

ARCHITECTURES = (
    "resnet50",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientvit_m0",
    "efficientvit_m5",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "efficientvit_l1",
    "mambavision_t",
)
_OF_TIMM = ("resnet50",)


class Quoted(NamedTuple):
    """A published top-1 accuracy on ImageNet: not measured here."""

    percent: float
    source: str


#: Of networks for whose default conventions the registry has no weights.
_QUOTED = {
    "resnet50": Quoted(76.13, "torchvision, IMAGENET1K_V1"),
    "efficientnet_b0": Quoted(77.69, "torchvision, IMAGENET1K_V1"),
}


@dataclass(frozen=True)
class Architecture:
    """Figures of one classifier.

    Attributes:
        name: of :func:`foveal.create_model`, or of timm.
        params: number of weights.
        macs: multiply-accumulates of one image.
        p50_ms: median time of one batch.
        ratio: its time over the first network's, median over the rounds.
        peak_mib: memory of its weights and of what running it once adds to a process of its own.
        top1: published top-1 on ImageNet at this size, in percent: quoted.
        top1_source: whose weights that is of.
    """

    name: str
    params: int
    macs: int
    p50_ms: float
    ratio: float
    peak_mib: float | None
    top1: float | None
    top1_source: str


@dataclass(frozen=True)
class ArchitectureReport:
    """Classifiers side by side.

    Attributes:
        rows: one per network; the first is the reference of the ratios.
        left_out: networks that could not be built, with the reason.
        size: (H, W) of the images.
        batch: images per run.
        threads: of torch.
        rounds: timed runs of each.
        machine: processor, cores, system and versions.
    """

    rows: tuple[Architecture, ...]
    left_out: dict[str, str]
    size: tuple[int, int]
    batch: int
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per network, as text."""
        header = ("network", "params", "MACs", "p50 ms", "ratio", "peak MiB", "top-1", "top-1 of")
        rows = [
            (
                row.name,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e9:.3f} G",
                f"{row.p50_ms:.1f}",
                f"{row.ratio:.2f}",
                "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
                "" if row.top1 is None else f"{row.top1:.1f} %",
                row.top1_source,
            )
            for row in self.rows
        ]
        return [header, *rows]

    def notes(self) -> list[str]:
        """What the figures depend on, and what is missing, in lines."""
        settings = f"{self.size[0]}x{self.size[1]}, batch {self.batch}, {_settings(self.threads, self.rounds)}"
        return [settings, *(f"{name} left out: {reason}" for name, reason in self.left_out.items())]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: time by MACs, and quoted accuracy by time."""
        from .figures import draw_architectures

        draw_architectures(self, path)


def architectures(
    *,
    names: Sequence[str] = ARCHITECTURES,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    progress: Progress | None = None,
) -> ArchitectureReport:
    """Compare classifiers with random weights, as they are deployed: batch norms folded, kernels channels last.

    Args:
        names: of :func:`foveal.create_model`; ``resnet50`` is timm's, and left out where timm is missing.
        size: (H, W) of the images.
        batch: images per run.
        threads: of torch; default: all cores.
        rounds: timed runs of each.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: an unknown or repeated name, or numbers that are not positive.
        DependencyError: nothing is left without timm.
    """
    threads = _prepared(threads, rounds, batch, *size)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"names={', '.join(names)!r}: give one or more different networks")
    left_out = {name: "needs timm: pip install timm" for name in names if name in _OF_TIMM and not _has_timm()}
    names = [name for name in names if name not in left_out]
    if not names:
        raise DependencyError(f"{', '.join(left_out)}: needs timm: pip install timm")
    costs = {name: _counted(name, size) for name in names}
    image = torch.randn(batch, 3, *size)
    runs = {name: partial(_run, _deployed(name), image) for name in names}
    times = _timed(runs, rounds, 2, progress)
    rows: list[Architecture] = []
    with (progress or Progress(enabled=False)).bar("memory", len(names)) as bar:
        for name in names:
            grown = peak_memory(_deploying, name, batch, *size).grown
            quoted = published_top1(name, size)
            rows.append(
                Architecture(
                    name=name,
                    params=costs[name].params,
                    macs=costs[name].macs,
                    p50_ms=_p50_ms(times[name]),
                    ratio=round(ratio(times[name], times[names[0]]), 4),
                    peak_mib=None if grown is None else round(4 * costs[name].params / 2**20 + grown, 1),
                    top1=quoted.percent if quoted else None,
                    top1_source=quoted.source if quoted else "",
                )
            )
            bar.advance(name)
    return ArchitectureReport(tuple(rows), left_out, size, batch, threads, rounds, machine.describe())


def _has_timm() -> bool:
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def _built(name: str) -> nn.Module:
    if name in _OF_TIMM:
        import timm

        return timm.create_model(name).eval()
    return create_model(name, "classify").eval()


def _counted(name: str, size: tuple[int, int]) -> Costs:
    with torch.device("meta"):
        return count(_built(name), 3, size)


def _deployed(name: str) -> nn.Module:
    if name not in _OF_TIMM:
        return optimize(_built(name))
    from torch.fx.experimental.optimization import fuse  # for networks that are not built of our layers

    return fuse(_built(name)).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def _run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def _deploying(name: str, batch: int, height: int, width: int) -> Callable[[], object]:
    """One run, for :func:`peak_memory`: the network is built, and another has run, so that torch is awake."""
    torch.set_num_threads(1)
    model, image = _deployed(name), torch.randn(batch, 3, height, width)
    _run(_deployed("mobilenetv3_small_100"), torch.randn(1, 3, 32, 32))
    ctypes.CDLL(None).malloc_trim(0)  # what building took and freed must not hide what the run takes
    return partial(_run, model, image)


def published_top1(name: str, size: tuple[int, int]) -> Quoted | None:
    """What was published for a classifier on images of ``size`` (H, W), ``None`` where nothing is known."""
    if name in _QUOTED:
        return _QUOTED[name] if size == (224, 224) else None
    for entry in variants()[name][1].published:
        if (entry.task, entry.metric) == ("classify", "top-1") and size == (int(entry.size), int(entry.size)):
            return Quoted(entry.value, f"{entry.source}, {entry.tag}")
    return None


@dataclass(frozen=True)
class AttentionRow:
    """One kind of attention against the number of tokens.

    Attributes:
        name: "softmax", "flash", "gqa", "linear", "causal linear" or "linformer".
        path: kernel that torch chose for softmax: "math" writes the n x n weights to memory, "flash" does not.
        ms: time of one layer at each number of tokens: the fastest round, since what else a machine does only adds.
        peak_bytes: most that torch holds for one forward pass at once, beside its input and weights; counted.
        time_exponent: time is about a constant times tokens to this power.
        memory_exponent: the same of memory.
    """

    name: str
    path: str
    ms: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    time_exponent: float
    memory_exponent: float


@dataclass(frozen=True)
class TrafficRow:
    """Numbers that one head moves between slow and fast memory at the largest number of tokens: counted, not measured.

    Attributes:
        memory: numbers that the fast memory holds.
        standard: moved by the algorithm that writes scores and weights.
        tiled: moved by FlashAttention.
    """

    memory: int
    standard: int
    tiled: int


@dataclass(frozen=True)
class AttentionReport:
    """Kinds of attention side by side: one layer each, ``(1, n, embed_dim)`` to the same shape.

    Attributes:
        rows: one per kind.
        tokens: numbers of tokens that were measured.
        fitted: those that the exponents were fitted on: the longer half.
        embed_dim: channels of a token.
        num_heads: heads.
        num_kv_heads: heads of keys and values of "gqa".
        proj_dim: mixtures of tokens of "linformer".
        traffic: of the standard and the tiled algorithm.
        threads: of torch.
        rounds: timed runs of each.
        machine: processor, cores, system and versions.
    """

    rows: tuple[AttentionRow, ...]
    tokens: tuple[int, ...]
    fitted: tuple[int, ...]
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    proj_dim: int
    traffic: tuple[TrafficRow, ...]
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per kind, as text."""
        lengths = (f"{n}: ms, MiB" for n in self.tokens)
        header = ("attention", "path", *lengths, "time ~", "memory ~")
        rows = [
            (
                row.name,
                row.path,
                *(f"{ms:.1f}, {held / 2**20:.1f}" for ms, held in zip(row.ms, row.peak_bytes, strict=True)),
                f"n^{row.time_exponent:.2f}",
                f"n^{row.memory_exponent:.2f}",
            )
            for row in self.rows
        ]
        return [header, *rows]

    def notes(self) -> list[str]:
        """What the figures depend on, in lines."""
        kind = f"{self.embed_dim} channels, {self.num_heads} heads, gqa with {self.num_kv_heads} of keys and values, "
        return [
            f"{kind}linformer with {self.proj_dim} mixtures, {_settings(self.threads, self.rounds)}",
            f"exponents fitted on {', '.join(map(str, self.fitted))} tokens",
        ]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: time and memory by tokens, and traffic by the size of the fast memory."""
        from .figures import draw_attention

        draw_attention(self, path)


def attention(
    *,
    tokens: Sequence[int] = (256, 512, 1024, 2048, 4096),
    embed_dim: int = 256,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    proj_dim: int = 128,
    threads: int | None = None,
    rounds: int = 10,
    progress: Progress | None = None,
) -> AttentionReport:
    """Measure one layer of each kind of attention against the number of tokens, projections included.

    Args:
        tokens: two or more lengths. The n x n weights of all heads are held twice: 0.5 GiB at 4096 tokens by default.
        embed_dim: channels of a token.
        num_heads: heads.
        num_kv_heads: heads of keys and values of grouped-query attention.
        proj_dim: mixtures of tokens that Linformer attends to.
        threads: of torch; default: all cores.
        rounds: timed runs of each.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: fewer than two different lengths, numbers that are not positive, or heads that do not divide.
    """
    threads = _prepared(threads, rounds, *tokens)
    lengths = tuple(sorted(set(tokens)))
    if len(lengths) < 2:
        raise ConfigError(f"tokens={tuple(tokens)}: an exponent needs two or more different lengths")
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for n in lengths:
        softmax = Attention(embed_dim, num_heads)
        layers: dict[str, nn.Module] = {
            "softmax": softmax,
            "flash": softmax,
            "gqa": Attention(embed_dim, num_heads, num_kv_heads),
            "linear": LinearSelfAttention(embed_dim, num_heads),
            "causal linear": LinearSelfAttention(embed_dim, num_heads, causal=True),
            "linformer": LinformerAttention(embed_dim, num_heads, max_length=n, proj_dim=proj_dim),
        }
        x = torch.randn(1, n, embed_dim)
        for name, layer in layers.items():
            runs[name, n] = partial(_attend, layer.eval(), x, in_full=name == "softmax")
    times = _timed(runs, rounds, 1, progress)
    held: dict[tuple[str, int], int] = {}
    with (progress or Progress(enabled=False)).bar("memory", len(runs)) as bar:
        for key, run in runs.items():
            held[key] = peak_allocated(run)
            bar.advance()
    fitted = lengths[min(len(lengths) // 2, len(lengths) - 2) :]
    rows: list[AttentionRow] = []
    for name in dict.fromkeys(name for name, _ in runs):
        with AttentionPaths() as ran:
            runs[name, lengths[0]]()
        ms = [1e3 * min(times[name, n]) for n in lengths]
        memory = [held[name, n] for n in lengths]
        exponents = (round(fitted_exponent(fitted, values[-len(fitted) :]), 3) for values in (ms, memory))
        rows.append(
            AttentionRow(
                name, ran.paths[0] if ran.paths else "", tuple(round(t, 3) for t in ms), tuple(memory), *exponents
            )
        )
    return AttentionReport(
        rows=tuple(rows),
        tokens=lengths,
        fitted=fitted,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        proj_dim=proj_dim,
        traffic=_traffic(lengths[-1], embed_dim // num_heads),
        threads=threads,
        rounds=rounds,
        machine=machine.describe(),
    )


@torch.inference_mode()
def _attend(layer: nn.Module, x: torch.Tensor, *, in_full: bool) -> torch.Tensor:
    kernel: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH) if in_full else nullcontext()
    with kernel:
        return layer(x)


def _traffic(n: int, head_dim: int) -> tuple[TrafficRow, ...]:
    counts = {memory: attention_traffic(n, n, head_dim, memory=memory) for memory in (1 << i for i in range(12, 20))}
    return tuple(TrafficRow(memory, found.standard, found.tiled) for memory, found in counts.items())


def peak_allocated(run: Callable[[], object]) -> int:
    """Most bytes that torch's allocator holds at once for what ``run()`` makes. Counted: the same each time.

    Scratch memory of torch's own kernels is among them, that of oneDNN's convolutions is not.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(int(np.cumsum([size for _, size in changes]).max(initial=0)), 0)


def fitted_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Power p of ``values ~ c * lengths**p``: the slope of the least-squares line through their logarithms.

    Raises:
        InputError: fewer than two different lengths, or anything that has no logarithm.
    """
    if len(lengths) != len(values) or len(set(lengths)) < 2 or min(*lengths, *values) <= 0:
        raise InputError("an exponent needs positive values at two or more different positive lengths")
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


@dataclass(frozen=True)
class ScaledNetwork:
    """An EfficientNet by its multipliers.

    Attributes:
        width: multiplier of the channels.
        depth: multiplier of the numbers of blocks.
        resolution: side of its images in pixels.
        params: number of weights.
        macs: multiply-accumulates of one such image.
    """

    width: float
    depth: float
    resolution: int
    params: int
    macs: int


@dataclass(frozen=True)
class ScalingRow:
    """One step of compound scaling.

    Attributes:
        phi: how much larger than B0.
        formula: what :func:`compound_scale` gives.
        released: EfficientNet-B<phi>, whose multipliers were rounded by hand.
        p50_ms: median time of the released network on one image of its own size.
    """

    phi: int
    formula: ScaledNetwork
    released: ScaledNetwork
    p50_ms: float


@dataclass(frozen=True)
class ScalingReport:
    """EfficientNet by the formula beside the released networks.

    Attributes:
        rows: one per phi.
        threads: of torch.
        rounds: timed runs of each.
        machine: processor, cores, system and versions.
    """

    rows: tuple[ScalingRow, ...]
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per phi, as text."""
        multipliers = "width, depth, pixels"
        header = ("phi", f"formula: {multipliers}", "params", "GMACs", f"released: {multipliers}", "params", "GMACs")
        rows = []
        for row in self.rows:
            cells = [str(row.phi)]
            for net in (row.formula, row.released):
                cells.append(f"{net.width:.2f}, {net.depth:.2f}, {net.resolution}")
                cells += [f"{net.params / 1e6:.2f} M", f"{net.macs / 1e9:.2f}"]
            rows.append((*cells, f"{row.p50_ms:.1f}"))
        return [(*header, "p50 ms"), *rows]

    def notes(self) -> list[str]:
        """What the figures depend on, in lines."""
        return [f"each at its own size, batch 1, {_settings(self.threads, self.rounds)}; released networks timed"]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: multiply-accumulates by phi, and time by multiply-accumulates."""
        from .figures import draw_scaling

        draw_scaling(self, path)


def scaling(
    *,
    phis: Sequence[int] = tuple(range(8)),
    threads: int | None = None,
    rounds: int = 3,
    progress: Progress | None = None,
) -> ScalingReport:
    """Count EfficientNets by the formula and as released, and time the released ones at their own sizes.

    Args:
        phis: which of 0 (B0) to 7 (B7). B7 takes 98 times the multiply-accumulates of B0: hence the few rounds.
        threads: of torch; default: all cores.
        rounds: timed runs of each.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: another phi, or numbers that are not positive.
    """
    threads = _prepared(threads, rounds)
    names = {phi: f"efficientnet_b{phi}" for phi in phis}
    if not names or not set(names.values()) <= EFFICIENTNET_COEFFICIENTS.keys():
        raise ConfigError(f"phis={tuple(phis)}: give numbers of released EfficientNets, 0 to 7")
    runs = {}
    for name in names.values():
        side = EFFICIENTNET_COEFFICIENTS[name].resolution
        runs[name] = partial(_run, _deployed(name), torch.randn(1, 3, side, side))
    times = _timed(runs, rounds, 1, progress)
    rows = []
    for phi, name in names.items():
        formula, released = compound_scale(phi), EFFICIENTNET_COEFFICIENTS[name]
        with torch.device("meta"):
            networks = (
                _scaled_network(formula, _by_formula(formula)),
                _scaled_network(released, create_model(name).eval()),
            )
        rows.append(ScalingRow(phi, *networks, _p50_ms(times[name])))
    return ScalingReport(tuple(rows), threads, rounds, machine.describe())


def _by_formula(scale: Scale) -> nn.Module:
    config = scaled_config(scale)
    backbone = MobileNet(config)
    return ClassificationModel(backbone, ClassifierHead(backbone.feature_info[-1].channels, config=config)).eval()


def _scaled_network(scale: Scale, model: nn.Module) -> ScaledNetwork:
    return ScaledNetwork(*scale, *count(model, 3, (scale.resolution, scale.resolution)))


def _prepared(threads: int | None, *positive: int) -> int:
    """Check numbers, set torch's threads and seed; the number of threads."""
    threads = int(machine.describe()["cores"]) if threads is None else threads
    if min(threads, *positive) < 1:
        raise ConfigError("bench needs positive threads, rounds and sizes")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return threads


def _timed(
    runs: Mapping[K, Callable[[], object]], rounds: int, warmup: int, progress: Progress | None
) -> dict[K, list[float]]:
    with (progress or Progress(enabled=False)).bar("time", len(runs) * (rounds + warmup)) as bar:
        return interleaved(runs, rounds=rounds, warmup=warmup, after=bar.advance)


def _p50_ms(seconds: Sequence[float]) -> float:
    return round(1e3 * float(np.median(seconds)), 3)


def _settings(threads: int, rounds: int) -> str:
    counts = f"{threads} thread{'s' if threads > 1 else ''}, {rounds} round{'s' if rounds > 1 else ''}"
    return f"float32, {counts}, torch {torch.__version__}, {machine.one_line()}"


Report = ArchitectureReport | AttentionReport | ScalingReport
PRESETS: dict[str, Callable[..., Report]] = {
    "architectures": architectures,
    "attention": attention,
    "scaling": scaling,
}


def bench_preset(name: str, **options: Any) -> Report:
    """Make one of the comparisons: :func:`architectures`, :func:`attention` or :func:`scaling`.

    Args:
        name: of the preset.
        **options: of that function, such as ``rounds=5`` and ``threads=1``.

    Returns:
        A report with ``table()``, ``notes()``, ``to_dict()`` and ``draw(path)``.

    Raises:
        ConfigError: an unknown preset or option; the message has the nearest valid one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    valid = inspect.signature(PRESETS[name]).parameters
    for option in options:
        if option not in valid:
            raise ConfigError(f"preset {name} has no option {option!r}{nearest(option, valid)}")
    return PRESETS[name](**options)
