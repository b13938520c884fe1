"""Read the checkpoint that a reference names: reference -> file -> state dict, with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .. import assets
from .. import models as models  # registers the families
from ..errors import CheckpointError
from ..files import parse_json
from ..info import MAX_JSON, ModelInfo
from ..models.registry import published
from . import hub
from . import published as published_weights
from .checkpoints import one_line, read_state, unwrap
from .layouts import DECODER_PARTS, Recognised, recognise, strip_wrappers
from .references import find_base, find_file, find_local
from .tuned import Base, merge

_DEEPEST = 8  # files that are tuned on top of each other


@dataclass
class Checkpoint:
    """A state dict, with what is known about it.

    Attributes:
        state: the tensors, by their keys in the file.
        info: description of the model that they belong to, ``None`` if unknown.
        source: the reference it was read from, for messages; empty for a state dict.
        described: whether the file itself has the description, as Foveal writes it.
    """

    state: Mapping[str, Tensor]
    info: ModelInfo | None = None
    source: str = ""
    described: bool = False

    @cached_property
    def recognised(self) -> Recognised:
        """The state dict in Foveal's layout; raises CheckpointError if the keys are of no known family."""
        return recognise(self.state)

    def recognise_encoder(self) -> Recognised | None:
        """``recognised``, but ``None`` for a promptable model with an image encoder of no known family (SAM's ViT).

        Raises:
            CheckpointError: the keys are of no known family, nor of a promptable model.
        """
        try:
            return self.recognised
        except CheckpointError:
            if not any(key.startswith(DECODER_PARTS) for key in strip_wrappers(self.state)):
                raise
            return None

    def in_our_layout(self) -> Mapping[str, Tensor]:
        """The tensors in Foveal's layout; a file that Foveal described is in it, whatever its keys look like.

        Raises:
            CheckpointError: as :meth:`recognise_encoder`.
        """
        if self.described:
            return self.state
        recognised = self.recognise_encoder()
        return recognised.state if recognised else strip_wrappers(self.state)


def as_checkpoint(source: str | Path | Mapping[str, Tensor], info: ModelInfo | None = None) -> Checkpoint:
    """Make a checkpoint of a reference (see :func:`read_checkpoint`) or of a state dict, which ``info`` describes.

    Raises:
        CheckpointError: nothing of that name, an unreadable file, or no tensors.
    """
    if isinstance(source, Mapping):
        return Checkpoint(unwrap(source, "state dict"), info)
    return read_checkpoint(source)


def read_checkpoint(ref: str | Path, name: str = "") -> Checkpoint:
    """Read the weights that ``ref`` names, with their description if there is one.

    Tensors that were tuned on top of other weights (see :mod:`.tuned`) are returned together with those.

    Args:
        ref: path of a checkpoint or of a folder that contains one, ``name.tag`` of bundled or published weights, or a
            hub id; the first of these that exists.
        name: architecture; ``ref`` may then be one of its tags alone.

    Raises:
        CheckpointError: nothing of that name, an unreadable file, or base weights that are missing or others.
    """
    return _read(ref, name, _DEEPEST)


def _read(ref: str | Path, name: str, depth: int) -> Checkpoint:
    origin = _locate(ref, name)
    state, info = read_state(origin.path)
    checkpoint = Checkpoint(state, info, str(ref), bool(info and info.model))
    if info is None:
        checkpoint.info = _describe(checkpoint, origin)
    elif info.base:
        link = Base.parse(info.base, str(ref))
        base = _read_base(link, info.model, origin.path, str(ref), depth)
        checkpoint.state = merge(state, base.in_our_layout(), link, str(ref))
        checkpoint.info = info.replace(base={})
    return checkpoint


def _read_base(link: Base, name: str, file: Path, source: str, depth: int) -> Checkpoint:
    """Read the weights that a file of tuned tensors belongs to."""
    if not depth:
        raise CheckpointError(
            f"{source}: more than {_DEEPEST} files, each tuned on top of the next: convert one of them"
        )
    try:
        return _read(find_base(link.ref, file.parent) if link.local else link.ref, name, depth - 1)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is tuned on top of {link.ref!r}, which cannot be read: {error}") from error


def full_name(ref: str | Path, name: str) -> str:
    """``name.ref`` if ``ref`` is a tag of weights of the architecture ``name``, otherwise ``ref``."""
    known = {*assets.WEIGHTS, *published()}
    return f"{name}.{ref}" if f"{name}.{ref}" in known else str(ref)


@dataclass(frozen=True)
class _Origin:
    """Where a checkpoint is.

    Attributes:
        path: of the file.
        config: finds the config.json next to it, ``None`` if there is none.
        published: ``name.tag``, if these are published weights.
    """

    path: Path
    config: Callable[[], Path | None] = lambda: None
    published: str = ""


def _locate(ref: str | Path, name: str) -> _Origin:
    """Find the file of ``ref``; published weights and those on the hub are downloaded if necessary."""
    if (path := find_local(ref)) is not None:
        config = path.parent / "config.json"
        return _Origin(path, lambda: config if config.is_file() else None)
    known = {**dict.fromkeys(assets.WEIGHTS), **published()}
    full = full_name(ref, name)
    if full in assets.WEIGHTS:
        return _Origin(assets.path(full, ".safetensors"))
    if full in known:
        return _Origin(published_weights.fetch(full), lambda: published_weights.fetch_config(full), full)
    tags = [known_ref.removeprefix(f"{name}.") for known_ref in known if known_ref.startswith(f"{name}.")]
    path = find_file(ref, tags if name else known)
    file = hub.parse(str(ref), "config.json")
    return _Origin(path, lambda: hub.fetch(file) if file else None)


def _describe(checkpoint: Checkpoint, origin: _Origin) -> ModelInfo | None:
    """Describe a checkpoint whose file does not: from the table of published weights and its config.json."""
    if not origin.published:
        return _read_config(checkpoint, origin)
    info = published_weights.describe(origin.published)
    info = info.replace(options=info.options | checkpoint.recognised.options)
    configured = _read_config(checkpoint, origin)
    return info.replace(options=info.options | configured.options, task=configured.task) if configured else info


def _read_config(checkpoint: Checkpoint, origin: _Origin) -> ModelInfo | None:
    """Describe a checkpoint by the config.json next to it, for families whose shapes do not show all options."""
    try:
        recognised = checkpoint.recognised
    except CheckpointError:
        return None
    family = recognised.family
    if family.from_config is None or (path := origin.config()) is None:
        return None
    try:
        with path.open("rb") as file:
            config = parse_json(file.read(MAX_JSON + 1), MAX_JSON)
        name, options = family.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: not a configuration of {family.name} ({one_line(error)}); use the config.json that was published "
            "with the weights"
        ) from error
    has_head = any(key.startswith("head.") for key in recognised.state)
    task = family.variants[name].tasks[0] if has_head else "features"
    return ModelInfo(model=name, task=task, options=options, licence=family.licence)
