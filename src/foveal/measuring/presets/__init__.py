"""Comparisons that are measured on this machine by one name.

From textbooks: networks, kinds of attention, compound scaling, in float32 on the CPU. Of the project: its models
against those of others ("headline"), and how time and memory grow with the image ("cost-laws").

Each preset gives a report with ``table()``, ``notes()``, ``to_dict()`` and ``draw(path)``. Only networks and layers are
timed, and candidates take turns as in :mod:`foveal.measuring.benchmark`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...errors import ConfigError, nearest
from ..rounds import torch_threads_kept
from .architectures import ArchitectureReport, architectures
from .attention import AttentionReport, attention
from .headline import HeadlineReport, headline
from .laws import LawReport, cost_laws
from .scaling import ScalingReport, scaling

Report = ArchitectureReport | AttentionReport | HeadlineReport | LawReport | ScalingReport
PRESETS: dict[str, Callable[..., Report]] = {
    "architectures": architectures,
    "attention": attention,
    "cost-laws": cost_laws,
    "headline": headline,
    "scaling": scaling,
}

#: Options with which a preset ends in seconds: a try-out whose figures say nothing.
TOY: dict[str, dict[str, Any]] = {
    "architectures": {"names": ("mobilenetv3_small_100", "efficientvit_b0"), "size": (64, 64), "rounds": 1},
    "attention": {"tokens": (64, 128), "rounds": 1},
    "cost-laws": {"models": ("efficientvit_b0",), "sides": (64, 128), "rounds": 1},
    "headline": {
        "models": ("DDRNet-23-slim",),
        "groups": ("segmentation",),
        "size": (64, 64),
        "dtype": "float32",
        "runtime": "eager,native",
        "rounds": 1,
    },
    "scaling": {"phis": (0,), "rounds": 1},
}
_PAIRS = {"models", "groups"}  # options that select pairs of the headline together


def bench_preset(name: str, *, toy: bool = False, **options: Any) -> Report:
    """Make one of the comparisons of :data:`PRESETS`.

    Args:
        name: name of the preset.
        toy: the few smallest networks or sizes and one round, to try the preset out; ``options`` replace these.
        **options: options of its function, such as ``rounds=5`` and ``threads=1``.

    Returns:
        A report with ``table()``, ``notes()``, ``to_dict()`` and ``draw(path)``.

    Raises:
        ConfigError: an unknown preset or option; the message has the nearest valid one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    valid = inspect.signature(PRESETS[name]).parameters
    for option in options:
        if option not in valid:
            raise ConfigError(f"preset {name} has no option {option!r}{nearest(option, valid)}")
    base = dict(TOY[name]) if toy else {}
    if options.keys() & _PAIRS:  # pairs of one's own
        base = {option: value for option, value in base.items() if option not in _PAIRS}
    with torch_threads_kept():
        return PRESETS[name](**base | options)
