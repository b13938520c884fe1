"""Data sets are read or refused with the name of a file; augmentation changes image and mask in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from foveal.config import build_config, read_yaml, to_dict
from foveal.data.labels import CAMVID, CITYSCAPES
from foveal.data.segmentation import SegmentationData, class_counts, median_frequency_weights
from foveal.data.synthetic import NAMES, shapes_sample, write_shapes
from foveal.data.transforms import SegmentAugment
from foveal.errors import ConfigError, DataError
from foveal.training.config import TrainConfig


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two pairs in CamVid's layout."""
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    for stem in ("b", "a"):
        Image.new("RGB", (12, 8), "red").save(tmp_path / "train" / f"{stem}.jpg")
        mask = np.full((8, 12), 3, np.uint8)
        mask[0] = 11
        Image.fromarray(mask).save(tmp_path / "trainannot" / f"{stem}.png")
    return tmp_path


def test_camvid_layout(tree: Path) -> None:
    """Pairs are sorted by stem; the classes are CamVid's; void is ignored."""
    data = SegmentationData.open(tree, ["train"])
    image, mask = data[0]
    assert [pair[0].name for pair in data.pairs] == ["a.jpg", "b.jpg"]
    assert data.labels == CAMVID
    assert image.shape == (8, 12, 3)
    assert set(np.unique(mask)) == {3, 255}


def test_labels_are_the_data_sets_own() -> None:
    assert len(CAMVID.names) == 11
    assert (CITYSCAPES.names[0], CITYSCAPES.names[18], len(CITYSCAPES.names)) == ("road", "bicycle", 19)
    assert CITYSCAPES.palette[10] == (70, 130, 180)


def test_dataset_file_names_classes(tree: Path) -> None:
    described = {"names": ["a", "b", "c", "d"], "palette": [[0, 0, 0]] * 4, "ignore": [11, 255]}
    (tree / "dataset.yaml").write_text(yaml.safe_dump(described))
    data = SegmentationData.open(tree, ["train"])
    assert data.labels.names == ("a", "b", "c", "d")
    assert data[0][1].max() == 255
    (tree / "dataset.yaml").write_text("nmaes: [a]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'nmaes'; did you mean 'names'\?"):
        SegmentationData.open(tree, ["train"])


def test_dataset_file_must_name_classes_that_fit(tree: Path) -> None:
    """There are at most 4096 classes, and the palette needs one colour per class."""
    (tree / "dataset.yaml").write_text("names: [a, b]\npalette: [[0, 0, 0]]")
    with pytest.raises(ConfigError, match=r"dataset\.yaml: 2 names but 1 colours"):
        SegmentationData.open(tree, ["train"])
    (tree / "dataset.yaml").write_text(yaml.safe_dump({"names": [f"class {i}" for i in range(4097)]}))
    with pytest.raises(DataError, match="4097 classes; at most 4096"):
        SegmentationData.open(tree, ["train"])


def test_hidden_files_are_left_out(tree: Path) -> None:
    """A file ._a.jpg, as macOS writes it, is not an image and needs no mask."""
    (tree / "train" / "._a.jpg").write_bytes(b"\0\5\26\7")
    (tree / "trainannot" / "._a.png").write_bytes(b"\0\5\26\7")
    assert len(SegmentationData.open(tree, ["train"])) == 2


def _save_mask(tree: Path, mask: NDArray[np.uint8]) -> None:
    Image.fromarray(mask).save(tree / "trainannot" / "a.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: (t / "trainannot" / "a.png").unlink(), r"train/a\.jpg: has no mask"),
        (lambda t: Image.new("RGB", (12, 8)).save(t / "train" / "a.png"), "has the same stem as"),
        (
            lambda t: _save_mask(t, np.zeros((8, 8), np.uint8)),
            r"a\.png: mask of 8x8 \(W x H\) for .* a\.jpg of 12x8",
        ),
        (lambda t: _save_mask(t, np.full((8, 12), 77, np.uint8)), r"a\.png: id 77 \(96 pixels\), but there are 11"),
        (lambda t: Image.new("RGB", (12, 8)).save(t / "trainannot" / "a.png"), "class indices are expected|expected"),
        (lambda t: (t / "train" / "a.jpg").write_bytes(b"\xff\xd8 broken"), r"a\.jpg"),
    ],
)
def test_problems_name_the_file(tree: Path, spoil, message: str) -> None:
    spoil(tree)
    with pytest.raises(DataError, match=message):
        SegmentationData.open(tree, ["train"])[0]


