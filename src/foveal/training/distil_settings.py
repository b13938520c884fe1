"""Which terms of distillation a run has, and the checks of the settings that say so."""

from __future__ import annotations

from ..config import shown
from ..errors import ConfigError, nearest
from ..task import TASKS
from .common_settings import CommonSettings
from .distil_terms import TERMS, DistilName, Weighted, terms_for
from .segment_settings import SegmentSettings


def distil_terms(config: CommonSettings) -> dict[DistilName, Weighted]:
    """The terms with their factors and temperatures; empty: the run learns from labels alone."""
    names = terms_for(config.task)
    chosen = config.distil or ({names[0]: 1.0} if config.teacher and names else {})
    terms: dict[DistilName, Weighted] = {}
    for name, value in chosen.items():
        factor, temperature = value if isinstance(value, tuple | list) else (value, TERMS[name].temperature)
        terms[name] = Weighted(float(factor), float(temperature))
    return terms


def check_distil(config: CommonSettings) -> None:
    """Check the settings ``distil``, ``teacher`` and ``teacher_cache`` against each other.

    Raises:
        ConfigError: a term is unknown or for other tasks, a factor is out of range, something that a term needs is
            missing, or the teacher is not used.
    """
    names = terms_for(config.task)
    if config.distil and not names:
        raise ConfigError(f"distil={config.distil} is not for {config.task!r}: leave it out")
    for name, value in config.distil.items():
        if name not in names:
            known = name in TERMS and f": it is for {' and '.join(TERMS[name].tasks)}"
            raise ConfigError(f"distil: {config.task!r} has no term {name!r}{known or nearest(name, names)}")
        _check_value(name, value, TASKS[config.task].has_classes)
    _check_needs(config)


def _check_value(name: DistilName, value: object, has_classes: bool) -> None:
    numbers = value if isinstance(value, tuple | list) else (value,)
    tempered = has_classes and TERMS[name].temperature > 0
    valid = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n <= 1e6 for n in numbers)
    if not valid or len(numbers) not in ((1, 2) if tempered else (1,)):
        form = "a factor above 0, or [factor, temperature], both above 0" if tempered else "a factor above 0"
        raise ConfigError(f"distil: {name}={shown(value)} is out of range: give {form}")


def _check_needs(config: CommonSettings) -> None:
    taught = [name for name in config.distil if TERMS[name].of_teacher]
    if taught and not config.teacher:
        raise ConfigError(f"distil: {', '.join(taught)} needs teacher: give teacher too, or leave it out")
    if config.teacher and config.distil and not taught:
        raise ConfigError(
            f"teacher={config.teacher!r} is not used, since distil has only {', '.join(config.distil)}: add a term, "
            f"for example {terms_for(config.task)[0]}, or leave teacher out"
        )
    if "ema" in config.distil and (not config.ema_decay or config.fsdp):
        wrong = "fsdp=True" if config.fsdp else "ema_decay=0"
        raise ConfigError(
            f"distil: ema learns from the averaged weights, which {wrong} rules out: leave one of them out"
        )
    if isinstance(config, SegmentSettings) and config.teacher_cache:
        if wrong := next((name for name in config.distil if not TERMS[name].of_output), None):
            raise ConfigError(
                f"teacher_cache has outputs only, no maps for distil={{{wrong}: ...}}: leave one of them out"
            )
        if config.transform:
            raise ConfigError(
                f"teacher_cache cannot follow the pixels that transform={config.transform!r} may move: leave one of "
                "them out"
            )
