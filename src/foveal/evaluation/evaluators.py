"""The table of evaluators, one per task, and what an evaluator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .classify import ClassifyEvaluator
from .prompt import PromptEvaluator
from .regress import RegressEvaluator
from .report import Part, Report
from .segment import SegmentEvaluator
from .upscale import UpscaleEvaluator


class Evaluator(Protocol):
    """How the models of one task are scored. An instance scores one model on one data set.

    The constructor takes the predictor, the data, the split and, by name, all of ``options``. It checks the options and
    opens the data set; it raises ConfigError or DataError if the model, the data and the options do not fit together.

    Attributes:
        options: options of :func:`foveal.evaluate` that apply to this task, with their defaults.
    """

    options: ClassVar[Mapping[str, Any]]

    def __init__(self, *args: Any, **options: Any) -> None: ...

    @property
    def parts(self) -> Sequence[Part[Any]]:
        """What to score."""
        ...

    def summarise(self, scores: list[list[Any]], skipped: dict[str, str]) -> Report:
        """Turn the scores of all parts, of :func:`~foveal.evaluation.report.score_parts`, into the report.

        Raises:
            DataError: the samples had nothing to score.
        """
        ...

    def save(self, report: Any, folder: str | Path, **about: str) -> None:
        """Write the files of the report, pictures included.

        Raises:
            InputError: the folder cannot be written.
        """
        ...


#: By task. A task without an entry has no evaluation.
EVALUATORS: dict[str, type[Evaluator]] = {
    "classify": ClassifyEvaluator,
    "segment": SegmentEvaluator,
    "upscale": UpscaleEvaluator,
    "regress": RegressEvaluator,
    "prompt": PromptEvaluator,
}
