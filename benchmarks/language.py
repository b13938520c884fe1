"""Count the parameters and MACs that shared layers (ALBERT) and projected tokens (Linformer) save.

python benchmarks/language.py [--out docs/language.png] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

from foveal.costs import Costs, count_tokens
from foveal.factory.create import create_model

GROUPS = (1, 2, 3, 4, 6, 12)
TOKENS = (512, 1024, 2048, 4096, 8192)


def main() -> None:
    """Count, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="figure to write")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shared = {groups: count_encoder("albert_base", 512, num_hidden_groups=groups) for groups in GROUPS}
    softmax = {n: count_encoder("albert_base", n, max_position_embeddings=n) for n in TOKENS}
    linformer = {n: count_encoder("linformer", n, max_length=n) for n in TOKENS}
    report = {"albert_base by groups": shared, "albert_base by tokens": softmax, "linformer by tokens": linformer}
    if arguments.json:
        print(json.dumps(report))
    else:
        for title, rows in report.items():
            print(title)
            for key, costs in rows.items():
                print(f"{key:6} {costs.params / 1e6:8.2f} M parameters {costs.macs / 1e9:8.2f} G MACs")
    if arguments.out is not None:
        draw(arguments.out, shared, softmax, linformer)


def count_encoder(name: str, tokens: int, **options: Any) -> Costs:
    """Costs of the encoder without a head."""
    with torch.device("meta"):
        return count_tokens(create_model(name, features_only=True, **options).eval(), tokens)


def draw(path: Path, shared: dict[int, Costs], softmax: dict[int, Costs], linformer: dict[int, Costs]) -> None:
    """Draw costs by the number of shared blocks on the left, by the number of tokens on the right."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(list(shared), [c.params / 1e6 for c in shared.values()], marker="o", label="parameters, M")
    left.plot(list(shared), [c.macs / 1e9 for c in shared.values()], marker="o", label="MACs at 512 tokens, G")
    left.set(xlabel="different blocks among 12 layers", ylim=(0, None), title="ALBERT base")
    left.legend(fontsize=8)
    for name, rows in (("softmax (ALBERT base)", softmax), ("Linformer, 256 mixtures", linformer)):
        right.plot(list(rows), [c.macs / 1e6 / n for n, c in rows.items()], marker="o", label=name)
    right.set(xscale="log", xlabel="tokens", ylabel="MACs per token, M", ylim=(0, None))
    right.set_xticks(TOKENS, map(str, TOKENS))
    right.minorticks_off()
    right.set_title("12 layers of 768 channels")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
