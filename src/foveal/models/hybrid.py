"""Hybrid backbones: the blocks of chosen stages replaced by those of another family.

Of a replaced stage, what changes the number of channels or the size of the map stays, with its name in the state dict;
each block that keeps both is replaced by one of the new kind. The other stages are unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..errors import ConfigError, nearest
from ..layers.drop_path import DropPath
from ..layers.sharing import SharedLayers
from ..layers.stage_blocks import STAGE_BLOCKS, BlockStage, Place
from ..layers.window_blocks import WindowBlocks
from .registry import Backbone

#: Builds new blocks from the channels of the map and the rate of stochastic depth of each block.
_Builder = Callable[[int, Sequence[float]], list[nn.Module]]
#: Description of the option.
OPTION = f"blocks of another family by the number of the stage, such as {{3: scan}}; {', '.join(STAGE_BLOCKS)}"


def takes_other_blocks(backbone: nn.Module) -> bool:
    """Whether each feature map is the end of a stage whose blocks :func:`replace_blocks` can replace."""
    forms = (nn.Sequential, BlockStage, WindowBlocks, nn.AvgPool2d)
    return (
        isinstance(backbone, Backbone)
        and len(backbone.stages) == len(backbone.feature_info)
        and all(isinstance(stage, forms) for stage in backbone.stages)
    )


def parse_stage_blocks(stage_blocks: Any, name: str) -> dict[int, str]:
    """Check the option ``stage_blocks`` and return the kind of block by the number of the stage, from 1.

    Args:
        stage_blocks: as given, or as a description has it, with the numbers as text.
        name: of the model, for messages.

    Raises:
        ConfigError: it is no mapping of numbers to kinds; the message has the nearest valid kind.
    """
    if not isinstance(stage_blocks, Mapping):
        raise ConfigError(
            f"{name}: stage_blocks={stage_blocks!r:.80}: give a mapping such as {{3: 'window_attention'}}"
        )
    kinds: dict[int, str] = {}
    for key, kind in stage_blocks.items():
        text = str(key)
        if isinstance(key, bool) or not (text.isascii() and text.isdecimal() and len(text) < 4):
            raise ConfigError(f"{name}: stage_blocks: {key!r:.40} is no number of a stage, such as 3")
        if not isinstance(kind, str) or kind not in STAGE_BLOCKS:
            raise ConfigError(f"{name}: stage_blocks: stage {text}: {kind!r:.40}{nearest(str(kind), STAGE_BLOCKS)}")
        if int(text) in kinds:
            raise ConfigError(f"{name}: stage_blocks: stage {text} is there twice")
        kinds[int(text)] = kind
    return dict(sorted(kinds.items()))


def replace_blocks(backbone: nn.Module, kinds: Mapping[int, str], name: str) -> None:
    """Replace the blocks of stages of ``backbone``; a stage that is of this kind already is left as it is.

    Args:
        backbone: a backbone with one feature map for each stage.
        kinds: names of :data:`~foveal.layers.stage_blocks.STAGE_BLOCKS` by the number of the stage, from 1.
        name: of the model, for messages.

    Raises:
        ConfigError: no such stage, a stage without blocks that keep their shape, or a backbone of another form.
    """
    if not (isinstance(backbone, Backbone) and takes_other_blocks(backbone)):
        raise ConfigError(f"{name} has no stages whose blocks can be replaced: leave stage_blocks out")
    for number, kind in kinds.items():
        count = len(backbone.stages)
        if not 1 <= number <= count:
            raise ConfigError(f"{name} has no stage {number}: stage_blocks takes 1 to {count}")
        stage, info = backbone.stages[number - 1], backbone.feature_info[number - 1]
        if kept_parts(stage) == {name for name, _ in stage.named_children()}:
            raise ConfigError(
                f"{name}: stage {number} has no blocks that keep their shape: leave it out of stage_blocks"
            )
        build = partial(_build, kind, info.stride, backbone.block_options(number - 1, kind))
        new = _rebuilt(stage, info.channels, build)
        if _layers(new) != _layers(stage):
            backbone.stages[number - 1] = new
            backbone.stage_blocks[number] = kind
            backbone.undecayed = tuple(dict.fromkeys((*backbone.undecayed, *STAGE_BLOCKS[kind].undecayed)))


def kept_parts(stage: nn.Module) -> set[str]:
    """Names of the parts of a stage that :func:`replace_blocks` keeps."""
    if isinstance(stage, BlockStage | WindowBlocks):
        return {"downsample"}
    return {name for name, part in stage.named_children() if not _keeps_shape(part)}


def idle_options(backbone: nn.Module, options: Mapping[str, Any]) -> list[str]:
    """Options that configure blocks of which ``backbone`` has none left."""
    blocks = backbone.option_blocks if isinstance(backbone, Backbone) else {}
    return [
        option
        for option in options
        if option in blocks and not any(isinstance(part, blocks[option]) for part in backbone.modules())
    ]


def _build(
    kind: str, stride: int, options: Mapping[str, Any], channels: int, rates: Sequence[float]
) -> list[nn.Module]:
    return STAGE_BLOCKS[kind].build(Place(channels, stride, rates), **options)


def _layers(stage: nn.Module) -> list[tuple[type[nn.Module], list[tuple[int, ...]]]]:
    """Classes and shapes of all layers."""
    return [(type(part), [tuple(p.shape) for p in part.parameters(recurse=False)]) for part in stage.modules()]


def _rebuilt(stage: nn.Module, channels: int, build: _Builder) -> nn.Module:
    """The stage with new blocks; kept parts are shared with the old one."""
    if isinstance(stage, BlockStage | WindowBlocks):
        rates = [_rate(block) for block in stage.blocks]
        return BlockStage(stage.downsample, build(channels, rates))
    if isinstance(stage, SharedLayers):
        return SharedLayers(lambda: build(channels, [0.0])[0], stage.times, len(stage))
    new = nn.Sequential()
    for keeps, run in itertools.groupby(stage.named_children(), key=lambda item: _keeps_shape(item[1])):
        parts = dict(run)
        if keeps:
            rates = [_rate(block) for block in parts.values()]
            parts = dict(zip(parts, build(_channels(parts) or channels, rates), strict=False))
        for name, part in parts.items():
            new.add_module(name, part)
    return new


def _rate(block: nn.Module) -> float:
    return next((part.rate for part in block.modules() if isinstance(part, DropPath)), 0.0)


def _convs(part: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in part.modules() if isinstance(conv, nn.Conv2d)]


def _channels(parts: Mapping[str, nn.Module]) -> int:
    """Channels of the map that blocks keep; 0 if they have no convolutions."""
    return next((conv.in_channels for part in parts.values() for conv in _convs(part)[:1]), 0)


def _keeps_shape(part: nn.Module) -> bool:
    """Whether the output has the shape of the input: by the convolutions, which are in the order in which they run."""
    if isinstance(part, nn.AvgPool2d):
        return False
    convs = _convs(part)
    return not convs or (
        convs[0].in_channels == convs[-1].out_channels and all(conv.stride == (1, 1) for conv in convs)
    )
