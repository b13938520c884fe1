"""Write the graphs and descriptions of the package, with which the base install needs no torch.

    python benchmarks/bundled_graphs.py

Graphs for ONNX Runtime and plans for the native engine are for promptable models and classifiers. Descriptions are for
models that the package has as ONNX files too, whose images are then computed in pieces (`--exact`). Each is compared
with its model before it gets its name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foveal import assets
from foveal.exporting.described import write_description
from foveal.exporting.weightless import write_graphs
from foveal.exporting.weightless_plans import write_plans
from foveal.prediction.onnx_graphs import find_weights
from foveal.prediction.streamed_networks import STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=assets.FOLDER, help="folder; default: that of the package")
    parser.add_argument("refs", nargs="*", default=[*assets.WEIGHTS, *assets.PACKAGED])
    arguments = parser.parse_args()
    out = arguments.out
    for ref in arguments.refs:
        if assets.path(ref, ".onnx").is_file():
            files = [write_description(ref, assets.path(ref, ".safetensors"), out / f"{ref}{STEPS}")]
        else:
            weights = find_weights(Path(f"{ref}.graph"))
            files = [*write_graphs(ref, weights, out), *write_plans(ref, weights, out)]
        for file in files:
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