def test_missing_splits_suggest_existing_ones(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'trian' .*did you mean 'train'\?"):
        SegmentationData.open(tree, ["trian"])
    with pytest.raises(DataError, match=r"no such folder$"):
        SegmentationData.open(tmp_path / "0" / "1", ["train"])
    with pytest.raises(DataError, match=f"no such folder; did you mean '{tree}'"):
        SegmentationData.open(f"{tree}s", ["train"])
    for name, message in (("data.yaml", "is a file: name its folder"), ("a.tar.gz", "is an archive: unpack it first")):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=f"{name}: {message}"):
            SegmentationData.open(tmp_path / name, ["train"])
    for path in (*(tree / "train").iterdir(), *(tree / "trainannot").iterdir()):
        path.unlink()
    with pytest.raises(DataError, match="no images"):
        SegmentationData.open(tree, ["train"])


def test_median_frequency_by_hand() -> None:
    """Class 1 occurs in one of two masks, so its frequency is relative to that mask alone."""
    masks = [np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 0, 255, 255]], np.uint8)]
    pixels, present = class_counts(masks, 3)
    assert pixels.tolist() == [5, 1, 0]
    assert present.tolist() == [8, 4, 0]
    median = (5 / 8 + 1 / 4) / 2
    assert median_frequency_weights(pixels, present) == pytest.approx([median / (5 / 8), median / (1 / 4), 0])
    with pytest.raises(DataError, match="no labelled pixels"):
        median_frequency_weights(np.zeros(2, np.int64), np.zeros(2, np.int64))


