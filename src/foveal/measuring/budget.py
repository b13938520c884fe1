"""Which models run within a time on this machine, with their published quality."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import ConfigError, FovealError
from ..prediction.devices import cpu_count
from ..progress import Progress
from ..task import find_task
from .candidates import CLICK, Candidate
from .opening import SIZES, open_model
from .pairwise import encoder_size, our_network, set_torch_threads
from .rounds import torch_threads_kept
from .row_file import Row, RowFile

KIND = "budget"
_TOO_SLOW = 3.0  # times the budget: such a model is run once, and larger ones of its family not at all


@dataclass(frozen=True)
class BudgetReport:
    """The models of a task by quality: first those that run within the budget.

    Attributes:
        rows: one per model, as they are in the file.
        task: their task.
        budget_ms: milliseconds for one image.
        machine: processor, cores, operating system and versions.
    """

    rows: tuple[Row, ...]
    task: str
    budget_ms: float
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per model, as text."""
        return budget_table(self.rows, self.budget_ms)

    def notes(self) -> list[str]:
        """What the figures depend on, in lines."""
        within = sum(fits(row, self.budget_ms) for row in self.rows)
        key = self.rows[0]["key"]
        place = f"{self.machine['cpu']}, {self.machine['cores']} cores, {self.machine['os']}"
        return [
            f"{within} of {len(self.rows)} models take at most {self.budget_ms:g} ms for one image of the size named, "
            f"{key['threads']} thread{'s' if key['threads'] > 1 else ''}, {key['dtype']}, {place}; the network alone",
            "quality is quoted, for images of the size named with it; where none is known, nobody published one",
        ]


