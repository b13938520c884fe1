"""segmentation_models_pytorch's own tests of encoders and decoders, with encoders of two of our families; a long test.

They run from a checkout of its repository, which is not part of this one:
``FOVEAL_SMP_CHECKOUT=/path/to/segmentation_models.pytorch pytest -m long tests/test_smp_suite.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ENCODERS = ("tu-foveal_efficientvit_b0", "tu-foveal_mobilenetv3_small_100")
#: Tests that are not run, and why.
EXCUSED = {
    "torch_script": "torch.jit.script compiles annotated Python of its own dialect; torch has deprecated it for export",
    "DPT": "its decoder takes timm's plain vision transformers only",
    "Warning": "downloads weights of timm's ResNet-18; no encoder of ours is in it",
}
#: Runs the tests with an encoder of ours in place of theirs. Arguments: the checkout, the encoder, words that exclude.
RUN = """
import sys, types
import pytest, timm
import foveal.timm

checkout, name, excused = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
sys.path.insert(0, checkout)
sys.modules["git"] = types.SimpleNamespace(Repo=None)  # their tests ask what a branch changed; RUN_ALL makes it unused
create = timm.create_model
timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})  # nothing is downloaded

from tests.encoders import test_timm_universal as encoders
from tests.models import base as models

encoders.TestTimmUniversalEncoder.encoder_names = [name]
models.BaseModelTester.test_encoder_name = name
options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "-W", "ignore", "--tb=short", "--rootdir", checkout]
files = [encoders.__file__, f"{checkout}/tests/models"]
sys.exit(pytest.main([*options, *files, "-k", " and ".join(f"not {word}" for word in excused)]))
"""


@pytest.mark.parametrize("encoder", ENCODERS)
def test_their_own_suite(encoder: str) -> None:
    checkout = os.environ.get("FOVEAL_SMP_CHECKOUT")
    if not checkout:
        pytest.skip("set FOVEAL_SMP_CHECKOUT to a checkout of github.com/qubvel-org/segmentation_models.pytorch")
    command = [sys.executable, "-c", RUN, str(Path(checkout).resolve()), encoder, ",".join(EXCUSED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "RUN_ALL": "1"})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
