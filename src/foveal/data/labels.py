"""Class names and colours of public data sets, in the order of their training ids."""

from __future__ import annotations

from collections.abc import Sequence

from .. import assets
from ..info import Labels

CAMVID = Labels(
    names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

CITYSCAPES = Labels(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

ADE20K = Labels(
    names=(
        "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
        "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
        "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
        "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
        "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand",
        "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
        "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove",
        "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
        "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver",
        "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet",
        "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
        "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
        "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
        "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier",
        "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
    ),
)  # fmt: skip

#: Ids in the ``labelIds`` files of Cityscapes to training ids; every other id up to 33 is ignored.
CITYSCAPES_TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip

_IMAGENET = [row.split(" ", 1) for row in assets.path("imagenet_classes", ".txt").read_text("utf-8").splitlines()]
IMAGENET_IDS = tuple(row[0] for row in _IMAGENET)  #: WordNet ids
IMAGENET = Labels(tuple(row[1] for row in _IMAGENET))

#: Classes by the name of the published head that predicts them.
OF_HEAD = {"cityscapes": CITYSCAPES, "ade20k": ADE20K}


def class_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """How the second list of classes differs from the first, for messages; empty if they are equal."""
    if tuple(names) == tuple(others):
        return ""
    missing = [name for name in names if name not in others]
    added = [name for name in others if name not in names]
    if folded := {name.casefold() for name in missing} & {name.casefold() for name in added}:
        return f"{next(name for name in added if name.casefold() in folded)!r} differs in case"
    parts = [f"{', '.join(map(repr, missing[:5]))} missing"] if missing else []
    parts += [f"{', '.join(map(repr, added[:5]))} added"] if added else []
    return "; ".join(parts) or "the same names in another order"


def of_tag(tag: str) -> Labels:
    """Classes of published weights by their tag, for example "cityscapes" or "r224_in1k"; none if it is unknown."""
    if tag.endswith("in1k"):
        return IMAGENET
    return CAMVID if tag.startswith("camvid") else OF_HEAD.get(tag, Labels())
