"""Tuning a few parameters: what is trained, the small files on top of named weights, and what opens them."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import CheckpointError, ConfigError
from foveal.factory.create import create_and_report, create_model
from foveal.info import info_of
from foveal.layers.low_rank import LowRank, adapt, add_low_rank
from foveal.layers.prompt_tokens import PromptTokens
from foveal.training.config import TrainConfig
from foveal.training.step import Stepper
from foveal.training.tune_kinds import KINDS
from foveal.training.tuning import begin_tuning
from foveal.weights.checkpoints import read_state, save_checkpoint
from foveal.weights.tuned import DOWN, UP
from helpers.commands import Command
from helpers.narrow import registered
from helpers.runs import ONE_THREAD, SETTINGS, SMALL, furthest_weights, losses, same_weights, torchrun

QUICK: dict[str, Any] = {**SETTINGS, "epochs": 2, "ema_decay": 0.5, "lr": 1e-2}
OF_TASK: dict[str, dict[str, Any]] = {
    "segment": {},
    "classify": {"crop": [64, 64]},
    "prompt": {"prompts": 1, "clicks": 1, "batch_size": 2, "epochs": 1, "val_split": ""},
}


@pytest.fixture(scope="module", autouse=True)
def name() -> Iterator[str]:
    """A narrow architecture with attention."""
    with registered() as name:
        yield name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small data set for each task."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "objects" / kind / split).mkdir(parents=True)
        for index, label in enumerate(("cat", "dog", "cat", "dog")):
            photo = Image.fromarray(rng.integers(60 * (index % 2), 200, (64, 64, 3), np.uint8))
            (root / "photos" / split / label).mkdir(parents=True, exist_ok=True)
            photo.save(root / "photos" / split / label / f"{index}.png")
            if index >= 2:
                continue
            ids = np.zeros((64, 64), np.uint8)
            ids[8:40, 4:24] = 1
            photo.save(root / "objects" / "images" / split / f"{index}.png")
            Image.fromarray(ids).save(root / "objects" / "masks" / split / f"{index}.png")
    shapes = write_shapes(root / "shapes", train=8, val=2, size=(64, 64))
    return {"segment": shapes, "classify": root / "photos", "prompt": root / "objects"}


@pytest.fixture(scope="module")
def base(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights for each task, with statistics of norms that are not those of new ones."""
    folder = tmp_path_factory.mktemp("weights")
    return {task: save_model(folder / f"{task}.safetensors", name, task) for task in OF_TASK}


