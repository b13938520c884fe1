"""Write the graphs of the package, with which the base install runs promptable models and classifiers without torch.

    python benchmarks/bundled_graphs.py

Each is compared with its model before it gets its name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foveal import assets
from foveal.exporting.weightless import write_graphs
from foveal.prediction.onnx_graphs import find_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=assets.FOLDER, help="folder; default: that of the package")
    parser.add_argument("refs", nargs="*", default=[assets.DEFAULTS["prompt"], *assets.PACKAGED])
    arguments = parser.parse_args()
    out = arguments.out
    for ref in arguments.refs:
        for file in write_graphs(ref, find_weights(Path(f"{ref}.graph")), out):
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
