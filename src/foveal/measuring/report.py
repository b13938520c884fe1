"""The report of a benchmark: figures of each candidate, the settings and the machine, as table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """Figures of one candidate, or of one part of a promptable model.

    Attributes:
        ref: its reference, without settings of its own.
        candidate: the candidate as it was given, ``REF@NAME=VALUE,...``.
        task: its task; empty for a peer for which none was named.
        part: "encoder" or "click" (one prompt for an image that is already encoded) of a promptable model, else empty.
        runtime: what ran it, on which device.
        device: device that was asked for.
        dtype: type that was asked for.
        threads: threads of its runtime.
        size: (H, W) of the input.
        batch: images per run.
        p50_ms: median time of one run.
        p90_ms: 90th percentile of that time.
        images_per_second: batch size over the median time; clicks per second.
        ratio: its time for an image over that of the first candidate, median over the rounds; of a click over that of
            the first click.
        noise: how far ``ratio`` may be off (:func:`foveal.measuring.rounds.noise_bound`); ``None`` after a single
            round, and 0 for the candidate that the others are compared with.
        params: number of weights; ``None`` where it is not known.
        macs: multiply-accumulates of one run; ``None`` where torch or the architecture is missing.
        peak_mib: largest resident memory of a fresh process that loads it and runs once, imports included.
        joules: energy of one run, of the GPU or of the whole processor; ``None`` where the machine does not measure it.
        difference: largest output difference to the first candidate of the same model and classes (peers: to the first
            model) on the same images, relative to that candidate's largest output; ``None`` where the outputs have
            different shapes or are not finite.
        agreement: share of positions with the same class as that candidate; ``None`` as for ``difference``, and for
            outputs without classes.
        times_ms: time of each round, the median of its runs.
    """

    ref: str
    candidate: str
    task: str
    part: str
    runtime: str
    device: str
    dtype: str
    threads: int
    size: tuple[int, int]
    batch: int
    p50_ms: float
    p90_ms: float
    images_per_second: float
    ratio: float
    noise: float | None
    params: int | None
    macs: int | None
    peak_mib: float | None
    joules: float | None
    difference: float | None
    agreement: float | None
    times_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchReport:
    """Figures of all candidates, and the settings that they depend on.

    Attributes:
        candidates: in the order given; ratios are relative to the first.
        size: (H, W) of the input; ``None``: not the same for all.
        batch: images per run; ``None``: not the same for all.
        threads: threads of the runtimes; ``None``: not the same for all.
        rounds: turns of each candidate; in each it runs once, or for 50 ms.
        warmup: runs of each before that.
        noise: the largest of the candidates' noise bounds; ``None`` after a single round.
        load: processes that were running or waiting, on average over the minute before; ``None``: not known.
        machine: processor, cores, operating system and versions, and the GPU if one was used.
    """

    candidates: tuple[Row, ...]
    size: tuple[int, int] | None
    batch: int | None
    threads: int | None
    rounds: int
    warmup: int
    noise: float | None
    load: float | None
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per candidate, as text; settings that all have in common are not among the columns."""
        cells = [self._cells(row) for row in self.candidates]
        names = [name for name in cells[0] if name not in _OPTIONAL or any(row[name] for row in cells)]
        return [tuple(names), *(tuple(row[name] for name in names) for row in cells)]

    def notes(self) -> list[str]:
        """What the figures depend on, in lines: settings, noise bound, and what to beware of."""
        machine = self.machine
        settings = [] if self.size is None else [f"{self.size[0]}x{self.size[1]}"]
        settings += [] if self.batch is None else [f"batch {self.batch}"]
        settings += [] if self.threads is None else [_count(self.threads, "thread")]
        place = f"{machine['cpu']}, {_count(int(machine['cores']), 'core')}, {machine['os']}"
        notes = [", ".join([*settings, _count(self.rounds, "round"), place, *_versions(machine)])]
        if self.noise is None:
            notes.append("noise bound of the ratios: not known from a single round")
        elif len(self.candidates) > 1:
            notes.append(
                "±: noise bound of the ratio (99 % of cases, and 3 % for loading); a candidate whose ratio is nearer "
                "to 1 than that is as fast as the first"
            )
        if self.load is not None and self.load > max(1.0, 0.5 * int(machine["cores"])):
            notes.append(
                f"the machine was busy before: {self.load:.1f} processes on {_count(int(machine['cores']), 'core')}"
            )
        if any(_has_slow_convolutions(row) for row in self.candidates):
            notes.append(
                "torch with one thread sends 1x1 convolutions of fewer than 16 images to a slower function than with "
                "two: networks that are not optimised take longer"
            )
        return notes

    def _cells(self, row: Row) -> dict[str, str]:
        noise = "" if not row.noise else f" ±{row.noise:.2f}"
        return {
            "model": row.ref,
            "task": f"{row.task}: {row.part}" if row.part else row.task,
            "runtime": row.runtime,
            "size": "" if self.size else f"{row.size[0]}x{row.size[1]}",
            "batch": "" if self.batch else str(row.batch),
            "threads": "" if self.threads else str(row.threads),
            "p50 ms": _milliseconds(row.p50_ms),
            "p90 ms": _milliseconds(row.p90_ms),
            "images/s": f"{row.images_per_second:.1f}",
            "ratio": f"{row.ratio:.2f}{noise}",
            "params": "" if row.params is None else f"{row.params / 1e6:.2f} M",
            "MACs": "" if row.macs is None else f"{row.macs / 1e9:.2f} G",
            "peak MiB": "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
            "J/run": "" if row.joules is None else f"{row.joules:.3g}",
            "difference": "" if row.difference is None else f"{row.difference:.0e}" if row.difference else "0",
            "same class": "" if row.agreement is None else f"{row.agreement:.3%}",
        }


#: Columns that are left out where they are empty.
_OPTIONAL = ("size", "batch", "threads", "peak MiB", "J/run", "same class")


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _versions(machine: dict[str, str | int]) -> list[str]:
    packages = ("torch", "onnxruntime", "openvino")
    return [f"{package} {machine[package]}" for package in packages if package in machine]


def _has_slow_convolutions(row: Row) -> bool:
    return row.threads == 1 and row.batch < 16 and row.runtime.startswith("torch on cpu")
