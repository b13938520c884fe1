"""Files of a few tuned tensors on top of named weights: what they say about these, and how both become a whole model.

Such a file holds the tensors that were trained; ``ModelInfo.base`` says which weights have the others. Of a weight with
a low-rank addition (:mod:`foveal.layers.low_rank`) it holds the two thin matrices, under the weight's key and
:data:`DOWN` and :data:`UP`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layers.low_rank import add_low_rank
from .checkpoints import digest

DOWN, UP = ".lora_down", ".lora_up"
_COUNTER = "num_batches_tracked"  # of batch norms; evaluation never reads it
_SHA256 = re.compile("[0-9a-f]{64}")
_LONGEST = 4096  # characters of a name


@dataclass(frozen=True)
class Base:
    """The weights that a file of tuned tensors belongs to.

    Attributes:
        ref: ``name.tag`` or hub id; for a file or a training run its name, without folders.
        local: whether it is a file or a training run.
        sha256: of the tensors that are taken from them, see :func:`sha256_of`.
        kind: how the model was tuned, a name of the setting ``tune``.
        scale: factor of low-rank additions.
        renamed: prefixes of their keys, and what stands in the place of each in the model; the first that fits counts.
        dropped: prefixes of their keys that the model does not have.
    """

    ref: str
    local: bool
    sha256: str
    kind: str
    scale: float = 1.0
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Base:
        """Check what a file says.

        Raises:
            CheckpointError: values of other names or types.
        """
        known = {entry.name for entry in fields(cls)}
        needed = {"ref", "local", "sha256", "kind"}
        try:
            if unknown := next((key for key in values if key not in known), None):
                raise ValueError(f"unknown key {unknown[:60]!r}")
            if missing := sorted(needed - values.keys()):
                raise ValueError(f"no {missing[0]}")
            lists = [values.get(name, []) for name in ("renamed", "dropped")]
            if not all(isinstance(each, list) for each in (*lists, *lists[0])):
                raise TypeError("renamed and dropped are no lists")
            renamed = tuple((_text(old), _text(new)) for old, new in lists[0])
            dropped = tuple(map(_text, lists[1]))
            scale = values.get("scale", 1.0)
            valid = isinstance(values["local"], bool) and type(scale) in (int, float) and abs(scale) <= 1e6
            if not valid or not _SHA256.fullmatch(_text(values["sha256"])):
                raise ValueError("local, scale or sha256 are no such values")
            texts = _text(values["ref"]), values["local"], values["sha256"], _text(values["kind"])
            return cls(*texts, float(scale), renamed, dropped)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{source}: its description of the base weights cannot be read ({error}); if a newer Foveal wrote the "
                "file, update this one"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``ModelInfo.base``."""
        return {**asdict(self), "renamed": list(map(list, self.renamed)), "dropped": list(self.dropped)}

    def keys(self, base: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Pairs of a key of the model and the key of the base weights that has its tensor; without counters."""
        for key in base:
            if key.endswith(_COUNTER) or key.startswith(self.dropped):
                continue
            old, new = next(((old, new) for old, new in self.renamed if key.startswith(old)), ("", ""))
            yield new + key.removeprefix(old), key


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError(f"{value!r:.60} is no text")
    return value


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors by the model's keys, in float32: it does not depend on the kind of file they come from."""
    return digest({key: as_float32(value).contiguous().cpu() for key, value in tensors.items()})


def as_float32(value: Tensor) -> Tensor:
    """The tensor in float32, unless it holds integers."""
    return value.detach().to(torch.float32) if value.is_floating_point() else value.detach()


def merge(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], link: Base, source: str) -> dict[str, Tensor]:
    """The state dict of the whole model: low-rank additions are added to the weights that they belong to.

    Args:
        tuned: tensors of the file.
        base: the base weights, in Foveal's layout.
        link: what the file says about them.
        source: name of the file, for messages.

    Raises:
        CheckpointError: the base weights are others than those that were tuned, or a tensor of the file is damaged.
    """
    additions = {key.removesuffix(DOWN) for key in tuned if key.endswith(DOWN)}
    whole = {key: value for key, value in tuned.items() if not key.endswith((DOWN, UP))}
    taken = {key: as_float32(base[name]) for key, name in link.keys(base) if key not in whole}
    if sha256_of(taken) != link.sha256:
        raise CheckpointError(
            f"{source}: it was tuned on other weights than {link.ref!r} is here (SHA-256 mismatch): get the weights "
            "that it was trained from"
        )
    for key in sorted(additions):
        taken[key] = _added(key, tuned, taken, link.scale, source)
    return taken | whole


def _added(key: str, tuned: Mapping[str, Tensor], taken: Mapping[str, Tensor], scale: float, source: str) -> Tensor:
    weight, down, up = taken.get(key), tuned[key + DOWN], tuned.get(key + UP)
    if weight is None or up is None or weight.ndim < 2 or not all(map(torch.is_floating_point, (weight, down, up))):
        raise CheckpointError(f"{source}: damaged: {key} has no low-rank addition of two matrices")
    rank = len(down) if down.ndim == 2 else -1
    if down.shape != (rank, weight[0].numel()) or up.shape != (len(weight), rank):
        raise CheckpointError(
            f"{source}: damaged: the matrices {tuple(up.shape)} and {tuple(down.shape)} do not fit {key}, "
            f"{tuple(weight.shape)}"
        )
    return add_low_rank(weight.to(down.dtype), down, up, scale)
