"""How far a run is, in plain values, which its state holds: steps, epochs, phases, and the best figure so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .job import Scores, compare_with_best

_NONE = -1.0  # before the first validation figure, of which larger is better; math.inf if smaller is


@dataclass
class RunState:
    """The progress of a run, in plain values.

    Attributes:
        images: number of training images, to recognise another data set.
        data: digest of the names of the images and classes, for the same purpose; empty: unknown.
        parts: pieces into which each process's share of a batch is cut; doubled when memory runs out.
        step: number of optimiser steps so far.
        skipped: batches of data of this phase that were left out after a loss that was not finite.
        rollbacks: number of returns to a saved state after such a loss.
        total: sum of the losses of the current epoch.
        losses: mean loss of each complete epoch.
        best: best validation figure so far.
        best_metric: name of that figure.
        stale: evaluations in a row without a better validation figure.
        seconds: training time so far.
        bad: index of each training image that is left out -> the reason.
        phase: number of the phase, from 1.
        phase_step: steps before this phase.
        phase_epochs: complete epochs before it.
        phase_passes: passes over the data before it.
        settings: settings of this phase that differ from those of earlier ones; empty in the first.
    """

    images: int
    data: str = ""
    parts: int = 1
    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    total: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = _NONE
    best_metric: str = ""
    stale: int = 0
    seconds: float = 0.0
    bad: dict[int, str] = field(default_factory=dict)
    phase: int = 1
    phase_step: int = 0
    phase_epochs: int = 0
    phase_passes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = self.images, self.parts - 1, self.step, self.skipped, self.rollbacks, self.stale
        before = self.phase - 1, self.phase_step, self.step - self.phase_step, self.phase_epochs, self.phase_passes
        if min(*counts, *before) < 0 or any(not 0 <= index < self.images for index in self.bad):
            raise ValueError("impossible progress")

    @property
    def position(self) -> int:
        """Number of batches of data that this phase has consumed."""
        return self.step - self.phase_step + self.skipped

    def epochs(self, per_epoch: int) -> int:
        """Number of complete epochs, if those of this phase have ``per_epoch`` steps."""
        return self.phase_epochs + (self.step - self.phase_step) // per_epoch

    def begin_phase(self, settings: Mapping[str, Any], passes: int) -> None:
        """Begin a phase with other ``settings``, after ``passes`` over the data in the phase before."""
        self.phase_passes += passes
        self.phase, self.phase_step, self.phase_epochs = self.phase + 1, self.step, len(self.losses)
        self.skipped, self.stale, self.total, self.settings = 0, 0, 0.0, dict(settings)

    @property
    def best_value(self) -> float:
        """The best validation figure; NaN if there was none, or none that is a number."""
        return self.best if self.best_metric and self.best not in (_NONE, math.inf) else math.nan

    def note_scores(self, scores: Scores) -> bool:
        """Record a validation figure; return whether the checkpoint is the best so far."""
        better, best, self.best = compare_with_best(scores, self.best_metric, self.best)
        self.best_metric, self.stale = scores.headline[0], 0 if better else self.stale + 1
        return best
