"""Check that a description asks for a model of about the size of its file, before memory is allocated for the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ..errors import CheckpointError, ConfigError, FovealError
from ..weights.checkpoints import one_line

_TIMES = 4  # more numbers and modules than the file has tensors: some are built and then replaced
_NUMBERS, _MODULES = 1 << 20, 500  # that a model may have in addition


class _TooLargeError(Exception):
    pass


def check_size(build: Callable[[], nn.Module], state: Mapping[str, Tensor], source: str) -> None:
    """Build a model without memory for its tensors, and stop when it becomes larger than the tensors of its file.

    Args:
        build: builds the model as its description says.
        state: the tensors of the file.
        source: name of the file, for messages.

    Raises:
        CheckpointError: the model is larger, or the description has values that no model can be built with.
        ConfigError: an unknown model or option.
    """
    numbers = _NUMBERS + _TIMES * sum(tensor.numel() for tensor in state.values())
    modules = _MODULES + _TIMES * len(state)
    thread = threading.get_ident()

    def count(_: nn.Module, __: str, part: Any) -> None:
        nonlocal numbers, modules
        if threading.get_ident() != thread:
            return
        modules -= 1
        numbers -= part.numel() if isinstance(part, Tensor) else 0
        if numbers < 0 or modules < 0:
            raise _TooLargeError

    try:
        with ExitStack() as hooks, torch.device("meta"):
            for register in (
                registration.register_module_parameter_registration_hook,
                registration.register_module_buffer_registration_hook,
                registration.register_module_module_registration_hook,
            ):
                hooks.callback(register(count).remove)
            build()
    except _TooLargeError:
        raise CheckpointError(
            f"{source}: its description asks for a larger model than the file holds; nothing was built: use a file as "
            "it was written"
        ) from None
    except ConfigError as error:
        if error.__cause__ is None or isinstance(error.__cause__, FovealError):
            raise ConfigError(f"{source}: {error}") from error
        raise _impossible(source, error.__cause__) from error.__cause__
    except FovealError as error:
        raise type(error)(f"{source}: {error}") from error
    except Exception as error:  # values of a wrong type or range reach layers, which raise errors of many types
        raise _impossible(source, error) from error


def _impossible(source: str, error: BaseException) -> CheckpointError:
    reason = one_line(error)
    return CheckpointError(
        f"{source}: no model can be built as its description says ({reason}); use a file as it was written"
    )
