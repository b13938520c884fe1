"""``foveal.optimize``: the native engine computes the network of a torch model, and torch where it cannot."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import foveal
from engine.test_models import images
from foveal.errors import InputError
from helpers.covered import CASES, covered


def optimised(case: str) -> tuple[Any, Any]:
    model = covered(case)
    return model, foveal.optimize(model)


def by_engine(fast: Any) -> bool:
    """Whether the engine has computed anything."""
    return hasattr(fast, "network") and fast.network.engine is not None


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(64, 96), (53, 75)])
def test_outputs_are_those_of_the_model(case: str, size: tuple[int, int]) -> None:
    model, fast = optimised(case)
    x = torch.from_numpy(images(2, *size))
    with torch.inference_mode():
        assert close(fast(x), model.eval()(x))
    assert by_engine(fast)
    assert "computed as a whole by the native engine" in fast.explain()


def test_copies_and_pickles_compute_the_same() -> None:
    _, fast = optimised(CASES[0])
    x = torch.from_numpy(images(1, 64, 64))
    expected = fast(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not by_engine(other)
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        assert by_engine(other)


def test_torch_computes_where_the_engine_cannot() -> None:
    """Gradients, hooks, traces, too small images."""
    model, fast = optimised(CASES[0])
    x = torch.from_numpy(images(2, 64, 64))
    with torch.no_grad():
        expected = model.eval()(x)
    wanted = x.clone().requires_grad_()
    fast(wanted).sum().backward()
    assert wanted.grad is not None
    assert wanted.grad.abs().max() > 0
    assert close(torch.export.export(fast, (x,)).module()(x), expected)
    seen: list[str] = []
    hook = next(iter(fast.backbone.children())).register_forward_hook(lambda *_: seen.append("called"))
    assert close(fast(x), expected)
    assert seen
    assert not by_engine(fast)
    hook.remove()
    with pytest.raises(InputError, match="smaller than"):
        fast(x[..., :2, :2])
    with pytest.raises(RuntimeError):
        fast(x[:, :2])
    assert close(fast(x), expected)
    assert by_engine(fast)


def test_a_model_that_the_engine_does_not_cover_says_so() -> None:
    fast: Any = foveal.optimize(foveal.create_model("edifice_efficient_vit"))
    assert "left to torch by the native engine" in fast.explain()
    assert not by_engine(fast)
