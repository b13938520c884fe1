"""Which models a service opens, and how it describes them."""

from __future__ import annotations

import pytest

import foveal
from foveal.errors import ConfigError
from foveal.info import ModelInfo, Preprocess
from foveal.serving import models
from foveal.serving.limits import Limits


def serve(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> dict[str, models.Served]:
    monkeypatch.setattr(models, "load", lambda ref, **engine: foveal.Predictor(lambda batch: batch, info, "numpy"))
    return models.open_models(["net"], 1, {})


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (ModelInfo("net", "regress", 1), "net is for 'regress', which the service does not serve"),
        (ModelInfo("net", "classify"), r"net has no classes \(num_classes=0\)"),
    ],
)
def test_models_that_are_not_served(info: ModelInfo, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(info, monkeypatch)


def test_the_images_of_a_model_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess((0.0,) * 4, (1.0,) * 4, dtype="uint16")
    served = serve(ModelInfo("net", "segment", 3, in_chans=4, preprocess=preprocess), monkeypatch)
    (model,) = models.describe(served, Limits())["models"]
    assert (model["in_chans"], model["dtype"]) == (4, "uint16")