def save_model(path: Path, name: str, task: str, seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    model = create_model(name, task, num_classes=None if task == "prompt" else 5, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
    save_checkpoint(path, model.state_dict(), info_of(model).replace(licence="MIT"))
    return path


def train(data: Path, out: Path, name: str, weights: Path | str, **settings: Any) -> Path:
    rank = {"lora_rank": 2} if settings.get("tune") == "lora" else {}
    return foveal.train(data, out=out, model=name, weights=str(weights), **{**QUICK, **rank, **settings}).folder


@pytest.mark.parametrize("task", OF_TASK)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_for_each_task(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path, kind: str, task: str
) -> None:
    """The file has the tuned tensors alone; what is loaded has all others of the base weights, bit for bit."""
    run = train(data[task], tmp_path / "run", name, base[task], task=task, tune=kind, **OF_TASK[task])
    tuned, info = read_state(run / "last.safetensors")
    before, after = read_state(base[task])[0], foveal.load_model(run / "last.safetensors").state_dict()
    share = info.notes["tuned"] if info else {}
    assert info is not None
    assert (share["kind"], info.base["ref"], info.licence) == (kind, base[task].name, "MIT")
    assert 0 < share["trained"] < 0.6 * share["parameters"]
    assert (run / "last.safetensors").stat().st_size < 0.7 * base[task].stat().st_size
    changed = {key.removesuffix(DOWN).removesuffix(UP) for key in tuned}
    for key, value in after.items():
        if key not in changed and not key.endswith("num_batches_tracked"):
            assert value.equal(before[key.replace(".stage.", ".")]), key
    expected = {"norms": "norm.weight", "bias": "norm.bias", "lora": DOWN, "prompt": "tokens.keys"}
    in_backbone = [key for key in tuned if "backbone." in key]
    assert any(key.endswith(expected.get(kind, "")) for key in in_backbone) == (kind != "head")
    assert any("running_mean" in key for key in in_backbone) == (kind == "norms")
    prompts: dict[str, Any] = {"prompts": "boxes"} if task == "prompt" else {}
    assert not foveal.evaluate(run, data[task], split="val", **prompts).skipped


@pytest.mark.parametrize("kind", ["norms", "lora", "prompt"])
def test_a_resumed_run_is_the_same_to_the_bit(
    data: dict[str, Path],
    base: dict[str, Path],
    name: str,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM comes during the third of four steps."""
    settings = {"tune": kind, "bn_batches": 1, "optimizer": "muon"}
    whole = train(data["segment"], tmp_path / "whole", name, base["segment"], **settings)
    take, calls = Stepper.__call__, itertools.count(1)

    def stopped(*arguments: Any) -> float:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return take(*arguments)

    monkeypatch.setattr(Stepper, "__call__", stopped)
    with pytest.raises(SystemExit):
        train(data["segment"], tmp_path / "parts", name, base["segment"], **settings)
    foveal.train(data["segment"], out=tmp_path / "parts", resume=True)
    assert losses(whole) == losses(tmp_path / "parts")
    assert same_weights(whole, tmp_path / "parts")


def test_low_rank_additions_merge_to_what_was_trained(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """The merged weights are the sums with which training computed; their rank is the chosen one."""
    settings = {"tune": "lora", "lora_alpha": 6.0, "lora_where": "all", "lora_rank": 2}
    run = train(data["segment"], tmp_path / "run", name, base["segment"], **settings)
    tuned, before = (read_state(path)[0] for path in (run / "last.safetensors", base["segment"]))
    after = foveal.load_model(run / "last.safetensors").state_dict()
    additions = [key.removesuffix(DOWN) for key in tuned if key.endswith(DOWN)]
    assert len(additions) > 5
    for key in additions:
        down, up = tuned[key + DOWN], tuned[key + UP]
        assert after[key].equal(before[key] + (3 * (up @ down)).view(before[key].shape))
        assert torch.linalg.matrix_rank((after[key] - before[key]).flatten(1).double(), rtol=1e-4) == 2


def test_a_layer_with_an_addition_computes_with_the_sum() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 4, 3, groups=2), torch.randn(2, 6, 8, 8)
    before = layer(x)
    addition = adapt(layer, 2, 0.5)
    assert layer(x).equal(before)
    nn.init.normal_(addition.up)
    weight = layer.get_parameter("parametrizations.weight.original")
    assert layer.weight.equal(add_low_rank(weight, addition.down, addition.up, 0.5))
    layer(x).sum().backward()
    assert weight.grad is None
    assert addition.up.grad is not None
    assert addition.down.grad is not None


@pytest.mark.parametrize(
    ("where", "expected"),
    [("pointwise", {"pointwise"}), ("dense", {"pointwise", "dense"}), ("all", {"pointwise", "dense", "grouped"})],
)
def test_which_layers_get_additions(name: str, base: dict[str, Path], where: str, expected: set[str]) -> None:
    """A weight with no more numbers than its addition is trained itself."""
    config = TrainConfig(model=name, weights=str(base["segment"]), tune="lora", lora_rank=1, lora_where=where)
    model, report = create_and_report(name, "segment", weights=base["segment"])
    begin_tuning(model, config, report)
    found = set()
    for module in model.backbone.modules():  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(module, nn.Conv2d):
            added = [part for part in module.modules() if isinstance(part, LowRank)]
            grouped, wide = module.groups > 1, module.kernel_size != (1, 1)
            if added or module.weight.requires_grad:
                found.add("grouped" if grouped else "dense" if wide else "pointwise")
            for part in added:
                assert part.up.numel() + part.down.numel() < module.weight.numel()
    assert found == expected


def test_prompt_tokens_change_nothing_at_the_start_and_do_not_see_positions(base: dict[str, Path], name: str) -> None:
    plain = create_model(name, weights=base["segment"]).eval()
    prompted = create_model(name, weights=base["segment"], prompt_tokens=4).eval()
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        assert prompted(x).allclose(plain(x), atol=1e-6)
    torch.manual_seed(0)
    tokens = PromptTokens(6, 3)
    nn.init.normal_(tokens.values)
    x = torch.randn(2, 6, 5, 7)
    assert tokens(x)[:, :, 1:, 2:].allclose(tokens(x[:, :, 1:, 2:]), atol=1e-6)
    position = x[0, :, 2, 3]
    expected = position + tokens.values @ (tokens.keys @ position).softmax(0)
    assert tokens(x)[0, :, 2, 3].allclose(expected, atol=1e-6)


def test_other_settings_of_training_work_together_with_it(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path
) -> None:
    settings = {"tune": "lora", "freeze": ["stage2"], "layer_decay": 0.7, "grad_checkpointing": True, "accumulate": 2}
    run = train(data["segment"], tmp_path / "run", name, base["segment"], **settings, ema_decay=0.0, optimizer="sgd")
    before, after = read_state(base["segment"])[0], foveal.load_model(run).state_dict()
    for stage in ("stem", "stages.0", "stages.1"):
        part = [key for key in before if key.startswith(f"backbone.{stage}.") and not key.endswith("tracked")]
        assert part
        assert all(after[key].equal(before[key]) for key in part)
    assert any(not after[key].equal(before[key]) for key in before if key.startswith("backbone.stages.2."))
    exact = train(data["segment"], tmp_path / "exact", name, base["segment"], tune="prompt", precision="fp64")
    half = train(data["segment"], tmp_path / "half", name, base["segment"], tune="lora", precision="bf16")
    for folder in (exact, half):
        foveal.load_model(folder)


def test_images_of_other_channels(data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The first convolution, which is adapted to them, is neither trained nor that of the base weights: it is saved."""
    grey = tmp_path / "grey"
    shutil.copytree(data["segment"], grey)
    for split in ("train", "val"):
        for file in (grey / split).glob("*.png"):
            Image.open(file).convert("L").save(file)
    run = train(grey, tmp_path / "run", name, base["segment"], tune="bias", in_chans=1)
    assert "backbone.stem.0.conv.weight" in read_state(run / "last.safetensors")[0]
    assert foveal.load_model(run).state_dict()["backbone.stem.0.conv.weight"].shape[1] == 1


def test_from_another_task(data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The backbone comes from the base weights, the new head from the file."""
    for number, (of, task) in enumerate([("classify", "segment"), ("prompt", "segment"), ("segment", "prompt")]):
        settings = {"task": task, "tune": "prompt" if number else "bias", **OF_TASK[task], "epochs": 1}
        run = train(data[task], tmp_path / str(number), name, base[of], **settings)
        tuned, before = read_state(run / "last.safetensors")[0], read_state(base[of])[0]
        kept = next(key for key in before if key.endswith("stem.0.conv.weight"))
        assert not any(key.endswith("stem.0.conv.weight") for key in tuned)
        after = foveal.load_model(run).state_dict()
        assert after[next(key for key in after if key.endswith("stem.0.conv.weight"))].equal(before[kept])


def test_a_run_on_top_of_a_run(data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path) -> None:
    first = train(data["segment"], tmp_path / "first", name, base["segment"], tune="lora")
    second = train(data["segment"], tmp_path / "second", name, first, tune="bias")
    info = read_state(second / "last.safetensors")[1]
    assert info is not None
    assert (info.base["ref"], info.base["local"]) == ("first", True)
    before, after = (foveal.load_model(run).state_dict() for run in (first, second))
    assert after["backbone.stem.0.conv.weight"].equal(before["backbone.stem.0.conv.weight"])
    assert not after["backbone.stem.0.norm.bias"].equal(before["backbone.stem.0.norm.bias"])


def test_files_open_like_any_other(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path, cli: Command
) -> None:
    """Saved, converted and exported models are whole, and give what the small file gives."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for kind in ("lora", "prompt"):
        run = train(data["segment"], tmp_path / kind, name, base["segment"], tune=kind)
        expected = foveal.load(run, runtime="torch")(image)
        foveal.save_pretrained(run, tmp_path / f"{kind}-saved")
        assert cli("convert", run, tmp_path / f"{kind}.safetensors").returncode == 0
        foveal.export(run, to="onnx", output=tmp_path / f"{kind}.onnx")
        shutil.copy(run / "best.safetensors", tmp_path / f"{kind}-small.safetensors")
        shutil.copy(base["segment"], tmp_path)  # next to it
        for ref in ("-saved", ".safetensors", "-small.safetensors"):
            got = foveal.load(tmp_path / f"{kind}{ref}", runtime="torch")
            assert np.array_equal(got(image).mask, expected.mask)
            assert not got.info.base
        for runtime in ("onnxruntime", "torch"):
            ref = tmp_path / f"{kind}.onnx" if runtime == "onnxruntime" else run
            assert np.mean(foveal.load(ref, runtime=runtime)(image).mask == expected.mask) > 0.99
        assert not read_state(tmp_path / f"{kind}.safetensors")[1].base  # pyright: ignore[reportOptionalMemberAccess]
        shown = cli("models", run)
        assert shown.returncode == 0
        assert name in shown.stdout


def test_the_base_weights_must_be_there_and_be_the_same(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "base.safetensors"
    shutil.copy(base["segment"], weights)
    run = train(data["segment"], tmp_path / "run", name, weights, tune="lora", epochs=1)
    foveal.load_model(run)
    small = tmp_path / "alone" / "small.safetensors"
    small.parent.mkdir()
    shutil.copy(run / "best.safetensors", small)
    with pytest.raises(CheckpointError, match=r"small.safetensors is tuned on top of 'base.safetensors'"):
        foveal.load_model(small)
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path / "weights"))
    foveal.load_model(small)
    save_model(weights, name, "segment", seed=1)
    for ref in (small, run):
        with pytest.raises(CheckpointError, match=r"tuned on other weights than 'base.safetensors' is here"):
            foveal.load_model(ref)
    with pytest.raises(CheckpointError, match=r"not the weights that the run began with"):
        foveal.train(data["segment"], out=run, resume=True, new_phase=True, epochs=2)
    state, info = read_state(base["segment"])
    assert info is not None
    save_checkpoint(weights, state, info.replace(tag="renamed"))  # the same tensors in another file
    foveal.load_model(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "", "tune": "lora"}, "tune='lora' needs weights to tune: give weights"),
        ({"tune": "lore"}, "tune='lore'; did you mean 'lora'"),
        ({"tune": "bias", "lora_rank": 8}, "lora_rank=8 is for tune='lora'"),
        ({"prompt_tokens": 2}, "prompt_tokens=2 is for tune='prompt'"),
        ({"tune": "lora", "fsdp": True}, "does not go with fsdp"),
        ({"tune": "lora", "task": "prompt", "teacher": "t.pt"}, "does not go with teacher"),
        ({"tune": "prompt", "layer_decay": 0.5}, "leave layer_decay out"),
        ({"tune": "prompt", "task": "upscale"}, "is not for 'upscale'"),
        ({"tune": "lora", "lora_rank": 0}, "lora_rank=0 is out of range"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{"weights": "w.safetensors", **changes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"sha256": "0" * 63}, {"ref": 3}, {"local": "yes"}, {"renamed": [["a"]]}, {"scale": float("inf")},
        {"dropped": "head."}, {"more": 1}, {"dropped": ["backbone."]}, {"ref": "best.safetensors", "local": True},
        {"ref": "nothing.here", "local": False},
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path, damage: dict[str, Any]
) -> None:
    model, report = create_and_report(name, "segment", weights=base["segment"])
    tuning = begin_tuning(model, TrainConfig(model=name, weights=str(base["segment"]), tune="lora"), report)
    assert tuning is not None
    tuning.begin([])
    tensors, info = tuning.pack(model.state_dict(), info_of(model))
    shutil.copy(base["segment"], tmp_path)
    save_checkpoint(tmp_path / "best.safetensors", tensors, info)
    foveal.load_model(tmp_path / "best.safetensors")
    save_checkpoint(tmp_path / "best.safetensors", tensors, info.replace(base={**info.base, **damage}))
    with pytest.raises((CheckpointError, ConfigError)) as error:
        foveal.load_model(tmp_path / "best.safetensors")
    assert "\n" not in str(error.value)
    assert "best.safetensors" in str(error.value)


@pytest.mark.parametrize("change", ["up", "down", "missing"])
def test_matrices_that_do_not_fit_are_one_line(base: dict[str, Path], name: str, tmp_path: Path, change: str) -> None:
    model, report = create_and_report(name, "segment", weights=base["segment"])
    tuning = begin_tuning(model, TrainConfig(model=name, weights=str(base["segment"]), tune="lora"), report)
    assert tuning is not None
    tuning.begin([])
    tensors, info = tuning.pack(model.state_dict(), info_of(model))
    key = next(key for key in tensors if key.endswith(DOWN)).removesuffix(DOWN)
    damaged: dict[str, Tensor] = dict(tensors)
    if change == "missing":
        del damaged[key + UP]
    else:
        end = UP if change == "up" else DOWN
        damaged[key + end] = tensors[key + end].repeat(2, 1)
    shutil.copy(base["segment"], tmp_path)
    save_checkpoint(tmp_path / "t.safetensors", damaged, info)
    with pytest.raises(CheckpointError, match=r"t.safetensors: damaged"):
        foveal.load_model(tmp_path / "t.safetensors")


def test_the_share_is_printed(
    data: dict[str, Path], base: dict[str, Path], name: str, tmp_path: Path, cli: Command
) -> None:
    options = ["--model", name, "--weights", base["segment"], "--tune", "lora", "--epochs", 1, "--crop", 32]
    more = ["--set.workers", 0, "--set.lora_rank", 2, "--batch-size", 4, "--out", tmp_path / "run"]
    done = cli("train", data["segment"], *options, *more)
    assert done.returncode == 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("tune=lora"))
    info = read_state(tmp_path / "run" / "best.safetensors")[1]
    assert info is not None
    share = info.notes["tuned"]
    assert f"{share['trained']} of {share['parameters']} parameters are trained" in line
    assert "MB, and need segment.safetensors" in line


@pytest.mark.parametrize("kind", ["norms", "lora"])
def test_two_processes_tune_what_one_does(data: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """In float64, with norms over the whole batch, the tuned tensors agree to 1e-9."""
    weights = save_model(tmp_path / "w.safetensors", SMALL["model"], "segment", **SMALL["options"])
    settings = {**QUICK, **SMALL, "weights": str(weights), "tune": kind, "precision": "fp64", "epochs": 1, "flip": 0.0}
    one = foveal.train(data["segment"], out=tmp_path / "one", **settings).folder
    command = torchrun(data["segment"], tmp_path / "two", settings)
    subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
    assert furthest_weights(one, tmp_path / "two") < 1e-9
