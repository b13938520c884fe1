"""Several processes under ``torchrun``: how they start, shard a model (FSDP2), and bring together what is spread out.

gloo connects processes on CPUs, nccl those on GPUs. Without ``torchrun`` there is one process, and nothing here waits.
"""

from __future__ import annotations

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
from .config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """This process's place among those that train together.

    Raises:
        ConfigError: ``fsdp`` or ``batch_size`` does not fit the number of processes, or ``precision`` the machine.
    """
    AcceleratorState._reset_state()  # an earlier run of this Python process may have had another precision
    # On a machine without an accelerator, cpu=True is what makes torchrun's processes one group (gloo).
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.precision if config.precision in ("bf16", "fp16") else "no",
    )
    if config.precision == "fp16" and not accelerator.native_amp:
        raise ConfigError("precision=fp16 needs a GPU to train on: take bf16 or fp32")
    if config.fsdp and accelerator.num_processes == 1:
        raise ConfigError(
            "fsdp=True shards over several processes and this is the only one: start it with torchrun "
            "--nproc-per-node N -m foveal train ..., or leave fsdp out (--no-fsdp)"
        )
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(f"batch_size={config.batch_size} does not divide by {accelerator.num_processes} processes")
    return accelerator


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the backbone's stages, in order: of a sequence its parts, else its ``blocks``, else the stage."""
    found: list[nn.Module] = []
    for stage in cast(Backbone, model.backbone).stages:
        found += stage if isinstance(stage, nn.Sequential) else getattr(stage, "blocks", (stage,))
    return found


def shard(trainee: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
    """Spread the parameters of ``trainee`` over all processes (FSDP2); it then lives on ``device``.

    Each block is gathered for its own forward and backward pass, and the rest of the model as one more unit.
    Parameters become DTensors; what ``forward`` computes, and the keys of the state, do not change.
    """
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)  # no loss writes into it
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in (*blocks, trainee):
        fully_shard(unit, mesh=mesh)
    trainee.to(device)  # buffers: they are not sharded


def whole(value: Tensor) -> Tensor:
    """All of a tensor, on its device, where each process may hold a shard: every process must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This process's shard, or all of what is not sharded; shares its memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def spread_like(value: Tensor, own: Tensor) -> Tensor:
    """``value``, whole, sharded as ``own`` is."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def whole_state(part: Any, kept: bool = True) -> dict[str, Any]:
    """The ``state_dict`` of ``part`` with whole tensors, on the CPU: the same for any number of processes.

    Every process must call this; where it is not ``kept``, the result is empty.
    """

    def gathered(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = whole(value.detach())
            return value.cpu() if kept else None
        if isinstance(value, Mapping):
            return {key: gathered(item) for key, item in value.items()}
        return [gathered(item) for item in value] if isinstance(value, list) else value

    state = gathered(part.state_dict())
    return state if kept else {}


def load_whole_state(part: Any, state: Mapping[str, Any]) -> None:
    """Put ``part`` where :func:`whole_state` found one, with whatever number of processes."""
    if isinstance(part, torch.optim.Optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        spread = {
            number: {
                key: spread_like(value, own) if isinstance(value, Tensor) and value.shape == own.shape else value
                for key, value in state["state"][number].items()
            }
            for number, own in enumerate(parameters)
            if number in state["state"]
        }
        part.load_state_dict({**state, "state": spread})
    elif isinstance(part, nn.Module):
        own = part.state_dict()
        part.load_state_dict(
            {key: spread_like(value, own[key]) if key in own else value for key, value in state.items()}
        )
    else:
        part.load_state_dict(state)


def reduce_sum(value: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum over all processes."""
    return cast(Tensor, accelerator.reduce(value, "sum")) if accelerator.num_processes > 1 else value


def gather_dict(found: dict[int, Any], accelerator: Accelerator) -> dict[int, Any]:
    """What all processes found, together."""
    if accelerator.num_processes == 1:
        return found
    return {key: value for each in gather_object([found]) for key, value in each.items()}


def reduce_max(value: int, accelerator: Accelerator) -> int:
    """The largest value that any process has."""
    if accelerator.num_processes == 1:
        return value
    found = torch.tensor(value, device=accelerator.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
