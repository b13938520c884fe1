"""Draw the curves of a training run's log, as ``foveal train`` does at its end.

python benchmarks/curves.py runs/camvid_b0/log.jsonl curves.png [METRIC]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from foveal.run.curves import draw_curves

if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    log = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    draw_curves(log, sys.argv[2], *sys.argv[3:])
