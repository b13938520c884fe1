"""SAM's mask decoder, computed with fewer multiplications than its formulas, equals those formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveal.tasks import mask_decoder
from foveal.tasks.mask_decoder import EMBED_DIM, MaskDecoder

GRID = 64  # positions of an embedding along a side


def use_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the decoder compute its formulas: all positions are projected, convolutions are convolutions."""

    def pixels(self: MaskDecoder, place: Tensor, weights: Tensor) -> Tensor:
        fine = self.output_upscaling(place.mT.unflatten(2, (GRID, GRID)))
        masks = (weights @ fine.flatten(2)).unflatten(2, fine.shape[-2:])
        blocks = masks.unflatten(3, (GRID, 4)).unflatten(2, (GRID, 4)).permute(0, 2, 4, 3, 5, 1)  # (P, y, x, 4, 4, M)
        halves = blocks.unflatten(4, (2, 2)).unflatten(3, (2, 2)).transpose(4, 5)
        return halves.reshape(len(place), GRID * GRID, 16, -1)

    monkeypatch.setattr(mask_decoder._Attention, "to_image", mask_decoder._Attention.forward)
    monkeypatch.setattr(mask_decoder._Attention, "from_image", mask_decoder._Attention.forward)
    monkeypatch.setattr(MaskDecoder, "_pixels", pixels)


def answers(
    decoder: MaskDecoder,
    prompts: int,
    tokens: int,
    own_dense: bool,
    dtype: torch.dtype = torch.float64,
    least_iou: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=dtype)

    grid = (EMBED_DIM, GRID, GRID)
    with torch.no_grad():
        return decoder.to(dtype).all_masks(
            normal(1, *grid),
            normal(1, *grid),
            normal(prompts, tokens, EMBED_DIM),
            normal(prompts if own_dense else 1, *grid),
            least_iou,
        )


@pytest.mark.parametrize("own_dense", [False, True])
@pytest.mark.parametrize(("prompts", "tokens"), [(1, 2), (3, 2), (1, 13), (2, 13)])
def test_it_equals_its_formulas(prompts: int, tokens: int, own_dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt and several, few tokens and many, one image for all prompts and one per prompt."""
    torch.manual_seed(0)
    decoder = MaskDecoder()
    found = answers(decoder, prompts, tokens, own_dense)
    use_formulas(monkeypatch)
    for a, b in zip(found, answers(decoder, prompts, tokens, own_dense), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_masks_below_the_least_iou_are_not_computed() -> None:
    """The other masks and all predicted IoUs are the same."""
    torch.manual_seed(0)
    decoder = MaskDecoder()
    masks, iou = answers(decoder, 3, 2, False)
    promised = iou[:, 1:].amax(1)
    for least in (promised.median().item(), promised.min().item() - 1, promised.max().item()):
        found, expected = answers(decoder, 3, 2, False, least_iou=least)
        assert expected.equal(iou)
        drawn = promised > least
        torch.testing.assert_close(found[drawn], masks[drawn], rtol=1e-12, atol=1e-12)
        assert found[~drawn].eq(mask_decoder.EMPTY).all()


def gmacs(prompts: int, tokens: int) -> float:
    with FlopCounterMode(display=False) as counter:
        answers(MaskDecoder(), prompts, tokens, False, torch.float32)
    return counter.get_total_flops() / 2e9 / prompts


def test_it_costs_less_than_its_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer multiplications for one click and for several clicks, and not more for many tokens."""
    click, clicks, many = gmacs(1, 2), gmacs(4, 2), gmacs(2, 20)
    use_formulas(monkeypatch)
    assert click < 0.6 * gmacs(1, 2) < 1.1
    assert clicks < 0.65 * gmacs(4, 2)
    assert many < 1.05 * gmacs(2, 20)
