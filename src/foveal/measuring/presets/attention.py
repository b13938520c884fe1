"""Kinds of attention against the length of a sequence: time and memory, with fitted exponents."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from ...errors import ConfigError, InputError
from ...images.figures import new_figure, write_figure
from ...layers.attention import Attention, AttentionPaths, LinformerAttention, attention_traffic
from ...layers.linear_attention import LinearSelfAttention
from ...progress import Progress
from .. import machine
from .timing import LOG_AXES, describe_settings, fit_exponent, prepare_torch, time_in_turns

_Runs = dict[tuple[str, int], Callable[[], object]]  # by kind of attention and number of tokens


@dataclass(frozen=True)
class AttentionRow:
    """Figures of one kind of attention for each number of tokens.

    Attributes:
        name: "softmax", "flash", "gqa", "linear", "causal linear" or "linformer".
        path: kernel that torch chose for softmax: "math" writes the n x n weights to memory, "flash" does not.
        ms: time of one layer at each number of tokens, of the fastest round, because other processes only add time.
        peak_bytes: largest memory that torch holds at once in one forward pass, in addition to input and weights;
            counted.
        time_exponent: the time is about a constant times the number of tokens to this power.
        memory_exponent: the same for memory.
    """

    name: str
    path: str
    ms: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    time_exponent: float
    memory_exponent: float


@dataclass(frozen=True)
class TrafficRow:
    """Numbers that one head moves between slow and fast memory for the longest sequence: counted, not measured.

    Attributes:
        memory: how many numbers the fast memory holds.
        standard: numbers moved by the algorithm that writes scores and weights.
        tiled: numbers moved by FlashAttention.
    """

    memory: int
    standard: int
    tiled: int


@dataclass(frozen=True)
class AttentionReport:
    """Figures of one layer of each kind of attention, ``(1, n, embed_dim)`` to the same shape.

    Attributes:
        rows: one per kind.
        tokens: numbers of tokens that were measured.
        fitted: numbers of tokens that the exponents were fitted on, the longer half.
        embed_dim: channels of a token.
        num_heads: number of heads.
        num_kv_heads: number of heads of keys and values in "gqa".
        proj_dim: number of mixtures of tokens in "linformer".
        traffic: traffic of the standard and the tiled algorithm.
        threads: threads of torch.
        rounds: timed runs of each layer.
        machine: processor, cores, operating system and versions.
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
                *(f"{ms:.1f}, {size / 2**20:.1f}" for ms, size in zip(row.ms, row.peak_bytes, strict=True)),
                f"n^{row.time_exponent:.2f}",
                f"n^{row.memory_exponent:.2f}",
            )
            for row in self.rows
        ]
        return [header, *rows]

    def notes(self) -> list[str]:
        """The settings that the figures depend on, in lines."""
        kind = f"{self.embed_dim} channels, {self.num_heads} heads, gqa with {self.num_kv_heads} of keys and values, "
        return [
            f"{kind}linformer with {self.proj_dim} mixtures, {describe_settings(self.threads, self.rounds)}",
            f"exponents fitted on {', '.join(map(str, self.fitted))} tokens",
        ]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: time and memory by tokens, and traffic by the size of the fast memory."""

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
        num_heads: number of heads.
        num_kv_heads: number of heads of keys and values in grouped-query attention.
        proj_dim: number of mixtures of tokens that Linformer attends to.
        threads: threads of torch; default: all cores.
        rounds: timed runs of each layer.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: fewer than two different lengths, numbers that are not positive, or heads that do not divide.
    """
    threads = prepare_torch(threads, rounds, *tokens)
    lengths = tuple(sorted(set(tokens)))
    if len(lengths) < 2:
        raise ConfigError(f"tokens={tuple(tokens)}: an exponent needs two or more different lengths")
    runs: _Runs = {}
    for n in lengths:
        layers = _layers(n, embed_dim, num_heads, num_kv_heads, proj_dim)
        x = torch.randn(1, n, embed_dim)
        for name, layer in layers.items():
            runs[name, n] = partial(_attend, layer.eval(), x, in_full=name == "softmax")
    times = time_in_turns(runs, rounds, 1, progress)
    memory = _measure_memory(runs, progress)
    fitted = lengths[min(len(lengths) // 2, len(lengths) - 2) :]
    names = dict.fromkeys(name for name, _ in runs)
    rows = [_row(name, lengths, len(fitted), runs, times, memory) for name in names]
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


def _layers(n: int, embed_dim: int, num_heads: int, num_kv_heads: int, proj_dim: int) -> dict[str, nn.Module]:
    """One layer of each kind for ``n`` tokens; "softmax" and "flash" are the same layer with different kernels."""
    softmax = Attention(embed_dim, num_heads)
    return {
        "softmax": softmax,
        "flash": softmax,
        "gqa": Attention(embed_dim, num_heads, num_kv_heads),
        "linear": LinearSelfAttention(embed_dim, num_heads),
        "causal linear": LinearSelfAttention(embed_dim, num_heads, causal=True),
        "linformer": LinformerAttention(embed_dim, num_heads, max_length=n, proj_dim=proj_dim),
    }


@torch.inference_mode()
def _attend(layer: nn.Module, x: torch.Tensor, *, in_full: bool) -> torch.Tensor:
    """Run a layer; ``in_full`` writes the n x n weights to memory."""
    kernel: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH) if in_full else nullcontext()
    with kernel:
        return layer(x)


def _measure_memory(runs: _Runs, progress: Progress | None) -> dict[tuple[str, int], int]:
    memory = {}
    with (progress or Progress(enabled=False)).bar("memory", len(runs)) as bar:
        for key, run in runs.items():
            memory[key] = peak_allocated(run)
            bar.advance()
    return memory


def _row(
    name: str,
    lengths: Sequence[int],
    longest: int,
    runs: _Runs,
    times: Mapping[tuple[str, int], Sequence[float]],
    memory: Mapping[tuple[str, int], int],
) -> AttentionRow:
    """Figures of one kind, with exponents fitted on the ``longest`` last lengths."""
    with AttentionPaths() as ran:
        runs[name, lengths[0]]()
    ms = [1e3 * min(times[name, n]) for n in lengths]
    peaks = [memory[name, n] for n in lengths]
    time_exponent, memory_exponent = (
        round(fitted_exponent(lengths[-longest:], values[-longest:]), 3) for values in (ms, peaks)
    )
    return AttentionRow(
        name=name,
        path=ran.paths[0] if ran.paths else "",
        ms=tuple(round(t, 3) for t in ms),
        peak_bytes=tuple(peaks),
        time_exponent=time_exponent,
        memory_exponent=memory_exponent,
    )


def _traffic(n: int, head_dim: int) -> tuple[TrafficRow, ...]:
    """Traffic of one head with fast memories of 2^12 to 2^19 numbers."""
    counts = {memory: attention_traffic(n, n, head_dim, memory=memory) for memory in (1 << i for i in range(12, 20))}
    return tuple(TrafficRow(memory, traffic.standard, traffic.tiled) for memory, traffic in counts.items())


def peak_allocated(run: Callable[[], object]) -> int:
    """Largest number of bytes that torch's allocator holds at once while ``run()`` runs.

    The bytes are counted, so that the result is the same each time. Scratch memory of torch's own kernels is included,
    that of oneDNN's convolutions is not.
    """
    os.environ.setdefault("KINETOLOG_AXES_LEVEL", "99")  # otherwise the profiler writes to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(int(np.cumsum([size for _, size in changes]).max(initial=0)), 0)


def fitted_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Exponent p of ``values ~ c * lengths**p``: the slope of the least-squares line through the logarithms.

    Raises:
        InputError: fewer than two different lengths, or numbers that are not positive and have no logarithm.
    """
    if len(lengths) != len(values) or len(set(lengths)) < 2 or min(*lengths, *values) <= 0:
        raise InputError("an exponent needs positive values at two or more different positive lengths")
    found = fit_exponent(lengths, values)
    assert found is not None
    return found.value


def draw_attention(report: AttentionReport, path: str | Path) -> None:
    """Draw time and memory by the number of tokens, and the counted traffic by the size of the fast memory."""
    figure = new_figure(12.5, 4)
    left, middle, right = figure.subplots(1, 3)
    for row in report.rows:
        left.plot(report.tokens, row.ms, marker="o", label=f"{row.name}, n^{row.time_exponent:.2f}")
        mebibytes = [size / 2**20 for size in row.peak_bytes]
        middle.plot(report.tokens, mebibytes, marker="o", label=f"{row.name}, n^{row.memory_exponent:.2f}")
    left.set(**LOG_AXES, xlabel="tokens", ylabel="ms, one layer", title="Time")
    middle.set(**LOG_AXES, xlabel="tokens", ylabel="MiB in addition to input and weights", title="Memory")
    for axes in (left, middle):
        axes.set_xticks(report.tokens, map(str, report.tokens))
        axes.minorticks_off()
    memories, n = [row.memory for row in report.traffic], report.tokens[-1]
    right.plot(memories, [row.standard / n for row in report.traffic], "--", label="standard")
    right.plot(memories, [row.tiled / n for row in report.traffic], marker="o", label="tiled")
    right.set(**LOG_AXES, xlabel="fast memory, numbers", ylabel="numbers moved per token")
    right.set_title(f"Traffic of one head, {n} tokens, counted")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_figure(figure, path, dpi=80)
