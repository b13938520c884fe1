"""Checkpoints of all layouts load; damaged and hostile ones are in test_faults.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import foveal
import foveal.timm  # registers the models
from foveal.errors import CheckpointError, ConfigError
from foveal.info import Labels, ModelInfo, Preprocess, Target, info_of
from foveal.weights.checkpoints import read_state, save_checkpoint
from helpers import golden


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def fresh() -> nn.Module:
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_round_trip_with_description(segmenter: nn.Module, tmp_path: Path) -> None:
    info = info_of(segmenter).replace(labels=Labels(tuple("abcde")), tag="mine")
    save_checkpoint(tmp_path / "model.safetensors", segmenter.state_dict(), info)
    state, found = read_state(tmp_path / "model.safetensors")
    assert found == info
    assert ModelInfo.from_json(info.to_json()) == info
    model = fresh()
    report = foveal.load_checkpoint(model, tmp_path / "model.safetensors")
    assert same(model.state_dict(), segmenter.state_dict())
    assert (report.loaded, report.layout, report.ignored, report.reinitialized) == (len(state), "foveal", (), ())


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "ema", "module.", "nested"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_wrapped_and_prefixed_files(segmenter: nn.Module, tmp_path: Path, wrap: str, suffix: str) -> None:
    state = segmenter.state_dict()
    wrapped = {
        "bare": state,
        "module.": {f"module.{key}": value for key, value in state.items()},
        "nested": {"epoch": 3, "model": {"state_dict": state}},
    }.get(wrap, {wrap: state, "epoch": 3})
    torch.save(wrapped, tmp_path / f"model{suffix}")
    model = fresh()
    foveal.load_checkpoint(model, tmp_path / f"model{suffix}")
    assert same(model.state_dict(), state)


def test_backbone_takes_its_part_of_a_task_file(segmenter: nn.Module) -> None:
    backbone = foveal.create_model("efficientvit_b0", features_only=True)
    report = foveal.load_checkpoint(backbone, segmenter.state_dict())
    assert all(key.startswith("head.") for key in report.ignored)
    assert report.ignored
    assert backbone.state_dict()["stem.0.conv.weight"].equal(segmenter.state_dict()["backbone.stem.0.conv.weight"])


def test_other_classes_keep_everything_but_the_classifier(segmenter: nn.Module, tmp_path: Path) -> None:
    torch.save(segmenter.state_dict(), tmp_path / "model.pt")
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=9, weights=tmp_path / "model.pt")
    ours, theirs = segmenter.state_dict(), model.state_dict()
    changed = {key for key in ours if ours[key].shape != theirs[key].shape or not ours[key].equal(theirs[key])}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}


def test_of_another_task_only_the_backbone_is_loaded(segmenter: nn.Module, tmp_path: Path) -> None:
    torch.save(segmenter.state_dict(), tmp_path / "model.pt")
    model = foveal.create_model("efficientvit_b0", "classify", num_classes=3, weights=tmp_path / "model.pt")
    ours, theirs = segmenter.state_dict(), model.state_dict()
    assert all(ours[key].equal(theirs[key]) for key in ours if key.startswith("backbone."))
    with pytest.raises(CheckpointError, match="missing"):
        foveal.load_checkpoint(model, tmp_path / "model.pt")


def test_published_file_becomes_ours(tmp_path: Path) -> None:
    """A wrapped .pt with the authors' names is loaded, saved with its description, and loaded into another model."""
    state = golden.state(golden.read("efficientvit_keys")["mit-seg-b0-cityscapes"])
    torch.save({"epoch": 1, "state_dict": {key: value.float() for key, value in state.items()}}, tmp_path / "b0.pt")
    first, second = (foveal.create_model("efficientvit_b0", "segment") for _ in range(2))
    report = foveal.load_checkpoint(first, tmp_path / "b0.pt")
    assert (report.loaded, report.layout) == (len(state), "efficientvit")
    save_checkpoint(tmp_path / "b0.safetensors", first.state_dict(), info_of(first))
    report = foveal.load_checkpoint(second, tmp_path / "b0.safetensors")
    assert (report.loaded, report.layout, report.info) == (len(state), "foveal", info_of(first))
    assert same(second.state_dict(), first.state_dict())
    stem = "backbone.input_stem.op_list.0.conv.weight"
    assert second.state_dict()["backbone.stem.0.conv.weight"].equal(state[stem].float())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "ema.module."])
