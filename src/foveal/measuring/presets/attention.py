"""Kinds of attention against the length of a sequence: time and memory, with fitted exponents."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
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
from .timing import _LOG, prepared, settings, timed


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
            f"{kind}linformer with {self.proj_dim} mixtures, {settings(self.threads, self.rounds)}",
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
        num_heads: heads.
        num_kv_heads: heads of keys and values of grouped-query attention.
        proj_dim: mixtures of tokens that Linformer attends to.
        threads: of torch; default: all cores.
        rounds: timed runs of each.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: fewer than two different lengths, numbers that are not positive, or heads that do not divide.
    """
    threads = prepared(threads, rounds, *tokens)
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
    times = timed(runs, rounds, 1, progress)
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


def draw_attention(report: AttentionReport, path: str | Path) -> None:
    """Time, memory, and traffic counted."""
    figure = new_figure(12.5, 4)
    left, middle, right = figure.subplots(1, 3)
    for row in report.rows:
        left.plot(report.tokens, row.ms, marker="o", label=f"{row.name}, n^{row.time_exponent:.2f}")
        held = [size / 2**20 for size in row.peak_bytes]
        middle.plot(report.tokens, held, marker="o", label=f"{row.name}, n^{row.memory_exponent:.2f}")
    left.set(**_LOG, xlabel="tokens", ylabel="ms, one layer", title="Time")
    middle.set(**_LOG, xlabel="tokens", ylabel="MiB beside input and weights", title="Memory")
    for axes in (left, middle):
        axes.set_xticks(report.tokens, map(str, report.tokens))
        axes.minorticks_off()
    memories, n = [row.memory for row in report.traffic], report.tokens[-1]
    right.plot(memories, [row.standard / n for row in report.traffic], "--", label="standard")
    right.plot(memories, [row.tiled / n for row in report.traffic], marker="o", label="tiled")
    right.set(**_LOG, xlabel="fast memory, numbers", ylabel="numbers moved per token")
    right.set_title(f"Traffic of one head, {n} tokens, counted")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_figure(figure, path, dpi=80)
