"""Models are saved to folders and hubs and loaded again; published weights load by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.torch_version import TorchVersion

import foveal
from foveal.errors import CheckpointError, ConfigError
from foveal.info import IMAGENET_MEAN, IMAGENET_STD, Labels, attach, info_of
from foveal.weights.checkpoints import read_state, save_checkpoint
from helpers.hub_client import Client, Session, error_of
from helpers.hub_server import Hub, close, running


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    built = foveal.create_model("efficientvit_b0", "segment", num_classes=3).eval()
    attach(built, info_of(built).replace(labels=Labels(("sky", "road", "tree")), tag="mine", licence="MIT"))
    return built


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_round_trip_through_a_folder(model: nn.Module, tmp_path: Path) -> None:
    folder = foveal.save_pretrained(model, tmp_path / "mine")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = foveal.from_pretrained(folder)
    assert same(loaded, model)
    assert not loaded.training
    assert info_of(loaded) == info_of(model)
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    result = foveal.load(folder)(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = model(((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None]).argmax(1)[0].numpy()
    assert (result.mask == expected).mean() > 0.999
    assert result.names == ("sky", "road", "tree")
    started = foveal.create_model("efficientvit_b0", "segment", weights=folder)
    assert same(started, model)
    assert foveal.load_checkpoint(foveal.create_model("efficientvit_b0", "segment", num_classes=3), folder).loaded


def test_weights_can_be_stored_in_float16(model: nn.Module, tmp_path: Path) -> None:
    """Half of the size; loaded as float32, with norms and biases unchanged."""
    sizes = {}
    for half in (False, True):
        folder = foveal.save_pretrained(model, tmp_path / str(half), half=half)
        sizes[half] = (folder / "model.safetensors").stat().st_size
    assert sizes[True] < 0.6 * sizes[False]
    ours, loaded = model.state_dict(), foveal.from_pretrained(tmp_path / "True").state_dict()
    for key, tensor in ours.items():
        stored = tensor.half().float() if tensor.ndim > 1 else tensor
        assert loaded[key].dtype == tensor.dtype
        assert loaded[key].equal(stored)


def test_the_model_card_describes_the_model_and_how_to_load_it(model: nn.Module, tmp_path: Path) -> None:
    folder = foveal.save_pretrained(model, tmp_path, metrics={"mIoU": 12.5}, data="Toy test, 64x96")
    _, about, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(about)
    assert (metadata["license"], metadata["library_name"]) == ("mit", "foveal")
    assert metadata["pipeline_tag"] == "image-segmentation"
    (result,) = metadata["model-index"][0]["results"]
    assert (result["dataset"]["name"], result["metrics"]) == ("Toy test, 64x96", [{"type": "mIoU", "value": 12.5}])
    assert "sky, road, tree" in text
    assert "foveal.from_pretrained(" in text
    config = json.loads((folder / "config.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert config["sha256"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    assert config["foveal"]["labels"]["names"] == ["sky", "road", "tree"]


def test_names_are_no_markup_in_the_model_card(model: nn.Module, tmp_path: Path) -> None:
    names = ("<script>x</script>", "a | b\n# c", "[x](http://y)")
    other = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    attach(other, info_of(model).replace(labels=Labels(names), tag="`t`"))
    text = (foveal.save_pretrained(other, tmp_path) / "README.md").read_text()
    body = text.split("---\n", 2)[2]
    assert r"&lt;script&gt;x&lt;/script&gt;, a \| b" in body
    assert r"\[x\](http://y)" in body
    assert "\n# c" not in body
    assert r"# efficientvit_b0.\`t\`" in body


def test_saving_again_does_not_replace_an_edited_card(model: nn.Module, tmp_path: Path) -> None:
    foveal.save_pretrained(model, tmp_path)
    (tmp_path / "README.md").write_text("my own words")
    other = foveal.create_model("efficientvit_b0", num_classes=2)
    foveal.save_pretrained(other, tmp_path, licence="CC0-1.0")
    assert (tmp_path / "README.md").read_text() == "my own words"
    loaded = foveal.from_pretrained(tmp_path)
    assert same(loaded, other)
    assert info_of(loaded).licence == "CC0-1.0"


def test_a_folder_of_a_repository_takes_a_model(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("my own words")
    assert same(foveal.from_pretrained(foveal.save_pretrained(model, tmp_path)), model)


def test_round_trip_of_a_backbone(tmp_path: Path) -> None:
    net = foveal.create_model("efficientvit_b0", features_only=True, in_chans=4, scales=(3,))
    loaded = foveal.from_pretrained(foveal.save_pretrained(net, tmp_path))
    assert same(loaded, net)
    assert [info.stride for info in loaded.feature_info] == [4, 8, 16, 32]


def test_damaged_folder_is_refused(model: nn.Module, tmp_path: Path) -> None:
    weights = foveal.save_pretrained(model, tmp_path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        foveal.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{no json")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        foveal.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="its content is not what was written"):  # by the hash inside the file
        foveal.from_pretrained(tmp_path)


def test_what_cannot_be_saved_is_an_error(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metrics need the data they were measured on"):
        foveal.save_pretrained(model, tmp_path, metrics={"mIoU": 1.0})
    with pytest.raises(ConfigError, match="mIoU is nan"):
        foveal.save_pretrained(model, tmp_path, metrics={"mIoU": float("nan")}, data="x")
    with pytest.raises(ConfigError, match=r"not made by foveal\.create_model"):
        foveal.save_pretrained(nn.Linear(1, 1), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(foveal.InputError, match="cannot write"):
        foveal.save_pretrained(model, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"no saved model and has other files \(file\): give a new or empty one"):
        foveal.save_pretrained(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="no hub id: write owner/name"):
        foveal.push_to_hub(model, "name")
    with pytest.raises(ConfigError, match="is for a hub id"):
        foveal.from_pretrained(tmp_path, revision="v1")


PUSH = """
import sys, foveal
model = foveal.from_pretrained(sys.argv[1])
try:
    print(foveal.push_to_hub(model, "someone/mine", metrics={"mIoU": 12.5}, data="Toy test"))
