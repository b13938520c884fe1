"""The ways to tune a few parameters by name. A new one is a line of the table; settings import this file, so torch is
imported late.

Besides what a kind names, the head of the task (``Task.tuned_head``) and everything that the weights do not give, such
as a classifier for other classes, is always trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..task import TASKS

LAYERS = {
    "pointwise": "linear layers and 1x1 convolutions",
    "dense": "also convolutions with larger kernels, as matrices of their filters",
    "all": "also depthwise and grouped convolutions",
}


class Kind(NamedTuple):
    """A way to tune a few parameters.

    Attributes:
        help: what is trained besides the head.
        prepare: adds to the model what the kind needs, and returns the parameters that are trained.
        options: settings of this kind.
        adds_layers: whether the model gets layers that stay in it.
    """

    help: str
    prepare: Callable[[Any, Any], Iterable[Any]]
    options: tuple[str, ...] = ()
    adds_layers: bool = False


def _none(model: Any, config: Any) -> Iterable[Any]:
    return ()


def _norms(model: Any, config: Any) -> Iterable[Any]:
    from .freezing import NORMS

    return [p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)]


def _biases(model: Any, config: Any) -> Iterable[Any]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]


def _additions(model: Any, config: Any) -> Iterable[Any]:
    """Low-rank additions to frozen weights; a weight with no more numbers than its addition is trained itself."""
    from torch import nn

    from ..layers.low_rank import adapt

    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    trained = []
    for layer in list(model.modules()):
        is_conv = isinstance(layer, nn.Conv1d | nn.Conv2d)
        if not (is_conv or isinstance(layer, nn.Linear)) or layer.weight.requires_grad:
            continue
        if is_conv and config.lora_where != "all" and layer.groups > 1:
            continue
        if is_conv and config.lora_where == "pointwise" and layer.weight[0, 0].numel() > 1:
            continue
        rows, columns = layer.weight.flatten(1).shape
        if config.lora_rank * (rows + columns) < rows * columns:
            trained += adapt(layer, config.lora_rank, alpha / config.lora_rank).parameters()
        else:
            trained.append(layer.weight)
    return trained


def _tokens(model: Any, config: Any) -> Iterable[Any]:
    from ..info import attach, info_of
    from ..layers.prompt_tokens import PromptTokens, add_prompt_tokens

    info = info_of(model)
    if "prompt_tokens" in info.options:
        raise ConfigError("tune='prompt': the weights have prompt tokens already; take another kind of tuning")
    add_prompt_tokens(model.backbone, config.prompt_tokens, info.in_chans)
    attach(model, info.replace(options={**info.options, "prompt_tokens": config.prompt_tokens}))
    return [p for module in model.modules() if isinstance(module, PromptTokens) for p in module.parameters()]


KINDS: Mapping[str, Kind] = {
    "head": Kind("nothing else", _none),
    "norms": Kind("scales and biases of all norms; their batch norms use and update statistics", _norms),
    "bias": Kind("all biases (BitFit)", _biases),
    "lora": Kind("low-rank additions to weights (LoRA)", _additions, ("lora_rank", "lora_alpha", "lora_where")),
    "prompt": Kind("prompt tokens at the input of each stage", _tokens, ("prompt_tokens",), True),
}


def check_tune(config: Any, defaults: Mapping[str, Any]) -> None:
    """Check the settings of tuning against each other and against the other settings.

    Args:
        config: settings of the run.
        defaults: default value of each setting.

    Raises:
        ConfigError: they do not go together.
    """
    for kind, each in KINDS.items():
        for name in each.options:
            if kind != config.tune and getattr(config, name) != defaults[name]:
                raise ConfigError(
                    f"{name}={getattr(config, name)!r} is for tune={kind!r}: give tune too, or leave it out"
                )
    if not config.tune:
        return
    kind = f"tune={config.tune!r}"
    if not config.weights and "." not in config.model:
        raise ConfigError(f"{kind} needs weights to tune: give weights, or leave tune out")
    if config.fsdp:
        raise ConfigError(f"{kind} does not go with fsdp: leave one of them out")
    if getattr(config, "teacher", ""):
        raise ConfigError(f"{kind} does not go with teacher, which trains the whole encoder: leave one of them out")
    if KINDS[config.tune].adds_layers:
        if config.layer_decay != defaults["layer_decay"]:
            raise ConfigError(f"{kind} trains nothing but tokens and the head: leave layer_decay out")
        task = TASKS[config.task]
        if not (task.has_classes or task.takes_prompts):
            raise ConfigError(f"{kind} is not for {config.task!r}: take another of {', '.join(KINDS)}")
