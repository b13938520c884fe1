"""Write the plans of :mod:`foveal.prediction.native_graphs`: networks of the native engine without their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engine.plan import Plan
from ..errors import ExportError
from ..factory.load_model import load_model
from ..files import atomic_write
from ..layers.conv import ConvNormAct
from ..layers.optimize import fold_norms
from ..layers.reparam import fuse_branches
from ..prediction.exported import PARTS
from ..prediction.native_graphs import SOURCES_KEY, SUFFIX, fill_plan, gather_sources, pack_places
from ..prediction.native_runner import make_plans
from ..weights.arrays import read_arrays
from .weightless import keys_in_file

_BASE = 1 << 12  # a place is two digits of this base: each is exact in float32, even times a factor
_STORED = 4096  # numbers of the largest array that is stored as it is
_TOLERANCE = 1e-5  # of the largest number of an array

#: To find out where the numbers of a plan come from, the plan is also made from marked models. In the first every
#: number is 1, which gives the factor; in the other two it is the high and the low digit of its place among all
#: sources.
MARKS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.ones_like,
    lambda place: place // _BASE,
    lambda place: place % _BASE,
)


class Origin(NamedTuple):
    """Where an array comes from.

    Attributes:
        factor: of its numbers.
        places: of each in the vector of all sources.
    """

    factor: float
    places: NDArray[np.int64]


def write_plans(ref: str, weights: Path, folder: Path) -> list[Path]:
    """Write the plans of a model, each of which is that of the model when it is filled with its weights.

    Args:
        ref: name and tag of the weights.
        weights: their checkpoint, from which the plans are filled when they are used.
        folder: for ``REF.plan``, or ``REF.PART.plan`` of a promptable model.

    Raises:
        ExportError: an array does not follow from the checkpoint; then no file is written.
    """
    model = load_model(ref)
    checkpoint = read_arrays(weights, weights.name)
    sources = _sources(model, keys_in_file(ref))
    plans = make_plans(model)
    marked = [make_plans(_marked(model, sources, mark)) for mark in MARKS]
    files = []
    for plan, part, *marks in zip(plans, PARTS if len(plans) > 1 else ("",), *marked, strict=True):
        file = folder / f"{ref}.{part}{SUFFIX}".replace("..", ".")
        origins = _trace(plan, [mark.weights for mark in marks], list(sources.values()), checkpoint)
        with atomic_write(file) as temporary:
            _write(temporary, plan, *origins)
            filled = fill_plan(temporary, checkpoint).weights
            if unequal := [name for name, array in plan.weights.items() if not _equal(filled[name], array)]:
                raise ExportError(f"{file.name}: the array {unequal[0]} is another one when it is filled")
        files.append(file)
    return files


def _sources(model: nn.Module, keys: Mapping[str, str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What a plan can take from the checkpoint, by the tensors of the folded model that it gives."""

    def either(name: str) -> list[str]:
        """The keys of a tensor in the published checkpoint and in Foveal's."""
        return list(dict.fromkeys((keys[name], name)))

    found: dict[tuple[str, ...], dict[str, Any]] = {}
    norms = {name: part for name, part in model.named_modules() if isinstance(part, ConvNormAct)}
    norms = {name: part for name, part in norms.items() if isinstance(part.norm, nn.BatchNorm2d)}
    for name, part in norms.items():
        assert isinstance(part.norm, nn.BatchNorm2d)
        assert part.conv.bias is None
        needed = ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        found[f"{name}.conv.weight", f"{name}.conv.bias"] = {
            "kind": "convolution and norm",
            "keys": [either(f"{name}.{each}") for each in needed],
            "eps": part.norm.eps,
        }
    folded = tuple(f"{name}." for name in norms)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.startswith(folded):
            found[(name,)] = {"kind": "tensor", "keys": [either(name)]}
    return found


def _marked(model: nn.Module, sources: Mapping[tuple[str, ...], Any], mark: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the folded model, each of whose numbers is what ``mark`` gives for its place in the vector."""
    marked = copy.deepcopy(model)
    fold_norms(marked)
    fuse_branches(marked)
    state, place = marked.state_dict(), 1
    for name in (name for names in sources for name in names):
        state[name].copy_(mark(torch.arange(place, place + state[name].numel())).view(state[name].shape))
        place += state[name].numel()
    return marked


def _trace(
    plan: Plan,
    marks: Sequence[Mapping[str, NDArray[np.float32]]],
    sources: list[dict[str, Any]],
    checkpoint: Mapping[str, NDArray[Any]],
) -> tuple[list[dict[str, Any]], dict[str, Origin]]:
    """The sources that a plan needs, and where its arrays come from; those without an origin are stored as they are.

    Args:
        plan: the plan.
        marks: for each of :data:`MARKS` the arrays of the plan of the marked model.
        sources: all of them.
        checkpoint: arrays by key.
    """
    positions = next(({**source, "kind": "positions"} for source in sources if _is_frequencies(source)), None)
    sources = [*sources, *([positions] if positions else [])]
    lengths = [len(gather_sources([source], checkpoint)) - 1 for source in sources]
    vector = gather_sources(sources, checkpoint)
    starts = np.cumsum([1, *lengths])
    origins: dict[str, Origin] = {}
    for name, array in plan.weights.items():
        ones, *digits = (mark[name].astype(np.float64) for mark in marks)
        factor = float(ones.flat[np.abs(ones).argmax()]) or 1.0
        high, low = (np.rint(digit / factor).astype(np.int64) for digit in digits)
        places = np.where(ones, _BASE * high + low, 0)
        if array.size == lengths[-1]:  # if it is the table of positions
            table = np.arange(starts[-2], starts[-1]).reshape(array.shape)
            factor, places = (1.0, table) if _equal(vector[table], array) else (factor, places)
        if places.min() >= 0 and places.max() < len(vector) and _equal(factor * vector[places], array):
            origins[name] = Origin(factor, places)
        elif array.size > _STORED:
            raise ExportError(
                f"{plan.info.model}: the array {name} of {array.shape} does not follow from the checkpoint"
            )
    return _without_unused(sources, starts, origins)


def _without_unused(
    sources: list[dict[str, Any]], starts: NDArray[np.int64], origins: Mapping[str, Origin]
) -> tuple[list[dict[str, Any]], dict[str, Origin]]:
    """Leave out the sources of which no array has a number."""
    used = np.zeros(len(sources), bool)
    for _, places in origins.values():
        used[np.searchsorted(starts, places[places > 0], "right") - 1] = True
    lengths = np.diff(starts)
    moved = np.cumsum([1, *(lengths * used)])[:-1] - starts[:-1]
    return [source for source, is_used in zip(sources, used, strict=True) if is_used], {
        name: Origin(factor, np.where(places > 0, places + moved[np.searchsorted(starts, places, "right") - 1], 0))
        for name, (factor, places) in origins.items()
    }


def _is_frequencies(source: Mapping[str, Any]) -> bool:
    return source["kind"] == "tensor" and source["keys"][0][-1].endswith("positional_encoding_gaussian_matrix")


def _equal(found: NDArray[Any], expected: NDArray[np.float32]) -> bool:
    return bool(np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max())


def _write(path: Path, plan: Plan, sources: list[dict[str, Any]], origins: Mapping[str, Origin]) -> None:
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[Any]] = {
        name: pack_places(origins[name].places) if name in origins else array for name, array in plan.weights.items()
    }
    told = {name: {"shape": places.shape, "factor": factor} for name, (factor, places) in origins.items()}
    save_file(arrays, path, metadata={**plan.metadata(), SOURCES_KEY: json.dumps({"sources": sources, "arrays": told})})