except foveal.FovealError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
LOAD = """
import sys, foveal
try:
    foveal.save_pretrained(foveal.from_pretrained(sys.argv[1]), sys.argv[2])
except foveal.FovealError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def session(client: Client) -> Session:
    return Session({**client.environment, "HF_TOKEN": "hf_of_this_test"})


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client, Session]]:
    """A hub, and a process that talks to it: to start one for each test would take seconds."""
    with running() as hub, session(client := Client(hub.address, tmp_path_factory.mktemp("cache"))) as python:
        yield hub, client, python


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    return foveal.save_pretrained(model, tmp_path / "saved")


def test_round_trip_through_a_hub(
    model: nn.Module, saved: Path, online: tuple[Hub, Client, Session], tmp_path: Path
) -> None:
    hub, client, python = online
    sent = python.run(PUSH, saved)
    assert sent.stdout.strip() == f"{hub.address}/someone/mine/commit/{hub.commit}", sent.stderr
    names = {file for repo, file in hub.files if repo == "someone/mine"}
    assert names == {"README.md", "config.json", "model.safetensors"}
    assert (hub.private["someone/mine"], hub.branches[0]) == (False, "main")
    assert b'foveal.from_pretrained("someone/mine")' in hub.files["someone/mine", "README.md"]
    hub.files["someone/mine", "README.md"] = b"edited on the hub"
    assert python.run(PUSH, saved).returncode == 0
    assert hub.files["someone/mine", "README.md"] == b"edited on the hub"
    got = python.run(LOAD, "hf-hub:someone/mine@main", tmp_path / "back")
    assert "downloading hub id someone/mine once: someone/mine/model.safetensors" in got.stderr
    assert same(foveal.from_pretrained(tmp_path / "back"), model)
    hub.requests.clear()
    with session(client) as new_process:
        offline = new_process.run(LOAD, "someone/mine", tmp_path / "again")
    assert (offline.returncode, offline.stderr, hub.requests) == (0, "", [])


def check_refusal(python: Session, saved: Path) -> None:
    done = python.run(PUSH, saved)
    assert "someone/mine: nothing was sent" in error_of(done, "ExportError")
    assert len(done.stderr.splitlines()) == 1


def test_refused_uploads_are_one_line(saved: Path, online: tuple[Hub, Client, Session]) -> None:
    hub, _, python = online
    try:
        for hub.status in (401, 500):
            check_refusal(python, saved)
    finally:
        hub.status = 0


def test_uploads_without_an_answer_are_one_line(saved: Path, tmp_path: Path) -> None:
    with running() as hub, session(Client(hub.address, tmp_path / "cache")) as python:
        close(hub)
        check_refusal(python, saved)


def publish(hub: Hub, ref: str, content: bytes) -> None:
    from foveal.models.registry import published

    entry = published()[ref][2]
    hub.files[entry.repo, entry.file] = content


def test_published_classifier_by_name(online: tuple[Hub, Client, Session], tmp_path: Path) -> None:
    """The weights of timm's own model, under timm's name, give timm's logits; the description is that of the tag."""
    torch.manual_seed(0)
    peer = timm.create_model("efficientvit_b0", pretrained=False).eval()
    save_file(peer.state_dict(), tmp_path / "timm.safetensors")
    hub, _, python = online
    publish(hub, "efficientvit_b0.r224_in1k", (tmp_path / "timm.safetensors").read_bytes())
    done = python.run(LOAD, "efficientvit_b0.r224_in1k", tmp_path / "saved")
    size = f"{(tmp_path / 'timm.safetensors').stat().st_size / 2**20:.1f} MiB"
    announced = f"efficientvit_b0.r224_in1k once: timm/efficientvit_b0.r224_in1k/model.safetensors, {size}, Apache-2.0"
    assert done.stderr == f"downloading {announced}\n"
    loaded = foveal.from_pretrained(tmp_path / "saved")
    info = info_of(loaded)
    assert (info.task, info.num_classes, info.tag, info.licence) == ("classify", 1000, "r224_in1k", "Apache-2.0")
    assert (info.preprocess.size, info.preprocess.crop_ratio) == ((224, 224), 0.95)
    assert info.notes["published"]["top-1"] == 71.408
    # timm's attention has another epsilon, which makes a difference with random weights.
    like_timm = foveal.create_model("efficientvit_b0", weights=tmp_path / "saved", attention_eps=1e-5).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = like_timm(x), peer(x)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_published_segmenter_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pt file in the folder FOVEAL_WEIGHTS is found by its tag: load, create_model and load_checkpoint."""
    source = foveal.create_model("efficientvit_b1", "segment", head="ade20k")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "efficientvit_seg_b1_ade20k.pt")
    cityscapes = foveal.create_model("efficientvit_b1", "segment")
    torch.save(cityscapes.state_dict(), tmp_path / "efficientvit_seg_b1_cityscapes.pt")
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    model = foveal.create_model("efficientvit_b1.ade20k")
    assert same(model, source)
    assert (info_of(model).task, info_of(model).num_classes, info_of(model).licence) == ("segment", 150, "Apache-2.0")
    target = foveal.create_model("efficientvit_b1", "segment", head="ade20k")
    foveal.load_checkpoint(target, "efficientvit_b1.ade20k")
    assert same(target, source)
    loaded = foveal.load_model("efficientvit_b1.cityscapes")
    assert same(loaded, cityscapes)
    assert info_of(loaded).labels.names[:2] == ("road", "sidewalk")


@pytest.mark.parametrize(("options", "ref"), [({}, "efficientvit_sr.x2"), ({"scale": 4}, "efficientvit_sr.x4")])
def test_own_weights_are_those_for_the_scale(options: dict[str, Any], ref: str) -> None:
    assert same(foveal.create_model("efficientvit_sr", pretrained=True, **options), foveal.create_model(ref))


def test_own_weights_for_another_scale_or_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no weights for scale=3, only efficientvit_sr\.x1, .*leave pretrained out"):
        foveal.create_model("efficientvit_sr", pretrained=True, scale=3)
    source = foveal.create_model("efficientvit_b1", "segment", head="ade20k")
    torch.save(source.state_dict(), tmp_path / "efficientvit_seg_b1_ade20k.pt")
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    assert same(foveal.create_model("efficientvit_b1", "segment", pretrained=True, head="ade20k"), source)


def test_own_weights_do_not_change_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only weights of L0 are of a promptable model: their backbone is taken."""
    source = foveal.create_model("efficientvit_l0", "prompt").state_dict()
    torch.save(source, tmp_path / "efficientvit_sam_l0.pt")
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    model = foveal.create_model("efficientvit_l0", pretrained=True, num_classes=10)
    assert (info_of(model).task, info_of(model).num_classes) == ("classify", 10)
    backbone = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    assert all(value.equal(source[f"image_encoder.{key}"]) for key, value in backbone.items())
    assert info_of(foveal.create_model("efficientvit_l0", weights="sam")).task == "prompt"


