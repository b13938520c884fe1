"""Verbs for models and their files: ``models``, ``convert``, ``export``."""

from __future__ import annotations

import sys
from typing import Any

from .. import assets
from ..errors import ConfigError, DependencyError, nearest
from .console import Json, parse_size, print_json, print_table


def models(pattern: str = "*", /, *, task: str | None = None, size: str | None = None, json: Json = False) -> int:
    """List the models: bundled weights, and (with torch installed) published weights and the architectures.

    Parameters
    ----------
    pattern
        Shell-style pattern, such as "efficientvit_b*".
    task
        Only models for this task.
    size
        HEIGHTxWIDTH at which multiply-accumulates are counted; default 224x224 where a pattern is given, and not at
        all without one, since counting every model takes seconds.
    """
    import fnmatch

    rows: list[dict[str, Any]] = [
        {"name": ref, "tasks": [w.task], "licence": w.licence, "figures": [w.figure], "bundled": True}
        for ref, w in assets.WEIGHTS.items()
        if fnmatch.fnmatch(ref, pattern) and task in (None, w.task)
    ]
    try:
        counted = parse_size(size or "224x224") if size or pattern != "*" else None
        rows += _published(pattern, task) + _architectures(pattern, task, counted)
    except DependencyError as error:
        print(f"published weights and architectures are not listed: {error}", file=sys.stderr)
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}{nearest(pattern.strip('*'), _all_names())}")
    if json:
        print_json({"models": rows})
    elif len(rows) == 1:
        print_table(("", rows[0]["name"]), [(key, _flat(value)) for key, value in rows[0].items() if key != "name"])
    else:
        columns = ("name", "family", "tasks", "params", "MACs", "licence", "figures")
        print_table(columns, [[_flat(row.get(column, "")) for column in columns] for row in rows])
    return 0


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {text}" for key, text in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.2f} M"
    return str(value)


def _published(pattern: str, task: str | None) -> list[dict[str, Any]]:
    """One row per published set of weights, with its authors' figure and where it is fetched from."""
    from .. import list_models  # raises DependencyError without torch

    names = list_models(pattern, task=task, pretrained=True)
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
    """One row per architecture; published figures are the authors', the best of each data set."""
    from .. import list_models  # raises DependencyError without torch

    names = list_models(pattern, task=task)
    import torch

    from ..factory.create import create_model
    from ..layers.sharing import shared_layers
    from ..measuring.costs import count, count_tokens
    from ..models.registry import LanguageBackbone, variants

    rows = []
    known = variants()
    for name in names:
        family, variant = known[name]
        with torch.device("meta"):
            bare = (
                variant.classifier is None and "upscale" not in variant.tasks
            )  # MACs of language models: the encoder's
            model = create_model(name, features_only=bare).eval()
        # What models that share layers save, and what not.
        sharing = "; ".join(stack.summary() for stack in shared_layers(model))
        best: dict[str, str] = {}
        for figure in sorted(variant.published, key=lambda p: p.value):
            data = figure.tag.rpartition("_")[2]  # of r224_in1k, say
            best[data] = f"{figure.metric} {figure.value} at {figure.size} ({figure.source})"
        costs: dict[str, Any] = {}
        if isinstance(model, LanguageBackbone) and size:
            length = model.max_length
            costs = {"MACs": count_tokens(model, length).macs, "MACs at": f"{length} tokens"}
        elif size:
            costs = {"MACs": count(model, 3, size).macs, "MACs at": f"{size[0]}x{size[1]}"}
        of_task = {"scale": "1 (repairs), 2 (the default), 3 or 4"} if "upscale" in variant.tasks else {}
        rows.append(
            {
                "name": name,
                "family": family.name,
                "paper": family.paper,
                "tasks": [task for task in variant.tasks if task != "classify" or variant.classifier],
                "params": sum(p.numel() for p in model.parameters()),
                **costs,
                **({"sharing": sharing} if sharing else {}),
                "licence": family.licence,
                "figures": [f"{tag} {text}" for tag, text in best.items()],
                "options": {**family.options, **family.settings, **family.classifier_options, **of_task},
            }
        )
    return rows


def _all_names() -> list[str]:
    try:
        from .. import list_models

        return [*list_models(pretrained=True), *list_models()]
    except DependencyError:
        return list(assets.WEIGHTS)
