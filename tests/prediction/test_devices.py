"""The CPUs and GPUs that a process may use, what is chosen from them, and how many threads that starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal import assets
from foveal.engine.library import load_library
from foveal.errors import InputError
from foveal.prediction import devices, onnx_providers, onnx_runner, runtimes
from foveal.prediction.devices import cpu_count, cpu_quota, free_memory, gpu_possible
from foveal.prediction.runtimes import choose

BUNDLED = "efficientvit_b0.camvid"
FILE = assets.path(BUNDLED, ".onnx")

#: Loads and runs a model, and prints the threads that this starts, for each of several numbers of threads.
THREADS = """
import json, os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
import foveal
runtime, numbers = sys.argv[1], json.loads(sys.argv[2])
__import__(runtime)
found = []
for number in numbers:
    before = len(os.listdir("/proc/self/task"))
    predictor = foveal.load("efficientvit_b0.camvid", runtime=runtime, device="cpu", threads=number)
    predictor(np.zeros((64, 64, 3), np.uint8))
    found.append(len(os.listdir("/proc/self/task")) - before)
    del predictor
torch = sys.modules.get("torch")
print(json.dumps([found, torch and torch.get_num_threads()]))
"""


def count_threads(runtime: str, numbers: list[int | None]) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # several threads that spin on one CPU take minutes
    words = [sys.executable, "-c", THREADS, runtime, json.dumps(numbers)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux")
def test_threads_of_onnxruntime() -> None:
    """On one CPU it starts no thread beside the calling one, else one fewer than asked for; torch is not imported."""
    assert count_threads("onnxruntime", [None, 1, 2, 4]) == [[0, 0, 1, 3], None]


@pytest.mark.long  # torch takes seconds to start
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux")
def test_threads_of_torch() -> None:
    found, threads = count_threads("torch", [None, 2])
    assert found[0] == 0
    assert found[1] >= 1  # torch has a second pool
    assert threads == 2


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/host/only\n", {"cpu.max": "300000 100000\n"}, 3),
        (
            "4:memory:/\n2:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_quotas_of_control_groups(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path / "groups", tmp_path) == quota
    assert cpu_quota(tmp_path / "none", tmp_path) is None
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert cpu_count() == (allowed if quota is None else min(allowed, max(1, -int(-quota // 1))))


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/\n", {}, 4 << 20),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 4 << 20),
        ("0::/a/b\n", {"a/memory.max": "3000", "a/memory.current": "1000", "a/b/memory.max": "max"}, 2000),
        ("0::/\n", {"memory.max": "1000", "memory.current": "1500"}, 0),
        ("0::/\n", {"memory.max": "9", "memory.current": "8", "memory.stat": "anon 3\ninactive_file 5\n"}, 6),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "900", "memory/a/memory.usage_in_bytes": "100"}, 800),
    ],
)
def test_free_memory_is_that_of_the_smallest_control_group(
    groups: str, files: dict[str, str], free: int, tmp_path: Path
) -> None:
    for name, text in {"groups": groups, "meminfo": "MemTotal: 9 kB\nMemAvailable:    4096 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path / "groups", tmp_path, tmp_path / "meminfo") == free
    assert free_memory(tmp_path / "none", tmp_path, tmp_path / "none") is None


@pytest.mark.skipif(sys.platform != "linux", reason="device files of Linux")
def test_a_gpu_is_possible_only_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-modeset").touch()
    assert not gpu_possible(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu_possible(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_possible(tmp_path)


def test_reasons() -> None:
    """What was left to Foveal is explained; the same with a GPU is tested below by what the choice is made from."""
    if gpu_possible():
        pytest.skip("there may be a GPU")
    for options, runtime in [
        ({}, f"native on cpu, {load_library().name}: the exported file needs no torch; no GPU found"),
        ({"device": "cpu"}, f"native on cpu, {load_library().name}: the exported file needs no torch"),
        ({"runtime": "onnxruntime", "device": "cpu"}, "onnxruntime on cpu"),
        ({"runtime": "torch"}, "torch on cpu, float32: no GPU found"),
    ]:
        assert foveal.load(BUNDLED, **options).runtime == runtime
    assert foveal.load(FILE, device="cpu").runtime == "onnxruntime on cpu: it runs .onnx files"
    assert foveal.load("bicubic.x2").runtime == "numpy on cpu: interpolation needs no network"


def test_where_torch_has_a_gpu_it_runs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "torch_gpu", lambda: "cuda")
    assert choose(BUNDLED)[0].name == "torch"
    assert runtimes.explain(*choose(BUNDLED), BUNDLED, "auto", "auto") == "it runs the checkpoint on the GPU"
    assert choose(BUNDLED, device="cpu")[0].name == "native"
    assert choose(BUNDLED, runtime="onnxruntime")[0].name == "onnxruntime"
    assert choose(str(FILE))[0].name == "onnxruntime"
    monkeypatch.setattr(runtimes, "torch_gpu", lambda: "")
    assert choose(BUNDLED)[0].name == "native"


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")  # of builds without it
def test_a_gpu_build_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used for exported files; a GPU that it cannot start is an error if it was named, else it takes the CPU."""
    for module in (onnx_providers, onnx_runner, devices):
        monkeypatch.setattr(module, "gpu_possible", lambda: True)
    with pytest.raises(foveal.ConfigError, match="onnxruntime runs on cpu in float32"):
        foveal.load(FILE, device="cuda")
    monkeypatch.setattr(
        "onnxruntime.get_available_providers",
        lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    assert choose(str(FILE), device="cuda:1")[0].name == "onnxruntime"
    assert onnx_providers.providers_for("cuda:1") == [
        ("CUDAExecutionProvider", {"device_id": "1"}),
        "CPUExecutionProvider",
    ]
    with pytest.raises(InputError, match="device 'cuda:1' cannot be used: ONNX Runtime cannot start on it"):
        foveal.load(FILE, device="cuda:1")
    predictor = foveal.load(FILE)
    assert predictor.runtime == "onnxruntime on cpu: it runs .onnx files; this onnxruntime cannot use the GPU"