def coded() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A scene in which the red channel encodes the class: red = 80 * class."""
    mask = shapes_sample(np.random.default_rng(5), (96, 128))[1]
    image = np.repeat((mask * 80)[..., None], 3, axis=2)
    return image, mask


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_move_together(seed: int) -> None:
    image, mask = coded()
    augment = SegmentAugment((64, 80), (0.5, 2.0), jitter=0.0, fill=(0, 0, 0))
    out, target = augment(image, mask, np.random.default_rng(seed))
    assert out.shape == (64, 80, 3)
    assert target.shape == (64, 80)
    inside = target != 255
    agrees = np.abs(out[..., 0].astype(int) - target.astype(int) * 80)[inside] < 40
    assert agrees.mean() > 0.93  # interpolation blurs the edges only
    again = augment(image, mask, np.random.default_rng(seed))
    assert (again[0] == out).all()
    assert (again[1] == target).all()


def test_flips_mirror_both() -> None:
    image, mask = coded()
    straight = SegmentAugment((96, 128), (1.0, 1.0), flip=0.0, jitter=0.0)(image, mask, np.random.default_rng(0))
    mirrored = SegmentAugment((96, 128), (1.0, 1.0), flip=1.0, jitter=0.0)(image, mask, np.random.default_rng(0))
    assert (straight[0] == image).all()
    assert (straight[1] == mask).all()
    assert (mirrored[0] == image[:, ::-1]).all()
    assert (mirrored[1] == mask[:, ::-1]).all()


def test_outside_of_the_image_is_ignored() -> None:
    image, mask = coded()
    out, target = SegmentAugment((128, 128), (0.5, 0.5), jitter=0.0)(image, mask, np.random.default_rng(0))
    assert (target == 255).mean() > 0.5
    assert (out[target == 255] == (124, 116, 104)).all()


def test_rare_crops_show_rare_classes_more_often() -> None:
    image, mask = coded()
    mask = np.where(mask == 2, 0, mask)
    mask[:4, :4] = 2
    weights = (0.01, 0.01, 1.0, 0.01)

    def share(rare_crop: float) -> float:
        augment = SegmentAugment((32, 32), (1.0, 1.0), rare_crop=rare_crop, class_weights=weights)
        crops = (augment(image, mask, np.random.default_rng(seed))[1] for seed in range(60))
        return float(np.mean([(crop == 2).any() for crop in crops]))

    assert share(1.0) > 0.9
    assert share(0.0) < 0.3


def test_jitter_changes_colours_only() -> None:
    image, mask = coded()
    out, target = SegmentAugment((96, 128), (1.0, 1.0), flip=0.0, jitter=0.5)(image, mask, np.random.default_rng(1))
    assert (target == mask).all()
    assert not (out == image).all()


def test_synthetic_set_is_reproducible(tmp_path: Path) -> None:
    first, second = (write_shapes(tmp_path / name, train=3, val=1, seed=4) for name in "ab")
    for path in sorted(first.rglob("*.png")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    assert SegmentationData.open(first, ["train", "val"]).labels.names == NAMES
    assert len(SegmentationData.open(first, ["train", "val"])) == 4


def test_synthetic_sets_replace_only_themselves(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for _ in range(2):
        assert write_shapes(own, train=1, val=1, size=(16, 16)) == own
    (other / "train").mkdir(parents=True)
    (other / "train" / "0000.png").write_bytes(b"a photograph")
    (own / "dataset.yaml").write_text("names: [sky]\n")
    for folder in (other, own):
        with pytest.raises(DataError, match=f"{folder.name} has a data set, which these images would overwrite"):
            write_shapes(folder, train=1, val=1, size=(16, 16))
    assert [path.read_bytes() for path in other.rglob("*.*")] == [b"a photograph"]
    assert (own / "dataset.yaml").read_text() == "names: [sky]\n"


def test_config_round_trip_and_conversions(tmp_path: Path) -> None:
    values = {"lr": "1e-3", "crop": [64, 96], "splits": ["train", "val"], "epochs": 3, "options": {"scales": [3, 5]}}
    config = build_config(TrainConfig, values | {"loss": {"cross_entropy": "1e0", "lovasz": 2}})
    assert config.loss == {"cross_entropy": 1.0, "lovasz": 2.0}
    assert (config.lr, config.crop, config.splits) == (1e-3, (64, 96), ("train", "val"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert build_config(TrainConfig, read_yaml(tmp_path / "config.yaml")) == config
    assert to_dict(TrainConfig(options={"scales": (3, 5)}))["options"] == {"scales": [3, 5]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 2}, r"unknown key 'batchsize'; did you mean 'batch_size'\?"),
        ({"epochs": 1.5}, "epochs: expected int, got 1.5"),
        ({"epochs": True}, "epochs: expected int, got True"),
        ({"crop": [64]}, "crop: expected 2 values, got 1"),
        ({"crop": 64}, "crop: expected a list"),
        ({"class_weights": "sqrt"}, "did you mean 'sqrt_median'"),
        ({"scale": [2.0, 1.0]}, "out of range"),
        ({"lr": "fast"}, "lr: expected float"),
        ({"lr": float("inf")}, "lr: expected a finite number"),
        ({"scale": [0.5, "nan"]}, "scale: expected a finite number"),
        ({"splits": "train"}, "splits: expected a list"),
        ({"crop": [31, 64]}, "out of range"),
        ({"ema_decay": 1}, "out of range"),
        ({"loss": "lovasz"}, "loss: expected a mapping such as {name: value}, got 'lovasz'"),
        ({"loss": {"lovas": 1}}, r"loss key='lovas'; did you mean 'lovasz'\?"),
        ({"loss": {"lovasz": "high"}}, r"loss\.lovasz: expected float, got 'high'"),
        ({"loss": {"lovasz": 0}}, "loss={'lovasz': 0.0} is out of range"),
        ({"loss": {}}, "loss={} is out of range"),
        ({"options": {3: 5}}, "options key: expected str, got 3"),
    ],
)
def test_config_mistakes_are_explained(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(TrainConfig, values)


def test_bad_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name in ("bad.yaml", "list.yaml", "missing.yaml"):
        with pytest.raises(ConfigError, match=name) as error:
            read_yaml(tmp_path / name)
        assert "\n" not in str(error.value)