def test_prefixes_of_wrapped_training_are_stripped(segmenter: nn.Module, prefix: str) -> None:
    model = fresh()
    foveal.load_checkpoint(model, {f"{prefix}{key}": value for key, value in segmenter.state_dict().items()})
    assert same(model.state_dict(), segmenter.state_dict())


def test_other_tensors_next_to_the_weights_are_ignored(segmenter: nn.Module, tmp_path: Path) -> None:
    """A loss as a tensor, an empty average, a configuration under "model": the state dict is found."""
    content = {"loss": torch.tensor(0.5), "ema": {}, "model": {"name": "b0"}, "module": segmenter.state_dict()}
    torch.save(content, tmp_path / "run.pt")
    model = fresh()
    foveal.load_checkpoint(model, tmp_path / "run.pt")
    assert same(model.state_dict(), segmenter.state_dict())


def test_a_dictionary_inside_itself_is_refused(tmp_path: Path) -> None:
    content: dict = {}
    content["model"] = content["state_dict"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_state(tmp_path / "loop.pt")


def test_half_precision_weights_load_into_full(segmenter: nn.Module) -> None:
    model = fresh()
    foveal.load_checkpoint(model, {key: value.half() for key, value in segmenter.state_dict().items()})
    key = "head.classifier.weight"
    assert model.state_dict()[key].dtype == torch.float32
    assert model.state_dict()[key].equal(segmenter.state_dict()[key].half().float())


def test_pooled_features_and_maps_from_a_classifiers_file(tmp_path: Path) -> None:
    classifier = foveal.create_model("efficientvit_b0", num_classes=3)
    path = tmp_path / "classifier.safetensors"
    info = info_of(classifier).replace(preprocess=Preprocess(size=(96, 96)), labels=Labels(tuple("abc")))
    save_checkpoint(path, classifier.state_dict(), info)
    pooled = foveal.create_model("efficientvit_b0", num_classes=0, weights=path)
    maps = foveal.create_model("efficientvit_b0", features_only=True, weights=path)
    ours = classifier.state_dict()
    assert all(value.equal(ours[key]) for key, value in pooled.state_dict().items())
    assert all(value.equal(ours[f"backbone.{key}"]) for key, value in maps.state_dict().items())
    assert (info_of(maps).num_classes, info_of(maps).labels) == (0, Labels())
    same_task = foveal.create_model("efficientvit_b0", weights=path)
    assert (info_of(same_task).num_classes, info_of(same_task).preprocess.size) == (3, (96, 96))


@pytest.mark.parametrize(
    ("saved", "other"),
    [("tf_efficientnet_b0", "efficientnet_b0"), ("mobilenetv3_small_100", "tf_mobilenetv3_small_100")],
)
def test_weights_of_a_twin_bring_their_conventions(saved: str, other: str, tmp_path: Path) -> None:
    """The same tensors need their own epsilon and padding: the outputs are those of the model that was saved."""
    source: Any = golden.fill(foveal.create_model(saved, num_classes=3))
    path = tmp_path / "twin.safetensors"
    save_checkpoint(path, source.state_dict(), info_of(source))
    created = foveal.create_model(other, weights=path).eval()
    loaded = foveal.create_model(other, num_classes=3).eval()
    x = golden.normal_input((1, 3, 64, 64))
    with torch.no_grad():
        expected = source(x)
        foveal.load_checkpoint(loaded, path)
        assert torch.equal(created(x), expected)
        assert torch.equal(loaded(x), expected)
    assert info_of(created).options == info_of(loaded).options
    again = foveal.create_model(other, num_classes=3, **info_of(created).options).eval()
    again.load_state_dict(source.state_dict())
    in_timm: Any = timm.create_model(f"foveal_{other}", num_classes=3).eval()
    backbone: Any = foveal.create_model(other, "segment").eval().backbone
    foveal.load_checkpoint(in_timm, path)
    foveal.load_checkpoint(backbone, path)
    save_checkpoint(path, source.backbone.state_dict(), ModelInfo(saved, "features"))
    another: Any = foveal.create_model(other, "segment").eval().backbone
    foveal.load_checkpoint(another, path)
    with torch.no_grad():
        assert torch.equal(again(x), expected)
        assert torch.equal(in_timm(x), expected)
        assert torch.equal(backbone(x)[-1], source.backbone(x)[-1])
        assert torch.equal(another(x)[-1], source.backbone(x)[-1])


def test_a_bare_file_says_its_task(segmenter: nn.Module, tmp_path: Path) -> None:
    torch.save(segmenter.state_dict(), tmp_path / "bare.pt")
    model = foveal.create_model("efficientvit_b0", weights=tmp_path / "bare.pt")
    assert (info_of(model).task, info_of(model).num_classes) == ("segment", 5)
    assert same(model.state_dict(), segmenter.state_dict())


def test_a_bare_published_classifier_is_used_as_published(tmp_path: Path) -> None:
    """As load_model does; names and preprocessing of another task are not taken over."""
    state = timm.create_model("efficientvit_b0", pretrained=False).state_dict()
    torch.save(state, tmp_path / "bare.pt")
    info = info_of(foveal.create_model("efficientvit_b0", weights=tmp_path / "bare.pt"))
    expected = info_of(foveal.load_model(tmp_path / "bare.pt"))
    assert info.labels.names
    assert (info.task, info.preprocess, info.labels) == (expected.task, expected.preprocess, expected.labels)
    segmenting = info_of(foveal.create_model("efficientvit_b0", "segment", weights=tmp_path / "bare.pt"))
    assert (segmenting.preprocess, segmenting.labels) == (Preprocess(), Labels())


def test_a_bare_file_says_how_many_classes(tmp_path: Path) -> None:
    """Without a description and num_classes the classifier is loaded; for another number of classes it is new."""
    source = foveal.create_model("efficientvit_b0", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "ten.pt")
    model = foveal.create_model("efficientvit_b0", weights=tmp_path / "ten.pt")
    assert info_of(model).num_classes == 10
    assert same(model.state_dict(), source.state_dict())
    other = foveal.create_model("efficientvit_b0", num_classes=5, weights=tmp_path / "ten.pt")
    ours, theirs = source.state_dict(), other.state_dict()
    changed = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}
    assert len(theirs["head.classifier.weight"]) == info_of(other).num_classes == 5