def test_an_architecture_names_its_weights_in_the_package() -> None:
    known = "'efficientvit_sr.x1', 'efficientvit_sr.x2', 'efficientvit_sr.x4'"
    with pytest.raises(ConfigError, match=f"an architecture without weights: use {known}, a checkpoint, or"):
        foveal.load_model("efficientvit_sr")


def test_published_hash_is_checked_in_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "efficientvit_seg_b0_cityscapes.pt").write_bytes(b"something else")
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"expected 923d6fdd[0-9a-f]{56}$"):
        foveal.load_model("efficientvit_b0.cityscapes")


def test_converted_weights_in_the_folder_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = foveal.create_model("efficientvit_b0", "segment")
    save_checkpoint(tmp_path / "efficientvit_b0.cityscapes.safetensors", source.state_dict(), info_of(source))
    monkeypatch.setenv("FOVEAL_WEIGHTS", str(tmp_path))
    assert same(foveal.load_model("efficientvit_b0.cityscapes"), source)


def test_a_path_comes_before_a_name(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved folder may have the name of bundled weights; a data folder named like a tag is not taken for weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    bundled = foveal.create_model("efficientvit_b0", weights="camvid", task="segment")
    assert info_of(bundled).num_classes == 11
    foveal.save_pretrained(model, "efficientvit_b0.camvid")
    assert foveal.load("efficientvit_b0.camvid").info.labels.names == ("sky", "road", "tree")


def test_pt_files_need_a_torch_that_reads_them_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-24747. Versions are compared by torch's own type; safetensors files are read with any version."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for version, allowed in (("2.6.0", False), ("2.9.1+cpu", False), ("2.10.0", True), ("2.10.0+cu130", True)):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert read_state(tmp_path / "a.safetensors")[0].keys() == {"a"}
        if allowed:
            assert read_state(tmp_path / "a.pt")[0].keys() == {"a"}
        else:
            with pytest.raises(CheckpointError, match=r"cannot read this safely \(CVE-2026-24747\)"):
                read_state(tmp_path / "a.pt")
