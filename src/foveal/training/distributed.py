"""Several processes under ``torchrun``: start them, shard a model over them (FSDP2), gather what is distributed.

gloo connects processes on CPUs, nccl those on GPUs. Without ``torchrun`` there is one process, and nothing here waits.
"""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import ConfigError
from ..models.registry import Backbone
from .common_settings import CommonSettings
from .device import check_device, has_number, select_device, uses_cpu
from .parameter_groups import blocks_of_stage


def make_accelerator(config: CommonSettings) -> Accelerator:
    """Join the processes that train together, and select the device of this one.

    Raises:
        ConfigError: the device does not exist; ``device``, ``fsdp`` or ``batch_size`` does not fit the number of
            processes; or ``precision`` does not fit the device.
    """
    check_device(config.device)
    select_device(config.device)
    # An earlier run of this Python process may have had another precision or another device.
    AcceleratorState._reset_state(reset_partial_state=True)
    # On a CPU, cpu=True is what makes torchrun's processes one group (gloo).
    accelerator = Accelerator(
        cpu=uses_cpu(config.device),
        mixed_precision=config.precision if config.precision in ("bf16", "fp16") else "no",
    )
    if config.precision == "fp16" and not accelerator.native_amp:
        raise ConfigError("precision=fp16 needs a GPU to train on: take bf16 or fp32")
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)
    _check_processes(config, accelerator.num_processes)
    return accelerator


def _leave_group() -> None:
    """Leave the group of processes before Python ends: threads of gloo that still run then can abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_processes(config: CommonSettings, processes: int) -> None:
    if config.fsdp and processes == 1:
        raise ConfigError(
            "fsdp=True shards over several processes and this is the only one: start it with torchrun "
            "--nproc-per-node N -m foveal train ..., or leave fsdp out (--no-fsdp)"
        )
    if processes > 1 and has_number(config.device):
        raise ConfigError(
            f"device={config.device!r} is one device for {processes} processes: give its name without the number, and "
            "each process takes its own"
        )
    if config.batch_size % processes:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide by {processes} processes: give a multiple of {processes}"
        )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the backbone's stages, in order."""
    return [block for stage in cast(Backbone, model.backbone).stages for block in blocks_of_stage(stage)]


def as_number(value: Tensor | float) -> float:
    """A scalar as a number, also if it is spread over the processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def shard(trainee: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
    """Shard the parameters of ``trainee`` over all processes (FSDP2), and move it to ``device``.

    Each block is gathered for its own forward and backward pass, and the rest of the model as one more unit.
    Parameters become DTensors; the outputs and the keys of the state dict do not change.
    """
    # The warning is about writing into the view in place, which no loss does.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in (*blocks, trainee):
        fully_shard(unit, mesh=mesh)
    trainee.to(device)  # for the buffers, which are not sharded


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor that may be sharded over the processes, on its device; every process must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_tensor(value: Tensor) -> Tensor:
    """Return this process's shard, or the tensor itself if it is not sharded; the memory is shared."""
    return value.to_local() if isinstance(value, DTensor) else value


def distribute_like(value: Tensor, own: Tensor) -> Tensor:
    """Shard the unsharded tensor ``value`` like ``own``.

    Raises:
        ValueError: they have different shapes.
    """
    if value.shape != own.shape:
        raise ValueError(f"a tensor is {tuple(value.shape)} instead of {tuple(own.shape)}")
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def full_state_dict(part: Any, keep: bool = True) -> dict[str, Any]:
    """Return the ``state_dict`` of ``part`` with unsharded tensors on the CPU: the same for any number of processes.

    Every process must call this; in those without ``keep`` the result is empty.
    """

    def gather(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = full_tensor(value.detach())
            return value.cpu() if keep else None
        if isinstance(value, Mapping):
            return {key: gather(item) for key, item in value.items()}
        return [gather(item) for item in value] if isinstance(value, list) else value

    state = gather(part.state_dict())
    return state if keep else {}


def load_full_state_dict(part: Any, state: Mapping[str, Any]) -> None:
    """Load a state from :func:`full_state_dict` into ``part``, with any number of processes."""
    if isinstance(part, torch.optim.Optimizer):
        part.load_state_dict({**state, "state": _shard_moments(part, state["state"])})
    elif isinstance(part, nn.Module):
        own = part.state_dict()
        part.load_state_dict(
            {key: distribute_like(value, own[key]) if key in own else value for key, value in state.items()}
        )
    else:
        part.load_state_dict(state)


def _shard_moments(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
    """Shard the optimiser's tensors of each parameter like the parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded: dict[int, Any] = {}
    for number, own in enumerate(parameters):
        sharded[number] = values = dict(moments.get(number, {}))
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:  # the count of steps has no dimension
                values[key] = distribute_like(value, own)
    return {number: values for number, values in sharded.items() if values}


def reduce_sum(value: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the sum over all processes."""
    return cast(Tensor, accelerator.reduce(value, "sum")) if accelerator.num_processes > 1 else value


def gather_dict(entries: dict[int, Any], accelerator: Accelerator) -> dict[int, Any]:
    """Return the entries of all processes in one dictionary."""
    if accelerator.num_processes == 1:
        return entries
    return {key: value for each in gather_object([entries]) for key, value in each.items()}


def reduce_max(value: int, accelerator: Accelerator) -> int:
    """Return the largest value over all processes."""
    if accelerator.num_processes == 1:
        return value
    largest = torch.tensor(value, device=accelerator.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
