"""The verb ``models``."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import ConfigError, DependencyError, nearest
from ..task import TASKS
from ..text import notice
from .console import Json, parse_size, print_json, print_table

if TYPE_CHECKING:
    from torch import nn

    from ..models.registry import Family, Variant

_SHOWN = 200  # entries of a list in a table
#: Options of ``create_model`` that belong to the task, not to the family.
_TASK_OPTIONS = {
    "upscale": {"scale": "1 (repairs), 2 (the default), 3 or 4"},
    "regress": {"out_chans": "channels, 1 by default", "output": "none (the default), sigmoid, softplus or unit"},
}


def models(pattern: str = "*", /, *, task: str | None = None, size: str | None = None, json: Json = False) -> int:
    """List the bundled weights and, with torch installed, the published weights and the architectures.

    Of one model, all facts and the names of its classes are listed, in the order of their indices.

    Parameters
    ----------
    pattern
        Shell-style pattern, such as "efficientvit_b*"; or a checkpoint, exported file, training run or hub id.
    task
        List only models for this task.
    size
        Image as HEIGHTxWIDTH, or the side of a square, for which multiply-accumulates are counted. Default: 224x224
        with a pattern; without one they are not counted, because counting every model takes seconds.
    """
    rows = _bundled(pattern, task)
    try:
        counted_size = parse_size(size or "224x224") if size or pattern != "*" else None
        rows += _published(pattern, task) + _architectures(pattern, task, counted_size)
    except DependencyError as error:
        notice(f"published weights and architectures are not listed: {error}")
    if not rows and _may_be_reference(pattern):
        rows = [_opened(pattern)]
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}{nearest(pattern.strip('*'), _all_names())}")
    if len(rows) == 1 and "classes" not in rows[0] and (names := _class_names(rows[0])):
        rows[0]["classes"] = list(names)
    if json:
        print_json({"models": rows})
    elif len(rows) == 1:
        facts = {key: value for key, value in rows[0].items() if key != "name"}
        print_table(("", rows[0]["name"]), [line for key, value in facts.items() for line in _lines(key, value)])
    else:
        columns = ("name", "family", "tasks", "params", "MACs", "licence", "figures")
        print_table(columns, [[_as_text(row.get(column, "")) for column in columns] for row in rows])
    return 0


def _bundled(pattern: str, task: str | None) -> list[dict[str, Any]]:
    """One row per set of weights in this package."""
    return [
        {"name": ref, "tasks": [w.task], "licence": w.licence, "figures": [w.figure], "bundled": True}
        for ref, w in assets.WEIGHTS.items()
        if fnmatch.fnmatch(ref, pattern) and task in (None, w.task)
    ]


def _may_be_reference(text: str) -> bool:
    """Whether the text names a file, a folder, or a model on the hub, rather than models of the list."""
    from ..weights import hub
    from ..weights.references import SAVED, find_local, is_path

    if any(sign in text for sign in "*?["):
        return False
    return is_path(text) or find_local(text) is not None or hub.parse(text, SAVED) is not None


def _opened(ref: str) -> dict[str, Any]:
    """The row of a model that has to be opened: what its description says."""
    from ..prediction.load import load

    predictor = load(ref)
    info = predictor.info
    options = ", ".join(f"{key}={value}" for key, value in info.options.items())
    return {
        "name": ref,
        "model": info.ref,
        "tasks": [info.task],
        "licence": info.licence or "not stated",
        "channels of the image": str(info.in_chans),
        **({"options": options} if options else {}),
        "runtime": predictor.runtime,
        "classes": list(predictor.names),
    }


def _class_names(row: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes that weights predict, if they are known by the weights' tag."""
    from ..data.labels import of_tag

    tag = row["name"].partition(".")[2]
    return of_tag(tag).names if tag and any(TASKS[task].has_classes for task in row["tasks"]) else ()


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    """The rows of a table that show a value: one, and of a mapping one for each entry."""
    cells = [f"{key}: {text}" for key, text in value.items()] if isinstance(value, dict) else [_as_text(value)]
    return [("" if index else name, cell) for index, cell in enumerate(cells)]


