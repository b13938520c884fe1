"""Runs that tune a few parameters: what they train, and the small files that they save on top of named weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_write
from ..info import ModelInfo, info_of
from ..task import TASKS
from ..weights.layouts import IMAGE_ENCODER
from ..weights.loading import LoadReport
from ..weights.reading import full_name, read_checkpoint
from ..weights.references import BASE, find_local
from ..weights.tuned import DOWN, UP, Base, as_float32, sha256_of
from .common_settings import CommonSettings
from .folder import RunFolder
from .tune_kinds import KINDS

_COUNTER = "num_batches_tracked"
_PARAMETRIZED = re.compile(r"(.+)\.parametrizations\.(\w+)\.(original|0\.down|0\.up)")
_ENDS = {"original": "", "0.down": DOWN, "0.up": UP}
_WRAPPED = re.compile(r"(.*backbone\.stages\.\d+\.)stage\.")


def begin_tuning(model: nn.Module, config: CommonSettings, loaded: LoadReport | None) -> Tuning | None:
    """Freeze a model but for the parameters that ``config.tune`` names, and add what the kind needs.

    Args:
        model: a model of ``create_model``, with its weights; it is changed in place.
        config: settings.
        loaded: what the weights gave; the rest is trained.

    Returns:
        ``None`` if all of the model is trained.

    Raises:
        ConfigError: the kind is not for this architecture.
    """
    if not config.tune or loaded is None:
        return None
    total = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    fresh = {*loaded.reinitialized}
    for name, parameter in model.named_parameters():
        if name.startswith(TASKS[info_of(model).task].tuned_head) or name in fresh:
            parameter.requires_grad_(True)
    for parameter in KINDS[config.tune].prepare(model, config):
        parameter.requires_grad_(True)
    return Tuning(model, config, total)


class Tuning:
    """The tuned and the other tensors of a model.

    Args:
        model: the model that is trained.
        config: settings.
        total: number of its parameters before anything was added.
    """

    def __init__(self, model: nn.Module, config: CommonSettings, total: int) -> None:
        self.model, self.kind, self.total = model, config.tune, total
        rank = config.lora_rank
        self.scale = (rank if config.lora_alpha is None else config.lora_alpha) / rank
        name = config.model.partition(".")[0]
        ref = config.weights or config.model
        self.path = Path(ref).absolute() if find_local(ref) is not None else None
        self.ref = self.path.name if self.path else full_name(ref, name)
        self.base = dict(read_checkpoint(ref, name).in_our_layout())
        self.trained = 0
        self.taken: dict[str, str] = {}  # key of a tensor that no file has -> its key in the base weights

    def begin(self, frozen: Sequence[nn.Module]) -> str:
        """Choose the tensors that files leave out, before the first step; return a line on what is trained.

        Args:
            frozen: batch norms that keep their statistics.
        """
        self.trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        state, moving = dict(_plain(self.model.state_dict())), self._moving(frozen)
        self.link = _link(self.ref, self.path is not None, self.kind, self.scale, state, self.base)
        for key, name in self.link.keys(self.base):
            same = key in state and key not in moving and state[key].shape == self.base[name].shape
            if same and as_float32(state[key]).cpu().equal(as_float32(self.base[name])):
                self.taken[key] = name
        taken = {key: self.base[name] for key, name in self.taken.items()}
        self.link = Base(**{**vars(self.link), "sha256": sha256_of(taken)})
        kept = (value for key, value in state.items() if key not in self.taken and not key.endswith(_COUNTER))
        size = sum(value.numel() for value in kept)
        return (
            f"tune={self.kind}: {self.trained} of {self.total} parameters are trained "
            f"({self.trained / self.total:.2%}); checkpoints hold the tuned tensors alone, about "
            f"{4 * size / 1e6:.2f} MB, and need {self.ref}"
        )

    def _moving(self, frozen: Sequence[nn.Module]) -> set[str]:
        """Keys of the tensors that training changes."""
        kept = {id(norm) for norm in frozen}
        keys = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in kept:
                keys |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
        return keys

    def pack(self, weights: Mapping[str, Tensor], info: ModelInfo) -> tuple[dict[str, Tensor], ModelInfo]:
        """The tensors of a small file and its description.

        Args:
            weights: state dict of the model.
            info: description of the model.

        Raises:
            CheckpointError: the other tensors are not those of the base weights, which changed since the run began.
        """
        tensors: dict[str, Tensor] = {}
        for key, value in _plain(weights):
            name = self.taken.get(key)
            if name is None and not key.endswith(_COUNTER):
                tensors[key] = value
            elif name is not None and not as_float32(value).cpu().equal(as_float32(self.base[name])):
                raise CheckpointError(
                    f"{self.ref}: not the weights that the run began with ({key} differs): put those back, or start a "
                    "new run"
                )
        share = {"kind": self.kind, "trained": self.trained, "parameters": self.total}
        return tensors, info.replace(notes={**info.notes, "tuned": share}, base=self.link.to_dict())

    def note_base(self, folder: RunFolder) -> None:
        """Write where the base weights are into the run's folder, if they are a file or a run on this machine."""
        if self.path is not None and folder.writes:
            with atomic_write(folder.path / BASE) as file:
                file.write_text(f"{self.path}\n", encoding="utf-8")


def _plain(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries of a state dict with the keys of a file: those of the model without low-rank additions."""
    for key, value in state.items():
        match = _PARAMETRIZED.fullmatch(key)
        yield (f"{match[1]}.{match[2]}{_ENDS[match[3]]}" if match else key), value


def _link(ref: str, local: bool, kind: str, scale: float, state: Mapping[str, Any], base: Mapping[str, Any]) -> Base:
    """Describe how the keys of the base weights become those of the model; the hash is left out."""
    renamed = []
    ours, theirs = (any(key.startswith(IMAGE_ENCODER) for key in keys) for keys in (state, base))
    encoder = (IMAGE_ENCODER if theirs and not ours else "", IMAGE_ENCODER if ours and not theirs else "")
    for prefix in dict.fromkeys(match[1] for key in state if (match := _WRAPPED.match(key)) and key not in base):
        renamed.append((encoder[0] + prefix.removeprefix(encoder[1]), f"{prefix}stage."))
    if any(encoder):
        renamed.append((f"{encoder[0]}backbone.", f"{encoder[1]}backbone."))
    link = Base(ref, local, "", kind, scale, tuple(renamed))
    kept = {name for key, name in link.keys(base) if key in state}
    dropped = dict.fromkeys(_shortest(name, kept) for key, name in link.keys(base) if key not in state)
    return Base(ref, local, "", kind, scale, tuple(renamed), tuple(dropped))


def _shortest(key: str, kept: set[str]) -> str:
    """The shortest prefix of a key, cut after a dot, that no key of ``kept`` has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if not any(other.startswith(prefix) for other in kept):
            return prefix
    return key
