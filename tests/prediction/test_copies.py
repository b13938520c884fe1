"""Predictors and results travel: copies, pickles and forked processes give the same answers."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal import assets
from foveal.errors import CheckpointError
from foveal.prediction.onnx_runner import onnx_network

BUNDLED = "efficientvit_b0.camvid"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def answer(result: Any) -> np.ndarray:
    return result.image if isinstance(result, foveal.UpscaleResult) else result.mask


@pytest.mark.parametrize(
    ("ref", "runtime"),
    [(BUNDLED, "onnxruntime"), (BUNDLED, "torch"), ("efficientvit_sr.x2", "auto"), ("bicubic.x2", "auto")],
)
def test_copies_and_pickles(ref: str, runtime: str) -> None:
    predictor = foveal.load(ref, runtime=runtime, device="auto", threads=1)
    result = predictor(IMAGE)
    for travelled in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        same = travelled(predictor)
        assert (same.info, same.runtime) == (predictor.info, predictor.runtime)
        np.testing.assert_array_equal(answer(same(IMAGE)), answer(result))
        np.testing.assert_array_equal(answer(travelled(result)), answer(result))


def test_a_pickle_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is opened again with the same options; the path may be relative."""
    shutil.copy(assets.path(BUNDLED, ".onnx"), tmp_path / "a.onnx")
    monkeypatch.chdir(tmp_path)
    predictor = foveal.load("a.onnx", threads=1)
    monkeypatch.chdir("/")
    stored = pickle.dumps(predictor)
    (tmp_path / "a.onnx").unlink()
    again: Any = pickle.loads(pickle.dumps(pickle.loads(stored)))
    assert again.runner.network.session.get_session_options().intra_op_num_threads == 1
    np.testing.assert_array_equal(again(IMAGE).mask, predictor(IMAGE).mask)
    with pytest.raises(CheckpointError, match=r"a\.onnx: cannot be opened again .*load the model again"):
        pickle.dumps(predictor)


def test_a_changed_file_is_not_pickled(tmp_path: Path) -> None:
    path = Path(shutil.copy(assets.path("efficientvit_sr.x2", ".onnx"), tmp_path / "a.onnx"))
    network = onnx_network(path)
    shutil.copy(assets.path("efficientvit_sr.x4", ".onnx"), path)
    with pytest.raises(CheckpointError, match=r"a\.onnx: the file has changed since it was opened"):
        pickle.dumps(network)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's, for forks of processes with threads
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_forked_process_predicts(runtime: str) -> None:
    threads = torch.get_num_threads()
    predictor = foveal.load(BUNDLED, runtime=runtime, threads=2)
    expected = predictor(IMAGE).mask
    torch.set_num_threads(threads)
    process = os.fork()
    if not process:
        signal.alarm(60)  # a process that waits for ever fails the test
        code = 4
        try:
            code = 0 if (predictor(IMAGE).mask == expected).mean() > 0.999 else 3
        finally:  # whatever happens, this process does not go on with the tests
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
