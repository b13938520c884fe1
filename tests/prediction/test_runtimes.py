"""Which runtime opens a reference, with which device and type; a runtime is one entry of a list."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal import assets
from foveal.errors import ConfigError, InputError
from foveal.info import ModelInfo, Preprocess, info_of
from foveal.prediction import runtimes, torch_runner
from foveal.prediction.predictor import Predictor
from foveal.prediction.runner import Opened, Runtime
from foveal.prediction.runtimes import choose
from foveal.prediction.tiles import tiled_logits
from foveal.prediction.torch_runner import TorchRunner
from helpers.narrow import Plain

BUNDLED = "efficientvit_b0.camvid"
ONNX, PLAN = assets.path(BUNDLED, ".onnx"), assets.path(BUNDLED, ".foveal")


@pytest.mark.parametrize(
    ("ref", "options", "name", "target"),
    [
        (BUNDLED, {}, "native", str(PLAN)),
        (BUNDLED, {"device": "cpu", "dtype": "float32"}, "native", str(PLAN)),
        (BUNDLED, {"runtime": "native"}, "native", str(PLAN)),
        ("some/x.safetensors", {"runtime": "native"}, "native", "some/x.safetensors"),
        ("some/x.foveal", {}, "native", "some/x.foveal"),
        (BUNDLED, {"runtime": "onnxruntime"}, "onnxruntime", str(ONNX)),
        (BUNDLED, {"runtime": "torch"}, "torch", BUNDLED),
        (BUNDLED, {"device": "cuda:1"}, "torch", BUNDLED),
        (BUNDLED, {"dtype": "bfloat16"}, "torch", BUNDLED),
        (BUNDLED, {"dtype": "bfloat16", "runtime": "native"}, "native", str(PLAN)),
        ("some/x.foveal", {"dtype": "bfloat16"}, "native", "some/x.foveal"),
        ("some/x.onnx", {}, "onnxruntime", "some/x.onnx"),
        ("some/x.safetensors", {}, "torch", "some/x.safetensors"),
        ("owner/name", {"dtype": "float16"}, "torch", "owner/name"),
    ],
)
def test_choice(ref: str, options: dict[str, str], name: str, target: str) -> None:
    runtime, opened = choose(ref, **options)
    assert (runtime.name, opened) == (name, target)


@pytest.mark.parametrize(
    ("ref", "options", "message"),
    [
        ("x.pt", {"runtime": "troch"}, "unknown runtime 'troch'; did you mean 'torch'?"),
        ("x.pt", {"dtype": "float8"}, "unknown dtype 'float8'; did you mean 'float32'?"),
        ("bicubic.x2", {"dtype": "float8"}, "unknown dtype 'float8'"),
        ("x.pt", {"runtime": "onnxruntime"}, r"x\.pt: onnxruntime runs \.onnx files: export this model first"),
        ("x.onnx", {"runtime": "torch"}, r"x\.onnx: torch runs checkpoints, not exported files: give the checkpoint"),
        ("x.onnx", {"device": "cuda"}, "onnxruntime runs on cpu in float32, not with device='cuda': leave it out"),
        (BUNDLED, {"runtime": "onnxruntime", "dtype": "float16"}, "runs on cpu in float32, not with dtype='float16'"),
        (BUNDLED, {"threads": 0}, "threads=0: give 1 or more"),
    ],
)
def test_impossible_choices_are_one_line(ref: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        foveal.load(ref, **options)
    assert "\n" not in str(caught.value)


def test_a_device_is_checked_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runner, "load_model", lambda ref: pytest.fail("the device comes first"))
    with pytest.raises(InputError, match=r"device 'gpu9' cannot be used: .*; this machine has cpu"):
        foveal.load("efficientvit_b1.cityscapes", device="gpu9")


def test_threads_reach_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = foveal.load(BUNDLED, threads=1).runner
    assert runner.engine.threads == 1
    runner = foveal.load(BUNDLED, runtime="onnxruntime", threads=1).runner
    assert runner.network.session.get_session_options().intra_op_num_threads == 1
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    foveal.load(BUNDLED, runtime="torch", device="cpu", threads=3)
    foveal.load(BUNDLED, runtime="torch", device="cpu")
    assert numbers == [3]


def test_a_runtime_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up runtime for files that end in .toy, with a device of its own."""
    info = ModelInfo("toy", "classify", num_classes=2, preprocess=Preprocess(size=(32, 32)))

    def open_toy(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
        assert (ref, dtype, threads) == ("some.toy", "auto", None)
        return Opened(lambda batch: batch.mean((2, 3))[:, :2], info, device)

    toy = Runtime("toy", (".toy",), ("npu",), ("float32",), open_toy)
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", toy)
    predictor = foveal.load(Path("some.toy"), device="npu:0")
    assert predictor.runtime == "toy on npu:0: it runs .toy files"
    assert len(predictor(np.zeros((40, 50, 3), np.uint8)).top(2)) == 2
    with pytest.raises(ConfigError, match="toy runs on npu in float32, not with device='cpu'"):
        foveal.load("some.toy", device="cpu")
    with pytest.raises(ConfigError, match=r"toy runs \.toy files: export"):
        foveal.load("some.pt", runtime="toy")


def test_a_backbone_gives_no_result() -> None:
    net = foveal.create_model("efficientvit_b0", features_only=True)
    predictor = Predictor(TorchRunner(net), info_of(net), "torch")
    with pytest.raises(ConfigError, match="efficientvit_b0 is for 'features', which gives no result"):
        predictor(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (150, 203)])
def test_blended_tiles_of_a_local_network_are_the_whole(size: tuple[int, int]) -> None:
    """A network without a receptive field: every tile gives what the whole image would, so blending changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)

    def network(window: np.ndarray) -> np.ndarray:
        padded = np.pad(window, ((0, -window.shape[0] % 4), (0, -window.shape[1] % 4), (0, 0)), mode="edge")
        return padded[::4, ::4].transpose(2, 0, 1).astype(np.float32)

    found = tiled_logits(network, image, tile=64, overlap=21, stride=4)
    np.testing.assert_allclose(found, network(image), rtol=1e-5)


def test_openvino_networks_can_be_freed_in_any_thread(tmp_path: Path) -> None:
    """A signal after that does not end the process."""
    pytest.importorskip("openvino")
    path = foveal.export(Plain(), "openvino", output=tmp_path / "plain.xml", size=(64, 64)).path
    code = f"""
        import os, signal, threading
        import numpy as np
        import foveal

        signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
        predictors = [foveal.load({str(path)!r})]
        predictors[0](np.zeros((64, 64, 3), np.uint8))
        thread = threading.Thread(target=predictors.clear)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        print("alive")
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "handled\nalive\n"), process.stderr
