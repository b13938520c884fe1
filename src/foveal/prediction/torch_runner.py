"""Run models with torch, on arrays of numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .runner import Runner

if TYPE_CHECKING:
    import torch

    from ..tasks.prompt import PromptModel


class TorchRunner:
    """Run a torch model on numpy input; segmentation models at their own stride."""

    def __init__(self, model: torch.nn.Module, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        import torch

        self.model = model.eval().to(device=device, dtype=dtype or torch.float32)
        self.device, self.dtype = torch.device(device), dtype or torch.float32
        self.options = {"upsample": False} if hasattr(model, "stride") else {}

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(batch).to(device=self.device, dtype=self.dtype)
            return self.model(x, **self.options).float().cpu().numpy()


def torch_runner(model: torch.nn.Module, device: str = "cpu", dtype: torch.dtype | None = None) -> Runner:
    """What runs a model of ``create_model`` as its task needs it."""
    from ..tasks.prompt import PromptModel

    return (TorchPrompter if isinstance(model, PromptModel) else TorchRunner)(model, device, dtype)  # pyright: ignore


class TorchPrompter:
    """Run a promptable torch model on numpy arrays."""

    def __init__(self, model: PromptModel, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        import torch

        self.device, self.dtype = torch.device(device), dtype or torch.float32
        self.encoder_id = model.image_encoder.fingerprint()
        self.at_once = _AT_ONCE_ON_CPU if self.device.type == "cpu" else _AT_ONCE
        self.model: Any = model.eval().to(device=self.device, dtype=self.dtype)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self.model.image_encoder(self._tensor(batch)).float().cpu().numpy()

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See :meth:`PromptRunner.decode`."""
        import torch

        encoder = self.model.prompt_encoder
        with torch.inference_mode():
            places, kinds = (torch.from_numpy(array).to(self.device) for array in (coords, labels))
            sparse = encoder.tokens(places, kinds)
            dense = encoder.dense(None if masks is None else self._tensor(masks))
            found = self.model.mask_decoder.all_masks(
                self._tensor(embedding), encoder.get_dense_pe(), sparse, dense, least_iou
            )
        low_res, iou = (part.float().cpu().numpy() for part in found)
        return low_res, iou

    def _tensor(self, array: NDArray[np.float32]) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(device=self.device, dtype=self.dtype)


#: Prompts in one run of the decoder. A CPU's caches hold what is computed for a few, and more are slower; on a GPU more
#: than these need memory and gain no time.
_AT_ONCE_ON_CPU, _AT_ONCE = 4, 64
