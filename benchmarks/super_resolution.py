"""Compare super-resolution networks on this machine: parameters, MACs, milliseconds, memory.

With test sets it also prints the PSNR of interpolation and of checkpoints, and draws BSD100's PSNR against time.

python benchmarks/super_resolution.py [--size 160x240] [--rounds 10] [--threads 1] [--only NAME ...]
    [--rows FILE.jsonl] [--page FILE.md] [--sets SETS --models REF ...] [--plot FILE.png]
    With --rows, a size whose networks all have rows is not measured again; --page writes the tables of all rows into
    the documentation.

MACs are those of convolutions, linear layers and the products of attention. The networks of other authors are rebuilt
from their papers (peers/super_resolution.py), which is enough to measure time and size but not quality. The figure
shows their published quality, of networks that were trained on more images than ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_tables import parse, parser, write_tables
from peers.super_resolution import PEERS, Peer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal.costs import count
from foveal.images.figures import new_figure, write_figure
from foveal.measuring.benchmark import interleaved
from foveal.measuring.machine import one_line
from foveal.measuring.memory import peak_memory
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile

KIND = "upscaling"  # of the rows
INTERPOLATIONS = ("bicubic.x2", "lanczos.x2")
#: Published PSNR of BSD100 x2 in dB of Y. Trained on DIV2K or larger sets, FSRCNN on 91 and 100 images.
PUBLISHED = {
    "FSRCNN": 31.53,
    "BSRN": 32.24,
    "SPAN-52": 32.22,
    "IMDN": 32.19,
    "SwinIR-light": 32.31,
    "SwinIR": 32.53,
}


def costs() -> None:
    """Print the costs of the other authors' networks and the published figures, counted in the same way."""
    print("| network | params | published | GMACs | published | of an image of (H x W) | |")
    print("|---|---|---|---|---|---|---|")
    for name, peer in PEERS.items():
        with torch.device("meta"):
            network = peer.build().eval()
        params = sum(p.numel() for p in network.parameters())
        size = f"{peer.size[0]}x{peer.size[1]}"
        print(
            f"| {name} | {params / 1e3:.1f} k | {peer.params / 1e3:.0f} k | {as_published(network, peer) / 1e9:.2f} "
            f"| {peer.macs / 1e9:.1f} | {size} | {peer.note} |"
        )


@torch.inference_mode()
def as_published(network: nn.Module, peer: Peer) -> float:
    """MACs as the authors counted: transposed convolutions at their output, with or without attention's products."""
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, peer.in_chans, *peer.size, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    macs = sum(count for operator, count in flops.items() if peer.products or operator != torch.ops.aten.bmm) / 2
    widened = (m for m in network.modules() if isinstance(m, nn.ConvTranspose2d))
    return macs + sum(m.weight.numel() * (m.stride[0] ** 2 - 1) * math.prod(peer.size) for m in widened)


def prepare_run(name: str, height: int, width: int, threads: int) -> Callable[[], object]:
    """One run of a network or of an interpolation at x2; the network is built and has run once."""
    torch.set_num_threads(threads)
    if name in INTERPOLATIONS:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return partial(foveal.load(name), pixels)
    network, in_chans = build(name)

    @torch.inference_mode()
    def run(height: int = height, width: int = width) -> object:
        image = torch.rand(1, in_chans, height, width).contiguous(memory_format=torch.channels_last)
        return network(image)

    run(32, 48)
    return run


def build(name: str) -> tuple[nn.Module, int]:
    """A network as it is deployed, and its number of input channels."""
    if name in PEERS:
        network, in_chans = PEERS[name].build().eval(), PEERS[name].in_chans
    else:
        network, in_chans = foveal.optimize(foveal.create_model(name, scale=2)), 3
    return network.to(memory_format=torch.channels_last), in_chans  # pyright: ignore[reportCallIssue]


def key_of(name: str, size: tuple[int, int], threads: int) -> dict[str, Any]:
    """What identifies a row."""
    return {"network": name, "size": list(size), "threads": threads}


