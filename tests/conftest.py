"""Settings that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from functools import partial
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest
from packaging.version import Version

from helpers.commands import Command, here
from helpers.shared import make_once

# Several processes of tests share the cores, and so do the processes that these start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Reproducible, and never timed: a busy machine must not fail a test.
hypothesis.settings.register_profile(
    "foveal",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("foveal")

#: Foveal refuses to unpickle with torch before 2.10, and its error names this.
UNSAFE_PICKLES = "CVE-2026-24747"
OLD_TORCH = Version(metadata.version("torch")) < Version("2.10")


#: Files of more than 15 seconds of processor time, the longest first.
LONGEST = (
    "training/test_prompt.py",
    "e2e/test_train_faults.py",
    "e2e/test_export.py",
    "tasks/test_prompt_export.py",
    "tasks/test_prompt.py",
    "test_release.py",
    "models/test_mambavision_graphs.py",
    "training/test_distillation.py",
    "e2e/test_train.py",
    "factory/test_pretrained.py",
    "e2e/test_bands.py",
    "test_site.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: one that begins last keeps a single process busy while the others have ended."""
    folder = Path(__file__).parent
    order = {folder / name: place for place, name in enumerate(LONGEST)}
    missing = [str(path) for path in order if not path.exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: LONGEST names files that are not there: {', '.join(missing)}")
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With such a torch, skip the tests that failed because they read a .pt file or resume a run."""
    report = yield
    if OLD_TORCH and report.failed and UNSAFE_PICKLES in report.longreprtext:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), None, "torch 2.10 or newer is needed to read .pt files")
    return report


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw learning curves only in tests with the marker "curves"."""
    training = sys.modules.get("foveal.training.train")
    if training is not None and request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr(training, "draw_curves", lambda *_: None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Set torch back to one thread: what an earlier test chose, a benchmark for example, stays for the process.

    Threads of several processes that wait for each other on the same cores need many times the processor time.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def upsampling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``golden.fill(narrow("segment", 19, attention=False))``, exported with the upsampling in the graph."""

    def export(folder: Path) -> Path:
        import foveal
        from helpers import golden
        from helpers.narrow import narrow

        model = golden.fill(narrow("segment", 19, attention=False))
        return foveal.export(model, output=folder / "full.onnx", upsample=True, size=(64, 96)).path

    return make_once(tmp_path_factory, "upsampling", export)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``foveal ARGUMENTS`` in this process; ``helpers.commands.run_process`` does it in one of its own."""
    return partial(here, capfd)
