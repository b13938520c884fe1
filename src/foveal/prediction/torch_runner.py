"""Run models with torch on numpy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutOfMemoryError, is_out_of_memory
from ..factory.load_model import load_model
from ..info import info_of
from ..weights.references import find_local
from .devices import cpu_count, torch_installed, why_cpu
from .runner import DTYPES, Opened, Runner, Runtime

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..tasks.prompt import PromptModel

#: Prompts in one run of the decoder. On a CPU the intermediate results of a few prompts fit into the caches, and more
#: prompts take longer each; on a GPU more than 64 prompts need memory and gain no time.
_AT_ONCE_ON_CPU, _AT_ONCE = 4, 64


_ran = False  # whether a network ran in this process, so that torch has started its threads


@contextmanager
def _inference() -> Iterator[None]:
    """Run a network without gradients; what torch cannot do becomes an InputError.

    Raises:
        InputError: out of memory, a size that the network does not take, or a GPU in a forked process.
    """
    global _ran
    import torch

    _ran = True
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "forked subprocess" in reason:
            reason = "a forked process cannot use the GPU of its parent: start processes with 'spawn', or load it there"
        kind = OutOfMemoryError if is_out_of_memory(error) else InputError
        raise kind(f"the network cannot run: {reason}") from error


def _after_fork() -> None:
    """Run torch on one thread in a forked process, where its other threads do not exist: it would wait for them."""
    if _ran:
        import torch

        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class TorchRunner:
    """Run a torch model on numpy arrays; segmentation models return logits at their own stride, backbones a list."""

    def __init__(self, model: nn.Module, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        import torch

        self.model = model.eval().to(device=device, dtype=dtype or torch.float32)
        self.device, self.dtype = torch.device(device), dtype or torch.float32
        self.options = {"upsample": False} if hasattr(model, "stride") else {}

    def __call__(self, batch: NDArray[np.float32]) -> Any:
        import torch

        with _inference():
            x = torch.from_numpy(batch).to(device=self.device, dtype=self.dtype)
            output = self.model(x, **self.options)
            if isinstance(output, list):
                return [each.float().cpu().numpy() for each in output]
            return output.float().cpu().numpy()


class TorchPrompter:
    """Run a promptable torch model on numpy arrays; a :class:`~foveal.prediction.runner.PromptRunner`."""

    def __init__(self, model: PromptModel, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        import torch

        self.encoder_id = model.image_encoder.fingerprint()
        self.model: Any = model.eval().to(device=device, dtype=dtype or torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the model is; programs for SAM move it, see :attr:`foveal.SamPredictor.model`."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's parameters."""
        return self.model.prompt_encoder.no_mask_embed.weight.dtype

    @property
    def at_once(self) -> int:
        """See :attr:`foveal.prediction.runner.PromptRunner.at_once`."""
        return _AT_ONCE_ON_CPU if self.device.type == "cpu" else _AT_ONCE

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with _inference():
            return self.model.image_encoder(self._tensor(batch)).float().cpu().numpy()

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See :meth:`foveal.prediction.runner.PromptRunner.decode`."""
        import torch

        encoder = self.model.prompt_encoder
        with _inference():
            points, kinds = (torch.from_numpy(array).to(self.device) for array in (coords, labels))
            sparse = encoder.tokens(points, kinds)
            dense = encoder.dense(None if masks is None else self._tensor(masks))
            outputs = self.model.mask_decoder.all_masks(
                self._tensor(embedding), encoder.get_dense_pe(), sparse, dense, least_iou
            )
        low_res, iou = (output.float().cpu().numpy() for output in outputs)
        return low_res, iou

    def _tensor(self, array: NDArray[np.float32]) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(device=self.device, dtype=self.dtype)


def torch_runner(model: nn.Module, device: str = "cpu", dtype: torch.dtype | None = None) -> Runner:
    """The runner of a model of :func:`foveal.create_model`: promptable models have one of their own."""
    from ..tasks.prompt import PromptModel

    return (TorchPrompter if isinstance(model, PromptModel) else TorchRunner)(model, device, dtype)  # pyright: ignore


def open_with_torch(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Load the model that ``ref`` names, optimised for inference; see :attr:`foveal.prediction.runner.Runtime.open`.

    Raises:
        InputError: a device that this machine does not have.
        ConfigError, CheckpointError, DependencyError: as :func:`foveal.load`.
    """
    reason = ""
    if torch_installed():
        named, device = device, find_device(device)  # before anything is downloaded
        if named == "auto":
            reason = why_cpu("torch") if device == "cpu" else "GPU found"
    model = _load_image_model(ref)
    import torch

    from ..layers.optimize import optimize

    set_threads(threads)
    dtype = "float32" if dtype == "auto" else dtype
    runner = torch_runner(optimize(model), device, getattr(torch, dtype))
    return Opened(runner, info_of(model), f"{device}, {dtype}", reason)


def set_threads(threads: int | None) -> None:
    """Set torch's number of threads, which holds for the whole process.

    ``None`` leaves it as it is, for example as ``OMP_NUM_THREADS`` set it, unless this process may use fewer CPUs.
    """
    import torch

    if threads is None and torch.get_num_threads() > cpu_count():  # torch knows no quotas of control groups
        threads = cpu_count()
    if threads is not None:
        torch.set_num_threads(threads)


TORCH = Runtime("torch", suffixes=(), devices=(), dtypes=DTYPES[1:], open=open_with_torch)


def find_device(device: str) -> str:
    """The torch device of this name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        InputError: this machine does not have it.
    """
    import torch

    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return str(available or "cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if reason.startswith("Expected one of"):  # and a list of twenty kinds
            reason = "torch has no device of this name"
        names = f"cpu or {available}" if available else "cpu"
        raise InputError(f"device {device!r} cannot be used: {reason}; this machine has {names}") from error
    return device


def _load_image_model(ref: str) -> nn.Module:
    """Load a model, but refuse language models, by name before anything is downloaded."""
    if torch_installed() and find_local(ref) is None:
        from .. import models as models  # registers the families
        from ..models.registry import check_takes_images

        check_takes_images(ref.partition(".")[0])
    model = load_model(ref)  # says so if torch is missing
    from ..models.registry import check_takes_images

    check_takes_images(info_of(model).model)
    return model