def _as_text(value: Any) -> str:
    """A value as the text of a table cell."""
    if isinstance(value, list):
        shown = value if len(value) <= _SHOWN else [*value[:_SHOWN], f"... ({len(value)} in all, see --json)"]
        return ", ".join(map(str, shown))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.2f} M"
    return str(value)


def _published(pattern: str, task: str | None) -> list[dict[str, Any]]:
    """One row per published set of weights, with the figure of its authors and the place it is downloaded from."""
    from .. import list_models  # raises DependencyError without torch

    names = fnmatch.filter(list_models(task=task, pretrained=True), pattern)
    from ..models.registry import published

    return [
        {
            "name": ref,
            "family": family.name,
            "paper": family.paper,
            "tasks": [entry.task],
            "licence": entry.licence or family.licence,
            "figures": [f"{entry.metric} {entry.value} at {entry.size} ({entry.source})"],
            "bundled": False,
            **({"package": entry.package} if entry.package else {"repo": entry.repo}),
            "file": entry.file,
            "sha256": entry.sha256 or "unknown: the first download counts",
        }
        for ref, (family, _, entry) in published().items()
        if ref in names
    ]


def _architectures(pattern: str, task: str | None, size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """One row per architecture; MACs are counted for images of ``size`` (H, W), or not at all."""
    from .. import list_models  # raises DependencyError without torch

    names = list_models(pattern, task=task)
    from ..models.registry import variants

    known = variants()
    return [_architecture(name, *known[name], size) for name in names]


def _architecture(name: str, family: Family, variant: Variant, size: tuple[int, int] | None) -> dict[str, Any]:
    from ..layers.sharing import shared_layers
    from ..models.hybrid import OPTION, takes_other_blocks

    tasks = _tasks(name, variant)
    model = _build(name, variant, tasks)
    sharing = "; ".join(stack.summary() for stack in shared_layers(model))
    task_options = {option: text for task in variant.tasks for option, text in _TASK_OPTIONS.get(task, {}).items()}
    of_stages = {"stage_blocks": OPTION} if takes_other_blocks(getattr(model, "backbone", model)) else {}
    return {
        "name": name,
        "family": family.name,
        "paper": family.paper,
        "tasks": tasks,
        "params": sum(p.numel() for p in model.parameters()),
        **(_count_macs(model, size) if size else {}),
        **({"sharing": sharing} if sharing else {}),
        "licence": family.licence,
        "figures": _best_figures(variant),
        "options": {**family.options, **family.settings, **family.classifier_options, **of_stages, **task_options},
    }


def _tasks(name: str, variant: Variant) -> list[str]:
    """Tasks that the architecture can be created for; an architecture without a classifier does not classify."""
    from ..factory.create import list_models

    return [task for task in variant.tasks if name in list_models(name, task=task)]


def _build(name: str, variant: Variant, tasks: list[str]) -> nn.Module:
    """Build the model without memory for its weights.

    It is the model for the default task; of promptable and language models, and where the default task lacks a head,
    it is the backbone, whose costs are listed.
    """
    import torch

    from ..factory.create import create_model

    default = TASKS[variant.tasks[0]]
    backbone = default.name not in tasks or default.takes_prompts or not default.takes_images
    with torch.device("meta"):
        return create_model(name, features_only=backbone).eval()


def _count_macs(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """MACs for one image of ``size``, or for the longest sequence of a language model."""
    from ..measuring.costs import count, count_tokens
    from ..models.registry import LanguageBackbone

    if isinstance(model, LanguageBackbone):
        return {"MACs": count_tokens(model, model.max_length).macs, "MACs at": f"{model.max_length} tokens"}
    return {"MACs": count(model, 3, size).macs, "MACs at": f"{size[0]}x{size[1]}"}


def _best_figures(variant: Variant) -> list[str]:
    """The best figure that the authors published for each data set."""
    best: dict[str, str] = {}
    for figure in sorted(variant.published, key=lambda entry: entry.value):
        data = figure.tag.rpartition("_")[2]  # for example in1k of r224_in1k
        best[data] = f"{data} {figure.metric} {figure.value} at {figure.size} ({figure.source})"
    return list(best.values())


def _all_names() -> list[str]:
    try:
        from .. import list_models

        return [*list_models(pretrained=True), *list_models()]
    except DependencyError:
        return list(assets.WEIGHTS)
