"""Sharded training (FSDP2): two processes train the same as one, and their files are those of any run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import foveal
from foveal.data.synthetic import write_shapes
from helpers.runs import ONE_THREAD, SETTINGS, children, furthest_weights, losses, torchrun, wait_for

#: In float64: AdamW turns float32's rounding of a gradient near zero into a step of full size. The clipping takes
#: place in every step, the pieces of all processes together are those of one, and the validation images come out odd.
EXACT = {
    **SETTINGS,
    "batch_size": 8,
    "epochs": 8,
    "eval_every": 8,
    "precision": "fp64",
    "grad_clip": 0.05,
    "grad_checkpointing": True,
    "accumulate": 2,
    "deep_supervision": 0.4,
    "bn_batches": 2,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("tiny"), train=24, val=5, size=(32, 32))


def _scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


@pytest.mark.long
def test_sharded_run_is_the_whole_one_and_resumes_anywhere(tiny: Path, tmp_path: Path) -> None:
    """Stopped half-way, then resumed on two processes with shards and on one without: both equal the one-process run.

    This holds for losses, weights and scores, with clipping, pieces, recomputation and estimated norms.
    """
    one = foveal.train(tiny, out=tmp_path / "one", **EXACT).folder
    assert len(losses(one)) == 24
    sharded, plain = tmp_path / "sharded", tmp_path / "plain"
    launcher = subprocess.Popen(
        torchrun(tiny, sharded, EXACT, "--fsdp"), env=ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (sharded / "log.jsonl").exists() and len(losses(sharded)) >= 2)
    for rank in children(launcher.pid):
        os.kill(rank, signal.SIGTERM)
    said = launcher.communicate(timeout=600)[1]
    assert "stopped after step" in said, said
    assert 2 <= max(losses(sharded)) < 24
    shutil.copytree(sharded, plain)
    _is_whole(sharded / "state.pt")

    subprocess.run(torchrun(tiny, sharded, EXACT, "--fsdp", "--resume"), check=True, env=ONE_THREAD)
    foveal.train(tiny, out=plain, resume=True, fsdp=False)
    for folder in (sharded, plain):
        first, second = losses(one), losses(folder)
        assert first.keys() == second.keys()
        assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
        assert furthest_weights(one, folder) <= 1e-6
        assert _scores(folder)["pixel_accuracy"] == _scores(one)["pixel_accuracy"]
        assert _scores(folder)["miou"] == _scores(one)["miou"]


def _is_whole(state: Path) -> None:
    """The state has parameters, averages and the optimiser's moments in full size, as plain tensors."""
    found = torch.load(state, weights_only=True)
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=4)
    for key, value in model.state_dict().items():
        trained, averaged = found["model"][f"model.{key}"], found["ema"][f"module.{key}"]
        assert type(trained) is type(averaged) is torch.Tensor
        assert trained.shape == averaged.shape == value.shape
    sizes = sorted(p.numel() for p in model.parameters())
    moments = sorted(s["exp_avg"].numel() for s in found["optimizer"]["state"].values())
    assert set(sizes) <= set(moments)  # the auxiliary classifiers have more


def test_sharding_needs_several_processes(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(foveal.ConfigError, match=r"fsdp=True .* only one: start it with torchrun"):
        foveal.train(tiny, out=tmp_path / "run", fsdp=True, **SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_mixed_precision_with_shards(tiny: Path, tmp_path: Path) -> None:
    """In bfloat16 the losses agree with those of one process to its precision; weights are stored in float32."""
    settings = {**SETTINGS, "batch_size": 8, "epochs": 1, "precision": "bf16", "val_split": ""}
    one = foveal.train(tiny, out=tmp_path / "one", **settings).folder
    subprocess.run(torchrun(tiny, tmp_path / "two", settings, "--fsdp"), check=True, env=ONE_THREAD)
    assert list(losses(one).values()) == pytest.approx(list(losses(tmp_path / "two").values()), rel=2e-2)
    found = torch.load(tmp_path / "two" / "state.pt", weights_only=True)
    assert {value.dtype for value in found["model"].values() if value.is_floating_point()} == {torch.float32}
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["fsdp"] is True


@pytest.mark.long
def test_largest_model_of_ours_takes_a_step(tmp_path: Path) -> None:
    """EfficientViT-XL2 on two processes: one step, state and weights saved."""
    data = write_shapes(tmp_path / "data", train=2, val=1, size=(64, 64))
    settings = {**SETTINGS, "model": "efficientvit_xl2", "batch_size": 2, "crop": [64, 64], "epochs": 1}
    subprocess.run(
        torchrun(data, tmp_path / "run", {**settings, "val_split": ""}, "--fsdp"), check=True, env=ONE_THREAD
    )
    assert losses(tmp_path / "run").keys() == {1}
    assert (tmp_path / "run" / "best.safetensors").exists()


_UNEVEN = """
import json, os, sys
import foveal

save_minutes = 1e-6 if os.environ["RANK"] == "0" else 1e6
foveal.train(sys.argv[1], out=sys.argv[2], fsdp=True, save_minutes=save_minutes, **json.loads(sys.argv[3]))
"""


@pytest.mark.long
def test_processes_save_at_the_same_step(tiny: Path, tmp_path: Path) -> None:
    """Processes with different ideas of the time save together, because all must take part in gathering the shards."""
    script = tmp_path / "uneven.py"
    script.write_text(_UNEVEN)
    settings = json.dumps({**SETTINGS, "batch_size": 8, "val_split": ""})
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, str(script), str(tiny), str(tmp_path / "run"), settings]
    subprocess.run(command, check=True, env=ONE_THREAD, timeout=300)
    assert len(losses(tmp_path / "run")) == 3 * SETTINGS["epochs"]