def parse_milliseconds(text: str) -> float:
    """``"100ms"``, ``"0.1s"`` or ``"100"`` in milliseconds.

    Raises:
        ConfigError: another text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|)", text.strip().lower())
    value = float(match[1]) * (1e3 if match[2] == "s" else 1) if match else 0.0
    if value <= 0:
        raise ConfigError(f"budget {text!r}: write milliseconds, for example 100ms")
    return value


def rank_within(
    budget_ms: float,
    *,
    task: str,
    models: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    runtime: str = "auto",
    rounds: int = 7,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> BudgetReport:
    """Time all models of a task, smallest first, and rank those that take at most ``budget_ms`` by their quality.

    A model whose first runs take three times the budget is not timed further, and larger models of its family are not
    run. Weights are random, because they do not change the time.

    Args:
        budget_ms: milliseconds for one image.
        task: of the models.
        models: names of architectures; default: all of the task.
        size: (H, W) of the images; default: the task's usual size. Promptable models have one of their own.
        threads: threads of the runtime; default: all cores.
        dtype: "float32", or another type that the runtime has.
        runtime: "auto": our engine, or ONNX Runtime for models that it does not compute; or a runtime of
            :func:`foveal.load`.
        rounds: timed runs of each.
        resume: file of rows, which is continued if it exists.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: no such task or model, or impossible numbers.
        DataError: ``resume`` is another file, or was measured on another machine.
    """
    from ..factory.create import list_models

    if min(budget_ms, rounds, threads or 1, *(size or ())) <= 0:
        raise ConfigError("bench: budget, rounds, threads and sizes must be positive")
    file, shown = RowFile(resume), progress or Progress(enabled=False)
    size = None if find_task(task).takes_prompts else size or SIZES.get(task)
    threads = threads or cpu_count()
    settings = {"task": task, "threads": threads, "dtype": "float32" if dtype == "auto" else dtype, "runtime": runtime}
    names = _by_costs(list(models) or list_models(task=task), task, size)
    slow: dict[str, str] = {}  # the first model of each family that was far too slow
    rows = []
    with torch_threads_kept(), TemporaryDirectory(prefix="foveal-bench-") as folder:
        set_torch_threads(threads)
        with shown.bar("models", len(names)) as bar:
            for name, costs in names.items():
                key = {"model": name, "size": "x".join(map(str, size or encoder_size(name, task))), **settings}
                row = file.find(KIND, key)
                if row is None or (row["ms"] is None and row["budget_ms"] < budget_ms):
                    found = _time(name, size, settings, budget_ms, rounds, folder, slow.get(_family(name)))
                    quality = _quality(name, task, size)
                    row = {
                        "kind": KIND,
                        "key": key,
                        "costs": costs,
                        "quality": quality,
                        "budget_ms": budget_ms,
                        **found,
                    }
                    file.add(row)
                if (row["ms"] or 0) > _TOO_SLOW * budget_ms:
                    slow.setdefault(_family(name), name)
                rows.append(row)
                bar.advance(name)
    return BudgetReport(tuple(sorted(rows, key=lambda row: _order(row, budget_ms))), task, budget_ms, file.machine)


def _by_costs(models: Sequence[str], task: str, size: tuple[int, int] | None) -> dict[str, list[int]]:
    """Parameters and multiply-accumulates of each model, the cheapest first."""
    import torch

    from .costs import count

    costs = {}
    for name in models:
        with torch.device("meta"):
            network = our_network(name, task)
        costs[name] = list(count(network, 3, size or encoder_size(name, task)))
    return dict(sorted(costs.items(), key=lambda entry: entry[1][1]))


def _family(name: str) -> str:
    from ..models.registry import variants

    return variants()[name][0].name


def _quality(name: str, task: str, size: tuple[int, int] | None) -> str:
    from ..models.registry import variants

    entries = [entry for entry in variants()[name][1].published if entry.task == task]
    of_size = [entry for entry in entries if size is not None and entry.size == str(size[0]) and size[0] == size[1]]
    entry = next(iter(of_size or entries), None)
    if entry is None:
        return ""
    return f"{entry.value:g} {entry.metric} at {entry.size} ({name}.{entry.tag}, {entry.source})"


def _time(
    name: str,
    size: tuple[int, int] | None,
    settings: dict[str, Any],
    budget_ms: float,
    rounds: int,
    folder: str,
    slower: str | None,
) -> dict[str, Any]:
    """Milliseconds of a model, or why there are none.

    Args:
        name: of the architecture.
        size: (H, W) of the images; ``None``: its own.
        settings: for the candidate.
        budget_ms: if the first run takes far longer, it is the only one.
        rounds: timed turns.
        folder: for files that runtimes need.
        slower: smaller model of the family that is far too slow.
    """
    if slower is not None:
        return {"ms": None, "why": f"not run: {slower}, which is smaller, is far too slow"}
    reasons = []
    for runtime in ("native", "onnxruntime") if settings["runtime"] == "auto" else (settings["runtime"],):
        candidate = Candidate(name, name, size=size, **{**settings, "runtime": runtime})
        try:
            works = open_model(candidate, settings["threads"], Path(folder)).works
            work = next(work for part, work in works.items() if part != CLICK)
            started = time.perf_counter()
            work.finish()
            first = 1e3 * (time.perf_counter() - started)
            turns = 1 if first > _TOO_SLOW * budget_ms else rounds
            times = [seconds for _ in range(turns) for seconds in work.turn()]
        except FovealError as error:
            reasons.append(str(error))
            continue
        return {"ms": round(1e3 * float(np.median(times)), 3), "used": runtime, "why": ""}
    return {"ms": None, "why": "; ".join(reasons)[:300]}


def fits(row: Row, budget_ms: float) -> bool:
    """Whether a model takes at most the budget."""
    return row["ms"] is not None and row["ms"] <= budget_ms


def _order(row: Row, budget_ms: float) -> tuple[bool, float, float]:
    """Within the budget by quality, beyond it by time."""
    ms = row["ms"] if row["ms"] is not None else float("inf")
    quality = float(row["quality"].partition(" ")[0] or 0)
    within = fits(row, budget_ms)
    return (not within, -quality if within else ms, ms)


def budget_table(rows: Sequence[Row], budget_ms: float) -> list[tuple[str, ...]]:
    """Header and one row per model, as text."""
    table = [("model", "ms", "within", "runtime", "size", "params", "MACs", "quality")]
    for row in rows:
        ms = row["why"] if row["ms"] is None else f"{row['ms']:.4g}"
        params, macs = row["costs"]
        within = "yes" if fits(row, budget_ms) else "no"
        cost = (f"{params / 1e6:.2f} M", f"{macs / 1e9:.2f} G")
        table.append((row["key"]["model"], ms, within, row.get("used", ""), row["key"]["size"], *cost, row["quality"]))
    return table
