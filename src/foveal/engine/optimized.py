"""``foveal.optimize``: a torch model whose network the native engine computes, and torch where that cannot be."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DependencyError, InputError
from ..layers import optimize as packing
from ..layers.packed import can_run
from ..layers.resample import pad_to_multiple
from ..tasks.classify import ClassificationModel
from ..tasks.segment import SegmentationModel
from ..tasks.upscale import UpscaleModel
from .engine import Engine
from .library import available
from .lowering import NotCoveredError, make_plan
from .plan import Plan


def optimize(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: the native engine computes it, or torch with packed layers.

    For float32 on a CPU, the :class:`engine <foveal.engine.engine.Engine>` computes the whole network of a model for
    classification, segmentation or super-resolution that it covers (docs/engine.md), with as many threads as torch has.
    For the rest, and wherever a part of the model is called by itself, torch computes: batch norms are folded, branches
    fused, convolutions run channels last with weights in the layout of oneDNN and with the activation applied to each
    block of results, where that is faster on this processor; linear layers on AMD's processors with AVX-512; and the
    scales of EfficientViT's attention are not concatenated. Any size of input fits. On other devices, in other dtypes,
    under autocast, while a graph is traced, with hooks, and where gradients are needed the copy computes as the model
    with folded norms does. It holds its weights up to three times after its first run.

    The outputs equal the model's within rounding: in float32 1e-5 of the largest unless the model itself is further
    from its float64 result, in float64 1e-10. The copy keeps the dtype, device and description, is in evaluation mode,
    and its parameters take no gradients. Load weights before you optimise: the copy has other keys in its state dict,
    and no checkpoint fits it. Its method ``explain()`` returns what was done to the network and to each kind of layer,
    what was not, and why.

    Args:
        model: a model from :func:`foveal.create_model` or :func:`foveal.load_model`; it is not changed.
    """
    fast: Any = packing.optimize(model)
    parameter = next(fast.parameters(), torch.empty(0))
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return fast
    kind, reason = _KINDS.get(type(model)), "it computes models for classification, segmentation, super-resolution"
    if kind is not None:
        try:
            plan = make_plan(model)
        except NotCoveredError as error:
            reason = str(error)
        else:
            usable, reason = available()
            if usable:
                fast.__class__ = kind
                fast.network = _Network(plan)
                fast.explain.add("network", "computed as a whole by the native engine; below: what torch computes else")
                return fast
    fast.explain.add("network", f"left to torch by the native engine: {reason}")
    return fast


class _Network:
    """A network that the engine computes; it is built at first use and for the number of threads that torch has."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.engine: Engine | None = None

    def __call__(self, model: Any, x: Tensor) -> Tensor | None:
        """The result for ``(B, C, H, W)``, or None where torch has to compute it."""
        if not (type(x) is Tensor and x.dim() == 4 and can_run(x, next(model.parameters()))):
            return None
        if min(x.shape[-2:]) < model.backbone.min_size or _is_hooked(model):
            return None
        threads = torch.get_num_threads()
        with suppress(InputError, DependencyError):  # torch names the limits of the model itself
            if self.engine is None or self.engine.threads != threads:
                self.engine = Engine(self.plan, threads)
            return torch.from_numpy(self.engine(x.detach().numpy()))
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "engine": None}


def _is_hooked(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class OptimizedClassifier(ClassificationModel):
    """A classifier that the native engine computes."""

    network: _Network

    def forward(self, x: Tensor) -> Tensor:
        found = self.network(self, x)
        return super().forward(x) if found is None else found


class OptimizedSegmenter(SegmentationModel):
    """A segmentation model whose logits before upsampling the native engine computes."""

    network: _Network

    def padded(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, self.multiple_of)
        found = self.network(self, x)
        return super().padded(x) if found is None else found


class OptimizedUpscaler(UpscaleModel):
    """A model for super-resolution that the native engine computes."""

    network: _Network

    def forward(self, x: Tensor) -> Tensor:
        found = self.network(self, x)
        return super().forward(x) if found is None else found


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    ClassificationModel: OptimizedClassifier,
    SegmentationModel: OptimizedSegmenter,
    UpscaleModel: OptimizedUpscaler,
}
