"""Graphs of the package, which take their weights from a checkpoint: the base install runs them without torch."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import foveal
from foveal import assets
from foveal.errors import CheckpointError
from foveal.models.registry import published
from foveal.prediction import native_graphs, runtimes
from foveal.prediction.onnx_graphs import fill_graph, find_weights, graph_file
from foveal.prediction.runtimes import choose
from foveal.weights.arrays import read_arrays

STREET = assets.path("street", ".jpg")
PROMPT, CLASSIFY = assets.DEFAULTS["prompt"], assets.DEFAULTS["classify"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "native"])
def test_masks_and_embeddings_are_those_of_torch(runtime: str) -> None:
    """Computed in float32 from the same weights; an embedding of one runtime continues in the other."""
    expected, found = (foveal.load(PROMPT, runtime=name).encode(STREET) for name in ("torch", runtime))
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4)
    assert found.runner.encoder_id == expected.runner.encoder_id
    prompt = {"points": [[860, 560]], "labels": [1], "boxes": [714, 443, 1013, 669]}
    one, other = expected.prompt(**prompt), found.prompt(**prompt)
    np.testing.assert_allclose(other.iou, one.iou, atol=1e-4)
    assert (other.masks & one.masks).sum() >= 0.9999 * (other.masks | one.masks).sum()
    again = [each.prompt(**prompt, masks=one.low_res[0, 1], multimask=False) for each in (expected, found)]
    assert (again[0].best & again[1].best).sum() >= 0.9999 * (again[0].best | again[1].best).sum()


@pytest.mark.parametrize("ref", [PROMPT, CLASSIFY])
def test_runtimes_without_torch_come_first(ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native engine, then ONNX Runtime, whether torch is installed or not; torch if a GPU is to be used."""
    assert choose(ref, "onnxruntime")[1] == str(graph_file(ref))
    for installed in (True, False):
        monkeypatch.setattr(runtimes, "torch_installed", lambda installed=installed: installed)
        assert choose(ref) == (runtimes.NATIVE, str(native_graphs.graph_file(ref)))
    monkeypatch.setitem(runtimes.RUNTIMES, "native", replace(runtimes.NATIVE, why_not=lambda: "no compiler"))
    assert choose(ref) == choose(ref, "onnxruntime")
    monkeypatch.setattr(runtimes, "torch_installed", lambda: True)
    monkeypatch.setattr(runtimes, "torch_gpu", lambda: "cuda")
    assert choose(ref)[0].name == "torch"


def test_the_package_knows_what_the_table_of_weights_says() -> None:
    for ref, (package, file, sha256, licence) in assets.PACKAGED.items():
        family, _, entry = published()[ref]
        assert (package, file, sha256) == (entry.package, entry.file, entry.sha256)
        assert licence == (entry.licence or family.licence)
        assert graph_file(ref) is not None


def test_a_classifier_in_the_folder_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file has other keys than Foveal's; a folder of weights may hold either."""
    torch.manual_seed(0)
    model = foveal.create_model("tf_efficientnet_lite0").eval()
    save_file(model.state_dict(), tmp_path / f"{CLASSIFY}.safetensors")
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    predictor = foveal.load(CLASSIFY, runtime="onnxruntime")
    image = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(predictor.runner(image), expected, atol=1e-4 * np.abs(expected).max())
    assert len(predictor(STREET).names) == 1000
    save_file({"other": torch.zeros(2)}, tmp_path / f"{CLASSIFY}.safetensors")
    with pytest.raises(CheckpointError, match="the weights lack _"):
        foveal.load(CLASSIFY, runtime="onnxruntime")


def test_a_graph_without_its_weights_is_no_network() -> None:
    graph = graph_file(PROMPT)
    assert graph is not None
    content = fill_graph(graph, find_weights(graph), "graph")
    assert len(content) > 17_000_000 > 100 * graph.stat().st_size
    with pytest.raises(CheckpointError, match="no such file"):
        foveal.load(str(graph) + ".missing")


def _old_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_files_of_old_torch_are_read_as_torch_reads_them() -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "a": base,
        "b": base.permute(2, 0, 1),
        "c": torch.tensor(3),
        "d": base[1, 1:].half(),
        "e": torch.zeros(0, 2),
    }
    found = read_arrays(_old_file(state), "file")
    assert list(found) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(found[key], tensor.numpy())
        assert found[key].shape == tuple(tensor.shape)


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", pickle.dumps(_Code()), _old_file({"a": torch.ones(4)})[:-8], b"\x80\x02N.",
        _old_file({"a": torch.ones(4)}).replace(b"FloatStorage", b"FakeStorages"),
    ],
)  # fmt: skip
def test_other_files_are_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"^file: cannot be read without torch \([^\n]*\): pip install"):
        read_arrays(content, "file")
    assert not capsys.readouterr().out
