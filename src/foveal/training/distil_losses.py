"""Distances between the outputs, or the feature maps, of a student and of its teacher.

Distances of outputs take ``(student, teacher, temperature, valid)``:

* student, teacher: ``(B, C, ...)`` of the same shape, any floating type; 16-bit values are converted to float32. The
  positions after the channels are pixels, or none for a classifier.
* temperature: divisor of both logits, above 0.
* valid: ``(B, ...)`` bool, the positions that count; None: all of them.

They return a scalar, 0 where both are equal and where no position counts. No gradient reaches the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.registry import FeatureInfo
from .distil_terms import DistilName

Distance = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
_FAR = -1e4  # logit of positions that do not count, so that their share of a softmax is 0


def logits(student: Tensor, teacher: Tensor, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of the probabilities at a temperature, times its square, the mean over positions.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, where the square
    keeps the size of the gradients; their cross entropy has the same gradients.
    """
    student, teacher = _exact(student, teacher)
    ours, theirs = (x.div(temperature).log_softmax(1) for x in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    return temperature**2 * _mean(divergence, valid)


def hard(student: Tensor, teacher: Tensor, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Cross entropy with the teacher's most probable class as label, the mean over positions.

    Source: Touvron et al., "Training data-efficient image transformers", 2021, section 4. Any temperature gives the
    same; equal outputs do not give 0.
    """
    student, teacher = _exact(student, teacher)
    return _mean(F.cross_entropy(student, teacher.argmax(1), reduction="none"), valid)


def channel(student: Tensor, teacher: Tensor, temperature: float = 4.0, valid: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of each channel's softmax over positions, times the temperature's square.

    The mean over channels and images. Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction",
    ICCV 2021, equations 5 and 6, where the temperature is 4 and the factor for logits 3.
    """
    student, teacher = _exact(student, teacher)
    if valid is not None:
        student, teacher = (x.masked_fill(~valid[:, None], temperature * _FAR) for x in (student, teacher))
    ours, theirs = (x.flatten(2).div(temperature).log_softmax(2) for x in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean()


def output(student: Tensor, teacher: Tensor, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Mean absolute difference. The temperature has no meaning here."""
    student, teacher = _exact(student, teacher)
    return _mean((student - teacher).abs().mean(1), valid)


#: The distances of outputs by the name of the term.
DISTANCES: Mapping[DistilName, Distance] = {"logits": logits, "hard": hard, "channel": channel, "output": output}


def features(projected: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared error between projected maps and the teacher's, whose channels are normalised at each position.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, section 3.1, with the teacher's maps brought to
    mean 0 and variance 1 over the channels (Wei et al., arXiv 2205.14141, section 3), so that one factor fits all
    teachers.

    Args:
        projected: maps of the student, ``(B, C, h, w)`` each.
        wanted: the teacher's maps of the same sizes.
    """
    pairs = (_exact(ours, theirs) for ours, theirs in zip(projected, wanted, strict=True))
    return torch.stack([F.mse_loss(ours, _normalised(theirs)) for ours, theirs in pairs]).mean()


def _normalised(maps: Tensor) -> Tensor:
    return F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)


def map_pairs(student: Sequence[FeatureInfo], teacher: Sequence[FeatureInfo], last: int = 3) -> list[tuple[int, int]]:
    """Which maps are compared: each of the student's coarsest ``last`` with the teacher's of the nearest stride.

    Of two that are equally near, the finer one. Both lists are finest first, and the result has their indices.
    """

    def nearest(stride: int) -> int:
        return min(
            range(len(teacher)), key=lambda i: (max(stride, teacher[i].stride) / min(stride, teacher[i].stride), i)
        )

    first = max(0, len(student) - last)
    return [(index, nearest(student[index].stride)) for index in range(first, len(student))]


def sample_maps(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read maps between their positions, bilinearly; outside, the nearest position counts.

    Args:
        maps: ``(B, C, h, w)``.
        y: rows, ``(B, H, W)``, where 0 is the middle of the first row.
        x: columns, the same.

    Returns:
        ``(B, C, H, W)`` in the type of ``maps``.
    """
    height, width = maps.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1).to(maps.dtype)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def on_grid(maps: Tensor, stride: int, size: tuple[int, int], wanted: int) -> Tensor:
    """Read maps of a stride at the positions of another stride on the same image: ``(B, C, *size)``, at least float32.

    Args:
        maps: ``(B, C, h, w)``, a position for every ``stride`` pixels.
        stride: of the maps.
        size: (H, W) of the result.
        wanted: stride of the result.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if stride == wanted and maps.shape[-2:] == size:
        return maps
    y, x = ((torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) * wanted / stride - 0.5 for n in size)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return sample_maps(maps, rows.expand(len(maps), -1, -1), columns.expand(len(maps), -1, -1))


def _exact(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    return student, teacher.detach().to(student.dtype)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return values.mean()
    return (values * valid).sum() / valid.sum().clamp(min=1)
