"""The headline comparison: our models against those of others, in the same runtimes and in the fastest ones.

Each pair is measured in a process of its own (:mod:`foveal.measuring.pairwise`). Rows go to a file, from which an
interrupted run continues and from which the page of results is made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import ConfigError, nearest
from ...files import ensure_folder
from ...prediction.devices import cpu_count
from ...prediction.runner import DTYPES
from ...prediction.torch_runner import find_device
from ...progress import Progress
from ..pairwise import EAGER, OUR_RUNTIMES, PEER_RUNTIMES, PairRun, best_of, measure_within_memory
from ..peer_files import cache_folder
from ..row_file import Row, RowFile
from .figures import draw_quality
from .pairs import GROUPS, PEERS, Pair, pairs_of

KIND = "pair"
_ON_GPU = (EAGER, "torch")
#: For the estimate of the time that is left: seconds that a pair takes apart from the rounds, and multiply-accumulates
#: per second and thread of an average runtime.
_OVERHEAD, _RATE = 25.0, 4e10
#: Pairs that are expected to take more seconds are measured in the first number type and number of threads only.
_SLOW_PAIR = 180.0


@dataclass(frozen=True)
class _Job:
    pair: Pair
    task: PairRun

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the row of this pair and setting."""
        settings = {name: getattr(self.task, name) for name in ("batch", "threads", "dtype", "device")}
        sizes = {"size": _text(self.task.size), "peer_size": _text(self.task.peer_size)}
        return {"group": self.pair.group, "ours": self.pair.ours, "peer": self.pair.peer, **sizes, **settings}

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        peer, task = PEERS[self.pair.peer], self.task
        height, width = task.peer_size or peer.macs_size
        macs = 1e9 * peer.gmacs * task.batch * height * width / (peer.macs_size[0] * peer.macs_size[1])
        networks = 1 + len(set(task.runtimes) & set(PEER_RUNTIMES))  # all of ours together count as one
        turn = networks * macs / (_RATE * task.threads)
        return _OVERHEAD + max(4 * turn, min(task.rounds * turn, task.seconds))


