"""The table of tasks that models can be built for."""

from __future__ import annotations

from . import classify, language, prompt, regress, segment, upscale
from .builder import Builder

#: By name of the task; a new task is a file in this folder and a line here.
BUILDERS: dict[str, Builder] = {
    "classify": classify.BUILDER,
    "segment": segment.BUILDER,
    "upscale": upscale.BUILDER,
    "regress": regress.BUILDER,
    "prompt": prompt.BUILDER,
    "language": language.BUILDER,
}
