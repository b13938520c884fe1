"""Helpers for tests of training: settings of a short run, starting processes, reading a run's folder."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from foveal.weights.checkpoints import read_state

SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "crop": [32, 32],
    "workers": 0,
    "eval_every": 2,
    "ema_decay": 0.9,
    "log_every": 1,
    "tint": 0.1,
}
#: A network with few layers, for runs of many steps and for processes that synchronise each batch norm.
SMALL: dict[str, Any] = {
    "model": "mambavision_t",
    "options": {
        "embed_dim": 8,
        "stem_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2],
        "drop_path_rate": 0.0,
        "window_size": "whole",
        "head_width": 8,
        "head_depth": 1,
    },
}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(folder: Path) -> dict[int, float]:
    """The losses in the log, by step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line and "epoch" not in line}


def same_weights(first: Path, second: Path) -> bool:
    """Whether the last checkpoints of two runs are exactly equal."""
    a, b = (read_state(folder / "last.safetensors")[0] for folder in (first, second))
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def furthest_weights(first: Path, second: Path) -> float:
    """Largest difference between the weights of two runs."""
    a, b = (read_state(folder / "last.safetensors")[0] for folder in (first, second))
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Wait for a condition. The limit is long, because a busy machine is slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torchrun(data: Path, out: Path, settings: dict[str, Any], *options: str) -> list[str]:
    """Return a command that trains on two processes."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "foveal"]
    return [*launch, "train", str(data), "--config", str(recipe), "--out", str(out), *options]