def test_a_bare_classifier_of_grey_images_opens(tmp_path: Path) -> None:
    model = foveal.create_model("efficientvit_b0", num_classes=3, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "grey.pt")
    info = foveal.load(tmp_path / "grey.pt", runtime="torch", device="cpu").info
    assert (info.in_chans, info.preprocess.mean, info.preprocess.std) == (1, (0.0,), (1.0,))


def regressor(path: Path) -> ModelInfo:
    """Save a regression model of three channels with a target; return its description."""
    model = foveal.create_model("efficientvit_b0", "regress", out_chans=3, head_width=8, head_depth=1)
    info = info_of(model).replace(target=Target("normals", scale=0.5))
    save_checkpoint(path, model.state_dict(), info)
    return info


def test_the_target_of_a_regression_file_is_kept(tmp_path: Path) -> None:
    info = regressor(tmp_path / "normals.safetensors")
    model = foveal.create_model("efficientvit_b0", "regress", weights=tmp_path / "normals.safetensors")
    assert (info_of(model).num_classes, info_of(model).target) == (3, info.target)


@pytest.mark.parametrize("options", [{"out_chans": 1}, {"num_classes": 1}])
def test_a_regression_file_gives_a_model_of_other_channels(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "normals.safetensors"
    regressor(path)
    model = foveal.create_model("efficientvit_b0", "regress", weights=path, **options).eval()
    assert (info_of(model).num_classes, info_of(model).target) == (1, Target())
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_names_of_another_task_are_not_taken_over(tmp_path: Path) -> None:
    classifier = foveal.create_model("efficientvit_b0", num_classes=5)
    path = tmp_path / "classifier.safetensors"
    save_checkpoint(path, classifier.state_dict(), info_of(classifier).replace(labels=Labels(tuple("abcde"))))
    assert info_of(foveal.create_model("efficientvit_b0", weights=path)).labels.names == tuple("abcde")
    segmenter = foveal.create_model("efficientvit_b0", "segment", num_classes=5, weights=path)
    assert info_of(segmenter).labels == Labels()


def test_a_reference_may_be_given_twice() -> None:
    model = foveal.create_model("efficientvit_b0.camvid", weights="efficientvit_b0.camvid")
    assert (info_of(model).task, info_of(model).num_classes) == ("segment", 11)


def test_half_keeps_large_values_and_whole_numbers(tmp_path: Path) -> None:
    """Values beyond 65504 would be infinite in float16; those that are infinite already stay so."""
    state = {
        "large": torch.tensor([[1e5, 1.0]]),
        "infinite": torch.tensor([[float("inf"), 1.0]]),
        "index": torch.tensor([[70_000, 1]]),
        "weight": torch.tensor([[0.5, 65504.0]]),
        "bias": torch.tensor([0.5]),
    }
    save_checkpoint(tmp_path / "half.safetensors", state, ModelInfo(), half=True)
    stored, _ = read_state(tmp_path / "half.safetensors")
    assert {key: value.dtype for key, value in stored.items()} == {
        "large": torch.float32,
        "infinite": torch.float16,
        "index": torch.int64,
        "weight": torch.float16,
        "bias": torch.float32,
    }
    assert all(torch.equal(stored[key].to(value.dtype), value) for key, value in state.items())


def test_hub_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own offline switch simulates a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"hub id nobody/nothing: .*a local path works offline") as error:
        foveal.create_model("efficientvit_b0", weights="nobody/nothing")
    assert "\n" not in str(error.value)


