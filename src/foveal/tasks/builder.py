"""How ``create_model`` builds the models of a task around a backbone: one :class:`Builder` per task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..info import Preprocess
from ..models.registry import Family, Variant


@dataclass(frozen=True)
class Request:
    """The arguments of ``create_model`` that a head depends on.

    Attributes:
        name: name of the architecture.
        variant: the architecture.
        num_classes: ``None``: the published number.
        in_chans: channels of the image.
        options: the options that the head takes.
    """

    name: str
    variant: Variant
    num_classes: int | None
    in_chans: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    """How models of a task are built around a backbone.

    Attributes:
        build: ``(backbone, request) -> model``; ``request.num_classes`` is the result of ``count_classes``.
        count_classes: ``request -> number of classes``, the default one if none is requested. It raises ConfigError
            for a number that the task does not have.
        options: options of ``create_model`` that the head takes.
        family_options: ``family -> options`` of its own heads, which a backbone alone does not take.
        defaults: default values of options, noted in the model's description.
        supports: ``variant -> whether`` it has what the task needs, in addition to having it in its ``tasks``.
        preprocess: ``(model, preprocessing of the weights it starts from or None) -> preprocessing`` of the model.
        implied: ``(state dict in Foveal's layout, family) -> options`` of the head that its shapes show.
        published_heads: ``variant -> options`` of each published head, one at least, to identify a state dict.
    """

    build: Callable[[Any, Request], nn.Module]
    count_classes: Callable[[Request], int]
    options: frozenset[str] = frozenset()
    family_options: Callable[[Family], Collection[str]] = lambda family: ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    supports: Callable[[Variant], bool] = lambda variant: True
    preprocess: Callable[[nn.Module, Preprocess | None], Preprocess] = lambda model, known: known or Preprocess()
    implied: Callable[[Mapping[str, Tensor], Family], dict[str, Any]] = lambda state, family: {}
    published_heads: Callable[[Variant], list[dict[str, Any]]] = lambda variant: [{}]
