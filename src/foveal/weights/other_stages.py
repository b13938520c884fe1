"""Stages of a model whose blocks are of another kind than in its weights; see :mod:`foveal.models.hybrid`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..info import ModelInfo
from ..models.hybrid import kept_parts, parse_stage_blocks
from ..models.registry import Backbone
from ..text import notice

#: A key of a stage, in a backbone, a task model or a promptable model: number of the stage from 0, name of its part.
_KEY = re.compile(r"(?:image_encoder\.)?(?:backbone\.)?stages\.(\d+)\.([^.]+)\.")


@dataclass(frozen=True)
class OtherStages:
    """Stages whose blocks the weights do not have.

    Attributes:
        kinds: kind of their blocks in the model, by number from 1; empty: the family's own.
        kept: names of the parts of each that the weights do have.
    """

    kinds: Mapping[int, str] = field(default_factory=dict)
    kept: Mapping[int, set[str]] = field(default_factory=dict)

    def without(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state dict, of the model or of the weights, that both have."""
        return {key: value for key, value in state.items() if not self._is_other(key)}

    def _is_other(self, key: str) -> bool:
        match = _KEY.match(key) if self.kinds else None
        number = int(match[1]) + 1 if match else 0
        return match is not None and number in self.kinds and match[2] not in self.kept[number]

    def say(self, own: Mapping[str, Tensor]) -> None:
        """State on standard error, in one line, which tensors of the model keep their initial values."""
        if self.kinds:
            stages = ", ".join(f"{number} ({kind or 'as published'})" for number, kind in self.kinds.items())
            count = len(own) - len(self.without(own))
            notice(f"new blocks in stage {stages}: {count} of {len(own)} tensors keep their initial values")


def other_stages(model: nn.Module, info: ModelInfo | None) -> OtherStages:
    """Compare the stages of a model with those of the weights that ``info`` describes."""
    backbone = next((part for part in model.modules() if isinstance(part, Backbone)), None)
    described: ModelInfo | None = getattr(model, "foveal_info", None)
    if backbone is None or described is None:
        return OtherStages()
    same = info is not None and info.model in ("", described.model)
    theirs = parse_stage_blocks(info.options.get("stage_blocks", {}), info.model) if info and same else {}
    numbers = range(1, len(backbone.stages) + 1)
    ours = backbone.stage_blocks
    kinds = {number: ours.get(number, "") for number in numbers if ours.get(number) != theirs.get(number)}
    return OtherStages(kinds, {number: kept_parts(backbone.stages[number - 1]) for number in kinds})