def test_folders_are_training_runs_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no best\.safetensors in this folder"):
        foveal.create_model("efficientvit_b0", weights=tmp_path)


def test_foreign_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="layout not recognised"):
        foveal.load_checkpoint(fresh(), {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no tensors"):
        foveal.load_checkpoint(fresh(), {})
    with pytest.raises(CheckpointError, match="no such file or training run"):
        foveal.load_checkpoint(fresh(), tmp_path / "missing.pt")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("efficentvit_b0",), {}, r"unknown model 'efficentvit_b0'; did you mean 'efficientvit_b0'\?"),
        (("efficientvit_b0", "segmnt"), {}, r"unknown task 'segmnt'; did you mean 'segment'\?"),
        (("efficientvit_b0",), {"scale": (3,)}, r"no option 'scale'; did you mean 'scales'\?"),
        (("efficientvit_b0",), {"head": "cityscapes"}, "no option 'head'"),
        (("efficientvit_b0", "segment"), {"head": "ade20k"}, "no published segmentation head 'ade20k'"),
        (("efficientvit_b1", "segment"), {"head": "ade2k"}, r"did you mean 'ade20k'\?"),
        (("efficientvit_b0",), {"scales": (4,)}, "give kernel sizes that are odd"),
        (("efficientvit_b0",), {"in_chans": 0}, "in_chans=0"),
        (("efficientvit_b0",), {"num_classes": -1}, "num_classes=-1"),
        (("efficientvit_b0", "segment"), {"num_classes": 0}, "num_classes=0"),
        (("efficientvit_b1", "segment"), {"features_only": True, "head": "ade20k"}, "no option 'head'"),
        (("efficientvit_b0",), {"attention_eps": "1e-5"}, "attention_eps='1e-5' is a text: give a number"),
        (("efficientvit_b0.camvid",), {"weights": "cityscapes"}, r"_b0\.camvid and weights=cityscapes name two sets"),
    ],
)
def test_create_model_names_the_nearest(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        foveal.create_model(*arguments, **options)


def test_unknown_tags_name_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"camvdi.*did you mean 'camvid'\?"):
        foveal.create_model("efficientvit_b0", "segment", weights="camvdi")


def test_list_models() -> None:
    assert foveal.list_models("efficientvit_b*") == [f"efficientvit_b{i}" for i in range(4)]
    assert foveal.list_models("*_b0.*", pretrained=True, task="segment") == [
        "efficientvit_b0.camvid",
        "efficientvit_b0.camvid_scratch",
        "efficientvit_b0.cityscapes",
    ]
    assert foveal.list_models("efficientvit_b1.*", pretrained=True, task="classify") == [
        f"efficientvit_b1.r{size}_in1k" for size in (224, 256, 288)
    ]
    assert "efficientvit_b0.camvid" in foveal.list_models("efficientvit_b0", pretrained=True)
    assert "efficientvit_b0.camvid" in foveal.list_models("*camvid", pretrained=True)
    assert foveal.list_models("nothing*") == []
    with pytest.raises(ConfigError, match="did you mean 'segment'"):
        foveal.list_models(task="segmentation")
