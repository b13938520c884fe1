"""Train semantic segmentation: paired augmentation, losses, mIoU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.bands import described_by, read_preprocess
from ..data.class_map import read_class_map
from ..data.masks import note_black_and_white
from ..data.segmentation import class_counts, median_frequency_weights
from ..data.transforms import SegmentAugment
from ..errors import ConfigError, DataError, InputError, nearest
from ..evaluation.metrics import SegmentScores, confusion_matrix
from ..factory.load_model import load_model
from ..images.bands import RGB
from ..images.preparing import prepare
from ..info import ignore_id, info_of
from ..layers.resample import ceil_div
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..tasks.segment import SegmentationModel
from .augment import Augment
from .cache import Cached
from .common_settings import DEFAULT_CROP
from .job import note_colours, open_data
from .losses import SegmentationLoss
from .pixel_origins import to_target, with_image_number, with_origins
from .segment_settings import SegmentSettings


class SegmentJob:
    """Semantic segmentation: paired augmentation, :class:`~foveal.training.losses.SegmentationLoss`, mIoU.

    The data set is decoded once and stays in memory, four bytes per pixel of RGB, up to ``config.cache_gib``.
    """

    def __init__(self, root: str | Path, config: SegmentSettings, progress: Progress) -> None:
        self.config, self.progress, self._start_said = config, progress, False
        self.data, self.held_out = open_data(root, config, "segment")
        for text in getattr(self.data, "notes", ()):
            progress.note(text)
        self.labels, self.validation = self.data.labels, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        balanced = self._balanced_weights(progress)
        self.preprocess = read_preprocess(self.data, described_by(root), progress)
        note_colours(self.data, config, progress)
        peak = self.preprocess.peak
        fill = {} if self.data.bands == RGB else {"fill": tuple(peak * mean for mean in self.preprocess.mean)}
        self.augment = SegmentAugment(
            config.crop or DEFAULT_CROP,
            config.scale,
            config.flip,
            config.jitter,
            config.tint,
            config.rare_crop,
            tuple(np.sqrt(balanced)),
            **fill,
        )
        self.more = Augment.of(config, self.augment.fill, len(self.labels.names))
        self.tracks = bool(config.teacher_cache)
        self.class_weights = torch.tensor(self._weights(balanced), dtype=torch.float32)
        self.deep_supervision = config.deep_supervision
        self.criterion = SegmentationLoss({**config.loss}, self.class_weights)

    def _weights(self, balanced: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight of each class in the loss, ``(C,)``.

        Raises:
            ConfigError: there is not one number per class, or a class does not exist.
        """
        chosen, names = self.config.class_weights, self.labels.names
        if isinstance(chosen, str):
            return {"none": np.ones(len(balanced)), "sqrt_median": np.sqrt(balanced), "median": balanced}[chosen]
        if isinstance(chosen, dict):
            if unknown := next((name for name in chosen if name not in names), None):
                raise ConfigError(f"class_weights: the data has no class {unknown!r}{nearest(unknown, names)}")
            return np.array([chosen.get(name, 1.0) for name in names])
        if len(chosen) != len(names):
            raise ConfigError(f"class_weights: {len(chosen)} numbers for {len(names)} classes: give one per class")
        return np.array(chosen)

    def _balanced_weights(self, progress: Progress) -> NDArray[np.float64]:
        """Weight of each class by median frequency balancing, ``(C,)``."""
        masks = [mask for _, mask in self.read.readable()]
        pixels, present = class_counts(masks, len(self.labels.names))
        ignored = sum(int(np.count_nonzero(mask == ignore_id(len(self.labels.names)))) for mask in masks)
        if note := note_black_and_white(getattr(self.data, "read_mask", None), pixels, ignored):
            progress.note(note)
        balanced = median_frequency_weights(pixels, present)
        if len(self.read.sampled) < len(self.data) and not balanced.all():
            # The other masks may contain these classes. A zero weight would stop the class from being learnt.
            rare = [name for name, weight in zip(self.labels.names, balanced, strict=True) if not weight]
            progress.note(
                f"not in the {len(self.read.sampled)} masks that were counted, so weighted as the rarest class: "
                f"{', '.join(rare)}"
            )
            balanced = np.where(balanced > 0, balanced, balanced.max())
        return balanced

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, mask = self._augmented(index, rng)
        if (name := self.more.draw_mix(rng)) and (other := self._partner(rng)):
            mixed = self.more.mix(name, image, other[0], rng)
            assert mixed.region is not None
            image, mask = mixed.image, mask.copy()
            mask[mixed.region] = other[1][mixed.region]
        return torch.from_numpy(prepare(image, self.preprocess)[0]), to_target(mask)

    def _augmented(self, index: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """An image and its mask; with stored outputs of a teacher, the mask also says where each pixel comes from."""
        image, mask = self.read[index]
        mask = with_origins(mask) if self.tracks else mask
        image, mask = self.more(*self.augment(image, mask, rng=rng), rng)
        return image, with_image_number(mask, index) if self.tracks else mask

    def _partner(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Another sample, drawn at random; ``None`` if it cannot be read, which is reported when its turn comes."""
        try:
            return self._augmented(int(rng.integers(len(self.data))), rng)
        except (DataError, InputError):
            return None

    def trainee(self, model: nn.Module) -> nn.Module:
        if self.config.class_map:
            self._start_classifier(model)
        return DeeplySupervised(model, len(self.labels.names)) if self.deep_supervision else model

    def _start_classifier(self, model: nn.Module) -> None:
        """Give each class the mean weights of the classes of ``config.weights`` that map to it."""
        config = self.config
        source = load_model(config.weights, config.model)
        assert isinstance(model, SegmentationModel)
        if not isinstance(source, SegmentationModel):
            raise ConfigError(
                f"class_map: {config.weights} has no classifier of pixels to start from: name weights for "
                "segmentation, or leave class_map out"
            )
        old, new = source.head.classifier, model.head.classifier
        assert old.bias is not None
        assert new.bias is not None
        known = info_of(source).labels.names
        targets = read_class_map(config.class_map, known, self.labels.names, partial=True)
        fresh = np.setdiff1d(np.arange(len(self.labels.names)), targets)
        with torch.no_grad():
            if fresh.size and old.weight.shape == new.weight.shape:  # these rows came with the weights
                initial = copy.deepcopy(new)
                initial.reset_parameters()
                new.weight[fresh], new.bias[fresh] = initial.weight[fresh], cast(Tensor, initial.bias)[fresh]
            for target in np.unique(targets[targets >= 0]):
                sources = torch.from_numpy(targets == target)
                new.weight[target] = old.weight[sources].mean(0)
                new.bias[target] = old.bias[sources].mean(0)
        if not self._start_said:  # batch_size=auto builds the model once more
            self._start_said = True
            self._say_start(known, targets)

    def _say_start(self, known: Sequence[str], targets: NDArray[np.int64]) -> None:
        """Report from which classes of the weights each class starts, and which classes start fresh or are not used."""
        kept, fresh = [], []
        for target, name in enumerate(self.labels.names):
            sources = [known[int(source)] for source in np.flatnonzero(targets == target)]
            kept += [f"{name} from {' + '.join(sources)}"] if sources else []
            fresh += [] if sources else [name]
        unused = [known[int(source)] for source in np.flatnonzero(targets < 0)]
        parts = {"the classifier keeps": kept, "starts fresh for": fresh, "does not use": unused}
        self.progress.note("; ".join(f"{text} {', '.join(names)}" for text, names in parts.items() if names))

    def image_network(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        exact = torch.float32 if target.device.type == "mps" else torch.float64
        classes = len(self.class_weights)
        weight_of_id = F.pad(self.class_weights, (0, ignore_id(classes) + 1 - classes)).to(target.device, exact)
        return weight_of_id[target].sum()

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        if not self.deep_supervision:
            return self.criterion(trainee(image, upsample=False), target)
        main, *auxiliary = trainee(image)
        extra = torch.stack([self.criterion(logits, target) for logits in auxiliary]).mean()
        return self.criterion(main, target) + self.deep_supervision * extra

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """The confusion matrix ``(C, C)``; rows are targets."""
        assert self.held_out is not None
        classes = len(self.labels.names)
        matrix = np.zeros((classes, classes), np.int64)
        for index in indices:
            image, target = self.held_out[index]
            matrix += confusion_matrix(target, predictor.segment(image).mask, classes)
        return matrix

    def scores(self, counts: NDArray[np.int64]) -> SegmentScores:
        return SegmentScores(counts, self.labels.names)

    def only_class(self, counts: NDArray[np.int64]) -> str:
        """The class that is predicted almost everywhere.

        At most 1 % of the labelled pixels of the others are found, and at most 0.1 % of all pixels get another class.
        """
        one = counts.sum(0).argmax()
        others = np.delete(np.arange(len(counts)), one)
        labelled, found, predicted = counts[others].sum(), counts[others, others].sum(), counts[:, others].sum()
        alone = labelled and 100 * found <= labelled and 1000 * predicted <= counts.sum()
        return self.labels.names[one] if alone else ""


class DeeplySupervised(nn.Module):
    """A segmentation model with an additional classifier on each of the backbone's two coarsest maps, for training.

    ``(B, in_chans, H, W)`` -> logits of the head, then those of the auxiliary classifiers, each at its own stride (deep
    supervision: arXiv 1409.5185; as auxiliary loss for segmentation, PSPNet, arXiv 1612.01105, section 3.3).
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        assert isinstance(model, SegmentationModel)
        self.model = model
        self.coarsest = model.backbone.feature_info[-2:]
        self.classifiers = nn.ModuleList(nn.Conv2d(info.channels, num_classes, 1) for info in self.coarsest)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.maps(x)
        outputs = [(self.model.head(maps), self.model.stride)]
        for classifier, info, features in zip(self.classifiers, self.coarsest, maps[-2:], strict=True):
            outputs.append((classifier(features), info.stride))
        h, w = x.shape[-2:]
        return [logits[..., : ceil_div(h, stride), : ceil_div(w, stride)] for logits, stride in outputs]