@dataclass(frozen=True)
class HeadlineReport:
    """Rows of all pairs.

    Attributes:
        rows: as they are in the file, see :func:`foveal.measuring.pairwise.measure`.
        machine: processor, cores, operating system and versions.
    """

    rows: tuple[Row, ...]
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per pair and setting, as text."""
        return [HEADER, *(cells_of(row) for row in self.rows)]

    def notes(self) -> list[str]:
        """What the columns are, the noise, and what is missing, in lines."""
        notes = [
            "ratios: how many times faster ours is; algorithm: both in the runtime in which the peer is "
            "fastest; engine: ours in its fastest runtime over ours in that one; together: each in its fastest runtime",
            noise_note(self.rows),
        ]
        for row in self.rows:
            name = f"{row['key']['ours']} and {row['key']['peer']}"
            if "failed" in row:
                notes.append(f"{name} not measured: {row['failed']}")
            notes += [f"{name}: without {candidate}: {why}" for candidate, why in row.get("left_out", {}).items()]
        return list(dict.fromkeys(notes))

    def draw(self, path: str | Path) -> None:
        """Write a PNG: quality against latency for each task."""
        draw_quality(self.rows, path)


HEADER = (
    "ours", "peer", "size", "batch", "threads", "dtype", "eager", "ONNX Runtime", "OpenVINO", "algorithm", "engine",
    "together", "paper", "ms ours, peer",
)  # fmt: skip


def headline(
    *,
    groups: Sequence[str] = tuple(GROUPS),
    models: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    runtime: str = "auto",
    rounds: int = 20,
    seconds: float = 60.0,
    resume: str | Path | None = None,
    pairs: Sequence[Pair] | None = None,
    progress: Progress | None = None,
) -> HeadlineReport:
    """Compare our models with those of others; the most important settings come first.

    Pairs that take minutes are measured with the first number of threads and number type only.

    Args:
        groups: keys of :data:`~foveal.measuring.presets.pairs.GROUPS`.
        models: only pairs with one of these, ours or others'; default: all.
        size: (H, W) in place of all sizes of a group. Of several groups, those that do not have it keep theirs.
        batch: images per run; default: 1, for classifiers also 16.
        threads: threads of each runtime; default: first all cores, then one.
        dtype: default: first float32, then bfloat16.
        device: "cpu", "cuda", or both if there is a GPU ("auto").
        runtime: runtimes with commas in between, of eager, native, onnxruntime, openvino and torch; "auto": all.
        rounds: turns of each candidate at most.
        seconds: of the rounds of a pair together; slow networks have fewer rounds, but three at least.
        resume: file of rows, which is continued if it exists.
        pairs: other pairs than :data:`~foveal.measuring.presets.pairs.PAIRS`.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: an unknown name, impossible numbers, or the networks of others are not here.
        DataError: ``resume`` is another file, or was measured on another machine.
        InputError: a device that this machine does not have.
    """
    runtimes = _runtimes(runtime)
    if min(rounds, threads or 1, batch or 1, *(size or ())) < 1 or seconds <= 0:
        raise ConfigError("headline: rounds, threads, batch, seconds and sizes must be positive")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}")
    chosen = pairs_of(groups, models) if pairs is None else list(pairs)
    check_peers()
    file = RowFile(resume)
    jobs = []
    for name in _devices(device):
        own = tuple(runtime for runtime in runtimes if name == "cpu" or runtime in _ON_GPU) or _ON_GPU
        common = {"device": name, "runtimes": own, "rounds": rounds, "seconds": seconds}
        tasks = [(pair, replace(task, **common)) for pair, task in _tasks(chosen, size, batch, len(groups) == 1)]
        numbers = [threads] if threads else sorted({1, cpu_count()} if name == "cpu" else {1})[::-1]
        jobs += _in_settings(tasks, ("float32", "bfloat16") if dtype == "auto" else (dtype,), numbers)
    _run(jobs, file, progress or Progress(enabled=False))
    keys = [job.key for job in jobs]
    return HeadlineReport(tuple(row for key in keys if (row := file.find(KIND, key))), file.machine)


def _runtimes(text: str) -> tuple[str, ...]:
    names = OUR_RUNTIMES if text == "auto" else tuple(text.replace(" ", "").split(","))
    for name in names:
        if name not in OUR_RUNTIMES:
            raise ConfigError(f"unknown runtime {name!r}{nearest(name, OUR_RUNTIMES)}")
    return names


def check_peers() -> None:
    """Check that the networks of others can be imported: they are in the repository, not in the package.

    Raises:
        ConfigError: they are not in the working folder.
    """
    if not Path("benchmarks/peers").is_dir():
        raise ConfigError(
            "the networks of others are in the folder benchmarks of Foveal's repository, which is not in "
            f"{Path.cwd()}: run this command in a checkout of the repository"
        )


def _devices(device: str) -> tuple[str, ...]:
    if device != "auto":
        return (find_device(device),)
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _tasks(
    pairs: Sequence[Pair], size: tuple[int, int] | None, batch: int | None, one_group: bool
) -> list[tuple[Pair, PairRun]]:
    """Pairs with sizes and numbers of images: first all pairs at the first size, then at the next."""
    tasks: list[tuple[int, Pair, PairRun]] = []
    for pair in pairs:
        group = GROUPS[pair.group]
        sizes = (size,) if size and (one_group or size in group.sizes) else group.sizes
        batches = group.batches if batch is None else (batch,) if len(group.batches) > 1 or one_group else (1,)
        for i, one_size in enumerate(sizes):
            ours = None if group.peer_size else one_size
            scale = group.peer_scale.get(pair.peer, 1)
            theirs = one_size or group.peer_size
            theirs = None if theirs is None else (scale * theirs[0], scale * theirs[1])
            for j, one_batch in enumerate(batches):
                task = PairRun(pair.ours, PEERS[pair.peer].ref, group.task, ours, theirs, one_batch)
                tasks.append((i + j, pair, task))
    return [(pair, task) for _, pair, task in sorted(tasks, key=lambda entry: entry[0])]


def _in_settings(tasks: Sequence[tuple[Pair, PairRun]], dtypes: Sequence[str], threads: Sequence[int]) -> list[_Job]:
    """All pairs in the first type and number of threads; those that are not slow also in the others."""
    jobs = []
    for dtype, number in product(dtypes, threads):
        first = (dtype, number) == (dtypes[0], threads[0])
        settled = [_Job(pair, replace(task, dtype=dtype, threads=number)) for pair, task in tasks]
        jobs += [job for job in settled if first or job.seconds <= _SLOW_PAIR]
    return jobs


def _run(jobs: Sequence[_Job], file: RowFile, progress: Progress) -> None:
    """Measure what is not in the file yet; after each pair, say how long the others will take."""
    missing = [job for job in jobs if (file.find(KIND, job.key) or {"failed": ""}).get("failed") is not None]
    if len(missing) < len(jobs):
        progress.note(f"{len(jobs) - len(missing)} of {len(jobs)} rows are in {file.path} already")
    spent, expected = 0.0, 0.0
    cache = cache_folder()
    ensure_folder(cache)
    with TemporaryDirectory(prefix="exports-", dir=cache) as folder:
        for number, job in enumerate(missing, 1):
            started = time.monotonic()
            row = measure_within_memory(replace(job.task, folder=folder))
            seconds = time.monotonic() - started
            spent, expected = spent + seconds, expected + job.seconds
            peer = PEERS[job.pair.peer]._asdict()
            paper = {"paper": job.pair.paper, "remark": job.pair.remark}
            settings = {"rounds_at_most": job.task.rounds, "seconds": round(seconds, 1)}
            file.add({"kind": KIND, "key": job.key, "published": peer, **paper, **settings, **row})
            left = spent / expected * sum(other.seconds for other in missing[number:])
            name = f"{job.pair.ours}, {job.pair.peer}, {_text(job.task.peer_size)}, {job.task.dtype}"
            progress.note(f"{number}/{len(missing)} {name}: {_result(row)}; {seconds:.0f} s, {_clock(left)} left")


def _result(row: Row) -> str:
    if "failed" in row:
        return f"not measured: {row['failed'][:80]}"
    return f"{row['ratios']['fastest']['ratio']:.2f} times as fast"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _text(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"


# ---- text of rows, for the terminal and the page


def cells_of(row: Row) -> tuple[str, ...]:
    """One row of the table, in the columns of :data:`HEADER`."""
    key, ratios = row["key"], row.get("ratios", {})
    paper = "" if row.get("paper") is None else f"{row['paper']:g}"
    size = key["size"] or "own"
    sizes = size if size == key["peer_size"] else f"{size}, {key['peer_size']}"
    device = "" if key["device"] == "cpu" else f", {key['device']}"
    return (
        key["ours"],
        key["peer"],
        sizes,
        str(key["batch"]),
        str(key["threads"]),
        key["dtype"] + device,
        *(_ratio_text(ratios.get(name)) for name in (EAGER, "onnxruntime", "openvino", "same")),
        engine_gain(row),
        _ratio_text(ratios.get("fastest")),
        paper,
        _fastest_times(row),
    )


def _ratio_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['ratio']:.2f}" + ("" if found["noise"] is None else f" ±{found['noise']:.2f}")


def engine_gain(row: Row) -> str:
    """How many times faster ours is in its fastest runtime than in the peer's."""
    ratios = row.get("ratios", {})
    if "same" not in ratios or "fastest" not in ratios:
        return ""
    return f"{ratios['fastest']['ratio'] / ratios['same']['ratio']:.2f}"


def _fastest_times(row: Row) -> str:
    sides = [best_of(row.get("candidates", {}), side) for side in ("ours", "peer")]
    return ", ".join(f"{found[0]:.3g} {found[1]}" for found in sides if found)


def noise_note(rows: Sequence[Row]) -> str:
    """How far the ratio of one candidate to itself was from 1, and how often within the bound that was given for it."""
    checks = [row["again"] for row in rows if row.get("again", {}).get("noise") is not None]
    if not checks:
        return "±: noise bound of the ratio (99 % of cases, and 3 % for loading)"
    within = sum(abs(check["ratio"] - 1) <= check["noise"] for check in checks)
    worst = max(abs(check["ratio"] - 1) for check in checks)
    return (
        "±: noise bound of the ratio (99 % of cases, and 3 % for loading). Checked with the same candidate twice in "
        f"each row: its ratio to itself was within the bound in {within} of {len(checks)} rows, and at most "
        f"{worst:.1%} from 1"
    )
