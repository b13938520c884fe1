"""Where and how a model runs: these options of the verbs that predict reach it, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal.evaluation.evaluate as evaluating
import foveal.prediction.load as loading
from foveal import assets
from foveal.batch.run import Request, _gpus, _setups
from foveal.errors import ConfigError
from foveal.factory.create import create_model
from foveal.images.reading import read_image
from foveal.images.video import write_video
from foveal.info import info_of
from foveal.weights.checkpoints import save_checkpoint
from helpers.commands import here
from helpers.narrow import registered

SEGMENTER = "efficientvit_b0.camvid"
#: Each verb that loads a model in this process, with what it needs; PHOTO stands for an image, CLIP for a video.
VERBS = {
    "segment": ["PHOTO"],
    "classify": ["PHOTO"],
    "regress": ["PHOTO", "--model", SEGMENTER],
    "predict": ["PHOTO", "--model", SEGMENTER],
    "upscale": ["PHOTO"],
    "prompt": ["PHOTO", "--point", "3,4"],
    "video": ["CLIP", "out.avi"],
    "evaluate": [SEGMENTER, "data"],
    "demo": [],
}


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small image in the working directory."""
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:48, :64]
    Image.fromarray(np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8)).save("photo.png")
    return Path("photo.png")


def words_of(verb: str, photo: Path) -> list[str]:
    """What the verb needs; a video is written if it needs one."""
    clip = Path("clip.avi")
    if "CLIP" in VERBS[verb]:
        write_video(clip, [read_image(photo)] * 2, 10)
    return [{"PHOTO": str(photo), "CLIP": str(clip)}.get(word, word) for word in VERBS[verb]]


def save_model(path: Path, name: str, task: str, **options: Any) -> Path:
    model = create_model(name, task, **options)
    save_checkpoint(path, model.state_dict(), info_of(model))
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_pass_them_on(
    verb: str, photo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def load(ref: str, **options: Any) -> None:
        calls.append(options)
        raise ConfigError("far enough")

    for module in (loading, evaluating):
        monkeypatch.setattr(module, "load", load)
    words = words_of(verb, photo)
    options = ["--device", "cuda:1", "--dtype", "bfloat16", "--runtime", "torch", "--threads", "3"]
    done = here(capfd, verb, *words, *options)
    assert (done.returncode, done.stderr) == (2, "foveal: far enough\n")
    here(capfd, verb, *words)
    default = {"device": "auto", "dtype": "auto", "runtime": "auto", "threads": None}
    assert calls == [{"device": "cuda:1", "dtype": "bfloat16", "runtime": "torch", "threads": 3}, default]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "classify"])
def test_a_device_that_is_not_there(verb: str, photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = words_of(verb, photo)
    done = here(capfd, verb, *words, "--device", "gpu9")
    assert done.returncode == 2
    assert "device 'gpu9' cannot be used" in done.stderr
    assert done.stderr.count("\n") == 1
    done = here(capfd, verb, *words, "--dtype", "float23")
    assert done.returncode == 2
    assert done.stderr == "foveal: unknown dtype 'float23'; did you mean 'float32'?\n"


def test_a_runtime_without_the_device(photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = assets.path(SEGMENTER, ".onnx")
    for option, value in (("device", "cuda"), ("dtype", "float16")):
        done = here(capfd, "segment", photo, "--model", file, f"--{option}", value)
        assert done.returncode == 2
        assert f"onnxruntime runs on cpu in float32, not with {option}='{value}'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_models_run_in_the_type(photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Segmentation, classification, upscaling and prompting in bfloat16, in this process."""
    done = here(capfd, "segment", photo, "--device", "cpu", "--dtype", "bfloat16", "--json")
    assert json.loads(done.stdout)["runtime"].startswith("torch on cpu, bfloat16:"), done.stderr
    classifier = save_model(tmp_path / "classifier.safetensors", "efficientvit_b0", "classify", num_classes=3)
    done = here(capfd, "classify", photo, "--model", classifier, "--dtype", "bfloat16", "--json")
    assert len(json.loads(done.stdout)["images"][0]["classes"]) == 3, done.stderr
    done = here(capfd, "upscale", photo, "--dtype", "bfloat16", "--json")
    assert json.loads(done.stdout)["runtime"].startswith("torch on cpu, bfloat16:"), done.stderr
    with registered() as narrow:
        prompter = save_model(tmp_path / "prompter.safetensors", narrow, "prompt")
        done = here(capfd, "prompt", photo, "--point", "30,20", "--model", prompter, "--dtype", "bfloat16", "--json")
    assert json.loads(done.stdout)["runtime"].startswith("torch on cpu, bfloat16:"), done.stderr


def test_predict_dispatches_by_task(photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Classification writes nothing, so an image in the working directory is not in its way; a backbone is refused."""
    classifier = save_model(tmp_path / "classifier.safetensors", "efficientvit_b0", "classify", num_classes=3)
    for verb in ("classify", "predict"):
        done = here(capfd, verb, photo, "--model", classifier, "--json")
        assert len(json.loads(done.stdout)["images"]) == 1, done.stderr
    net = create_model("efficientvit_b0", features_only=True)
    save_checkpoint(tmp_path / "net.safetensors", net.state_dict(), info_of(net))
    done = here(capfd, "predict", photo, "--model", tmp_path / "net.safetensors")
    assert done.returncode == 2
    assert "is for 'features', which gives no result for an image" in done.stderr
    done = here(capfd, "segment", photo, "--model", tmp_path / "net.safetensors")
    assert (done.returncode, "is for 'features'; give a model for 'segment'" in done.stderr) == (2, True)


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_batch_has_one_process_on_a_gpu_that_is_named(device: str) -> None:
    """Not one for each core, as on the CPU. Whether the GPU is there is seen when the model is loaded."""
    request = Request("in", "out", SEGMENTER, engine={"device": device})
    assert _gpus(request) == [device]
    assert [setup.engine["device"] for setup in _setups(request)] == [device]
    assert _gpus(Request("in", "out", SEGMENTER, engine={"device": "cpu"})) == []