def measure(names: list[str], size: tuple[int, int], rounds: int, threads: int) -> Iterator[Row]:
    """Time all in turns, and measure the memory of each alone."""
    runs = {name: prepare_run(name, *size, threads) for name in names}
    seconds = interleaved(runs, rounds=rounds, warmup=1)
    os.environ["PYTHONPATH"] = os.pathsep.join(  # for the processes whose memory is measured
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    for name in names:
        row = {"kind": KIND, "key": key_of(name, size, threads), "ms": 1e3 * min(seconds[name]), "rounds": rounds}
        row["grown"] = peak_memory(import_module(Path(__file__).stem).prepare_run, name, *size, threads).grown
        if name not in INTERPOLATIONS:
            network, in_chans = build(name)
            cost = count(network.to("meta"), in_chans, size)
            row |= {"params": cost.params, "macs": cost.macs}
        yield row


def table(rows: Sequence[Row]) -> str:
    """Costs of networks for images of one size, in Markdown."""
    return markdown([("network", "params", "GMACs", "ms", "MiB"), *map(cells_of, rows)])


def cells_of(row: Row) -> tuple[str, ...]:
    params, macs = (f"{row['params'] / 1e3:.1f} k", f"{row['macs'] / 1e9:.2f}") if "params" in row else ("", "")
    ms = f"{row['ms']:.1f}" if row["ms"] < 1e3 else f"{row['ms']:,.0f}"
    return row["key"]["network"], params, macs, ms, "" if row["grown"] is None else f"{row['grown']:,.0f}"


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("super_resolution", rows, page, ("foveal", "torch"), tables)


def setting_of(row: Row) -> str:
    height, width = row["key"]["size"]
    threads = row["key"]["threads"]
    return f"Images of {height}x{width} pixels, {threads} thread{'s' * (threads > 1)}, best of {row['rounds']} rounds"


def tables(rows: Sequence[Row]) -> str:
    """A table for each setting, in Markdown."""
    parts = []
    for setting in dict.fromkeys(map(setting_of, rows)):
        parts += [f"{setting}:", table([row for row in rows if setting_of(row) == setting])]
    return "\n\n".join(parts)


def quality(sets: Path, models: list[str]) -> dict[str, float]:
    """Print PSNR and SSIM by the usual protocol; BSD100's PSNR of the x2 models, by architecture."""
    bsd100 = {}
    for ref in ("bicubic.x2", "lanczos.x2", "bicubic.x4", "lanczos.x4", *models):
        report = foveal.evaluate(ref, sets)
        for part in report.sets:
            print(
                f"{ref:32} x{report.scale} {part.name:8} {part.scores.psnr:.2f} dB {part.scores.ssim:.4f}  Y, "
                f"{part.scores.images} images, small ones by {part.small}, border {part.border} px",
                flush=True,
            )
            if part.name == "bsd100" and report.scale == 2 and ref in models:
                bsd100[foveal.load(ref).info.model] = part.scores.psnr
    return bsd100


def draw(path: Path, ms: dict[str, float], measured: dict[str, float], size: str) -> None:
    """Draw BSD100's PSNR against time: measured for our networks, published for the others."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for label, marker, points in (("measured here", "o", measured), ("published", "s", PUBLISHED)):
        names = [name for name in points if name in ms]
        axes.plot([ms[name] for name in names], [points[name] for name in names], marker, label=label)
        for name in names:
            axes.annotate(name, (ms[name], points[name]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel=f"ms for an image of {size}, x2", ylabel="BSD100, dB of Y")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(figure, path)


def main() -> None:
    """Count and time; with test sets, score as well."""
    made = parser(__doc__)
    made.add_argument("--size", default="160x240", metavar="HxW")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks to time; default: all")
    made.add_argument("--sets", type=Path)
    made.add_argument("--models", nargs="*", default=[], metavar="REF")
    made.add_argument("--plot", type=Path, help="needs --sets and --models")
    arguments = parse(made)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{one_line()}, torch {torch.__version__}, {arguments.threads} threads\n")
    costs()
    height, width = map(int, arguments.size.split("x"))
    names = [*INTERPOLATIONS, *foveal.list_models(task="upscale"), *PEERS]
    if unknown := set(arguments.only) - set(names):
        made.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(names)}")
    chosen, rows = arguments.only or names, RowFile(arguments.rows)
    keys = [key_of(name, (height, width), arguments.threads) for name in chosen]
    if any(rows.find(KIND, key) is None for key in keys):
        for row in measure(chosen, (height, width), arguments.rounds, arguments.threads):
            rows.add(row)
    found = [row for key in keys if (row := rows.find(KIND, key))]
    print(
        f"\nx2 from {arguments.size}: best milliseconds, growth of the process's memory\n\n{table(found)}", flush=True
    )
    if arguments.page:
        write_page(arguments.rows, arguments.page)
    ms = {row["key"]["network"]: row["ms"] for row in found}
    measured = quality(arguments.sets, arguments.models) if arguments.sets else {}
    if arguments.plot:
        draw(arguments.plot, ms, measured, arguments.size)


if __name__ == "__main__":
    main()
