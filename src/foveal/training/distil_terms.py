"""The terms of the loss by which a model learns from a teacher, by name. A new one is a line of the table.

Settings import this file, so it needs no torch; the functions are in :mod:`foveal.training.distil_losses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

DistilName = Literal["logits", "hard", "channel", "features", "output", "ema"]


@dataclass(frozen=True)
class Term:
    """A term of the loss.

    Attributes:
        help: what the student learns.
        tasks: names of the tasks that it is for.
        temperature: divisor of the logits unless the settings give another one; 0: the term has none.
        of_teacher: whether it needs a teacher; otherwise it needs the average of the weights.
        of_output: whether the teacher's output is all that it needs.
    """

    help: str
    tasks: tuple[str, ...]
    temperature: float = 0.0
    of_teacher: bool = True
    of_output: bool = True


class Weighted(NamedTuple):
    """A term in the loss of a run.

    Attributes:
        factor: of the term.
        temperature: divisor of the logits.
    """

    factor: float
    temperature: float


_LABELLED = ("segment", "classify")

#: By name. The first one of a task is its default.
TERMS: Mapping[DistilName, Term] = {
    "logits": Term("the probabilities of the classes (arXiv 1503.02531)", _LABELLED, temperature=2.0),
    "hard": Term("the most probable class as if it were the label (arXiv 2012.12877)", _LABELLED),
    "channel": Term("where each class is, as a distribution over positions (arXiv 2011.13256)", ("segment",), 4.0),
    "output": Term("the pixels, by L1", ("upscale",)),
    "features": Term(
        "the backbone's maps, by a projection (arXiv 1412.6550)", (*_LABELLED, "upscale"), of_output=False
    ),
    "ema": Term("what the average of its own weights gives", (*_LABELLED, "upscale"), 1.0, of_teacher=False),
}


def terms_for(task: str) -> list[DistilName]:
    """The terms that a task has, its default first."""
    return [name for name, term in TERMS.items() if task in term.tasks]
