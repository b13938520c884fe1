"""What kinds of attention cost: time of one layer by the number of tokens, and memory traffic by the size of tiles.

python benchmarks/attention.py [--out docs/attention.png] [--tokens 256,1024,4096] [--dim 192] [--heads 3]
    [--threads 1] [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn

from foveal import machine
from foveal.deploy.benchmark import interleaved
from foveal.layers.attention import Attention, LinformerAttention, attention_traffic
from foveal.layers.linear_attention import LinearSelfAttention

MEMORIES = [1 << i for i in range(12, 20)]


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="picture to write")
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[256, 1024, 4096])
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times = {n: measured(n, arguments.dim, arguments.heads, arguments.rounds) for n in arguments.tokens}
    report = {name: [row[name] for row in times.values()] for name in times[arguments.tokens[0]]}
    if arguments.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        print(json.dumps({**settings, "machine": machine.describe(), "milliseconds": report}))
    else:
        print(f"milliseconds of one layer's forward pass at {arguments.tokens} tokens")
        for name, row in report.items():
            print(f"{name:14}" + " ".join(f"{value:10.1f}" for value in row))
        print(machine.one_line())
    if arguments.out is not None:
        draw(arguments.out, arguments.tokens, report)


def measured(tokens: int, dim: int, heads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each kind, the fastest round: what else the machine does only adds."""
    torch.manual_seed(0)
    layers = {
        "softmax": Attention(dim, heads),
        "mqa": Attention(dim, heads, 1),
        "linear": LinearSelfAttention(dim, heads),
        "causal linear": LinearSelfAttention(dim, heads, causal=True),
        "linformer": LinformerAttention(dim, heads, max_length=tokens, proj_dim=64),
    }
    x = torch.randn(1, tokens, dim)

    def run(layer: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def call() -> object:
            return layer(x)

        return call

    times = interleaved({name: run(layer) for name, layer in layers.items()}, rounds=rounds, warmup=1)
    return {name: round(1e3 * float(np.min(seconds)), 2) for name, seconds in times.items()}


def draw(path: Path, tokens: list[int], report: dict[str, list[float]]) -> None:
    """Times on the left, traffic on the right."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, row in report.items():
        left.plot(tokens, row, marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms, one layer", title="Time")
    left.set_xticks(tokens, map(str, tokens))
    left.minorticks_off()
    left.legend(fontsize=8)
    for n in (1024, 4096):
        traffic = [attention_traffic(n, n, 64, memory=memory) for memory in MEMORIES]
        right.plot(MEMORIES, [t.standard / n for t in traffic], "--", label=f"standard, {n} tokens")
        right.plot(MEMORIES, [t.tiled / n for t in traffic], marker="o", label=f"tiled, {n} tokens")
    right.set(xscale="log", yscale="log", xlabel="fast memory, numbers", ylabel="numbers moved per token")
    right.set_title("Memory traffic, head of 64 channels")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
