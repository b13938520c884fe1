"""From an image to a result: the same first and last steps for every runtime, with a runner in between."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, InputError
from ..images.bands import RGB, Bands
from ..images.preparing import describe_size, prepare
from ..images.reading import ImageLike, Picture, read_image, read_picture
from ..images.sources import check_images, is_batch
from ..info import ModelInfo
from ..progress import Report
from ..task import TASKS, find_task
from .batching import Batches, Prepared, check_batch_size
from .everything import find_everything
from .everything_options import EverythingOptions
from .exported import NetworkRunner
from .input_limits import InputLimits
from .mask_results import EverythingResult
from .options import Options
from .prompting import Embedding, open_embedding
from .regress import RegressResult
from .results import ClassifyResult, SegmentResult, UpscaleResult, class_names
from .runner import PromptRunner, Runner, check_finite
from .segmenting import prepare_map
from .tiles import MIN_SIZE, check_segment_tiles
from .upscaling import Enlarger, prepare_picture

_LOG = logging.getLogger(__name__)
_PLAIN = Options()


class Predictor:
    """A model that takes images.

    ``predictor(image)`` returns a result, ``predictor([image, ...])`` a list of results; ``predictor.stream(images)``
    yields results one by one, in constant memory.

    Attributes:
        runner: runs the network on numpy arrays, see :class:`foveal.prediction.runner.Runner`.
        info: description of the model and of its preprocessing.
        runtime: what runs the model and where, as text.
        bands: number of bands and type of values as which images are read.
        limits: sizes of the images that the network takes; images of other sizes are padded, cut or resized.

    Raises:
        ConfigError: the model takes other images than RGB of 8 bits and has no classes, or its mean has another number
            of channels than its images.
    """

    def __init__(self, runner: Runner, info: ModelInfo, runtime: str) -> None:
        self.bands = Bands(info.in_chans, info.preprocess.dtype)
        task = TASKS.get(info.task)
        if self.bands != RGB and not (task and (task.has_classes or task.has_maps)):
            raise ConfigError(
                f"this model takes {self.bands}; a predictor reads other bands than RGB of 8 bits for segmentation, "
                "regression and classification only: call the model directly"
            )
        if len(info.preprocess.mean) != info.in_chans or len(info.preprocess.std) != info.in_chans:
            raise ConfigError(
                f"the model takes {info.in_chans} channels, but its description has the mean of "
                f"{len(info.preprocess.mean)}: give one mean and std per channel (foveal.Preprocess)"
            )
        self.runner, self.info, self.runtime = runner, info, runtime
        self.limits = runner.limits if isinstance(runner, NetworkRunner) else InputLimits()
        self._warned = False  # whether it was said that thresholds are too high

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes or channels by index; "class 0", ... where the model has none; empty without either."""
        return class_names(self.info.labels, self.info.num_classes)

    def __repr__(self) -> str:
        info, classes = self.info, ""
        if info.num_classes:
            first = ", ".join(map(repr, self.names[:3])) + ", ..." * (len(self.names) > 3)
            kind = "classes" if TASKS[info.task].has_classes else "channels"
            classes = f", {info.num_classes} {kind} ({first})"
        scale = f", x{info.options['scale']}" if "scale" in info.options else ""
        task = TASKS.get(info.task)
        shrinks = task is not None and (task.has_classes or task.has_maps)
        size = describe_size(info.preprocess if shrinks else dataclasses.replace(info.preprocess, max_side=None))
        if self.limits.size is not None and info.preprocess.size is None:
            size = str(self.limits)
        return f"Predictor({info.ref or 'no name'}, {info.task or 'no task'}{classes}{scale}, {size}, {self.runtime})"

    @overload
    def __call__(
        self,
        image: ImageLike,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        batch_size: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        progress: Report | None = None,
    ) -> Any: ...
    @overload
    def __call__(
        self,
        image: Sequence[ImageLike] | Iterator[ImageLike],
        **options: Any,
    ) -> list[Any]: ...
    def __call__(self, image, *, batch_size=None, **options):
        """Predict: the model's task decides whether the result is a SegmentResult, ClassifyResult, UpscaleResult,
        RegressResult or EverythingResult (the methods ``segment``, ``classify``, ... are typed).

        Args:
            image: path, content of a file (bytes), open binary file, Pillow image or uint8 ``(H, W, 3)`` array; or a
                list, tuple or iterator of them. For a model of other bands: a TIFF, NPY or PNG file, or an array
                ``(H, W, C)`` of the type that the model was trained on.
            tile: side of the square tiles into which a large image is cut, at full resolution; default: the whole
                image at once (upscaling: only up to half a megapixel, equal tiles of at most that size beyond).
            overlap: pixels that neighbouring tiles share at least; default: a third of ``tile`` (upscaling: 32).
            exact: upscaling: as for :meth:`upscale`.
            batch_size: of several images, how many may run at once; see :meth:`stream`.
            flip: segmentation: the mean over the image and its mirror image.
            scales: segmentation: the mean over copies of the image at these scales of the network's usual input.
            progress: called with the share of the current image that is done, 0 to 1, and a text: after each tile, and
                each copy.

        Raises:
            InputError: an image that cannot be read, or a ``tile`` or ``overlap`` that cannot be used.
            ConfigError: a model that gives no result, for example a backbone or a classifier without classes, or an
                option that it does not have.
        """
        if is_batch(image):
            return list(self.stream(image, batch_size=batch_size, **options))
        chosen = self._options(batch_size, **options)
        if batch_size is not None and batch_size > 1:
            raise ConfigError(f"batch_size={batch_size} is for several images: give a list")
        return self.prepare(image, chosen).run(self.runner)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        batch_size: int | None = None,
        errors: Literal["raise", "return"] = "raise",
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        progress: Report | None = None,
    ) -> Iterator[Any]:
        """Predict one image after the other, in their order, without holding the results.

        The images of a list or tuple, and of any iterable if ``batch_size`` is given, are read and prepared by threads
        while the network runs: at most a batch and four images ahead, and no more than 256 MiB. Arrays must therefore
        stay unchanged until their result is there. Without ``batch_size``, an iterator is asked for an image only when
        the result before was taken: it may be a camera.

        Args:
            images: as for :meth:`__call__`.
            tile: as for :meth:`__call__`, and so are ``overlap``, ``exact``, ``flip``, ``scales`` and ``progress``.
            batch_size: how many successive images may run at once; those whose network inputs have the same shape do.
                Results are those of single images within the rounding of float32. Upscaled images larger than half a
                megapixel run alone. Default: 1.
            errors: what happens with an image that cannot be used. "raise": its InputError ends the iteration, after
                the results before it. "return": the InputError stands in the place of its result.

        Raises:
            InputError: ``images`` is a single image, or one of them cannot be used.
            ConfigError: as :meth:`__call__`, and more than one image at once with tiles or a promptable model.
        """
        check_images(images)
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors={errors!r}: give 'raise' or 'return'")
        options = self._options(
            batch_size, tile=tile, overlap=overlap, exact=exact, flip=flip, scales=scales, progress=progress
        )

        batches = Batches(self.runner, partial(self.prepare, options=options), batch_size or 1)
        ahead = batch_size is not None or isinstance(images, list | tuple)
        for result in batches.run(images) if ahead else map(batches.run_one, images):
            if errors == "raise" and isinstance(result, InputError):
                raise result
            yield result

    def prepare(self, image: ImageLike, options: Options = _PLAIN) -> Prepared:
        """Read an image and prepare it for the network, which :class:`~foveal.prediction.batching.Batches` then runs.

        Several threads may call this at once.

        Args:
            image: as for :meth:`__call__`, one.
            options: how it is treated.

        Raises:
            InputError: as :meth:`__call__`.
        """
        return _ANSWERS[self.info.task](self, image, options)

    def _options(self, batch_size: int | None, *, progress: Report | None = None, **options: Any) -> Options:
        """Check the options, and refuse those that this model does not have.

        Raises:
            ConfigError: one line about the option.
        """
        check_batch_size(batch_size)
        info = self.info
        if info.task not in _ANSWERS:
            raise ConfigError(f"{info.ref} is for {info.task!r}, which gives no result: call predictor.runner directly")
        self.check_classes()
        chosen = Options.of({**options, "report": progress})
        chosen.check(info, batch_size)
        return chosen

    def _check_answers_with(self, prepare: Callable[..., Prepared]) -> None:
        """Check that a method is the one for the model's task.

        Raises:
            ConfigError: it is for another task.
        """
        if _ANSWERS.get(self.info.task) is not prepare:
            raise ConfigError(f"{self.info.ref or 'this model'} is for {self.info.task!r}: call predictor(image)")

    def check_classes(self) -> None:
        """Refuse a classifier whose output is features.

        Raises:
            ConfigError: it has no classes.
        """
        task = find_task(self.info.task)
        if task.has_classes and not task.labels_pixels and not self.info.num_classes:
            raise ConfigError(
                f"{self.info.ref} has no classes (num_classes=0), its output is features: call predictor.runner, or "
                "foveal batch --result embeddings"
            )

    def classify(self, image: ImageLike) -> ClassifyResult:
        """Classify one image; see :meth:`__call__`."""
        self._check_answers_with(Predictor._prepare_classify)
        return self._prepare_classify(image, self._options(None)).run(self.runner)

    def _prepare_classify(self, image: ImageLike, options: Options) -> Prepared:
        if options.tile is not None or options.overlap is not None:
            raise InputError("tile, overlap: a classifier sees the whole image; leave them out")
        prepared = prepare(self.bands.read(image), self.info.preprocess, MIN_SIZE)
        labels = self.info.labels
        return Prepared(
            prepared, lambda output: ClassifyResult(self._checked_logits(output, 2), labels), prepared.nbytes
        )

    def _checked_logits(self, output: NDArray[np.float32], ndim: int) -> NDArray[np.float32]:
        """The network's output for one image without the batch; with it, it has to have ``ndim`` dimensions.

        Raises:
            CheckpointError: the network's output has another shape than its description says.
            InputError: it has values that are not finite.
        """
        if output.ndim != ndim or len(output) != 1 or output.shape[1] != (self.info.num_classes or output.shape[1]):
            raise CheckpointError(
                f"{self.info.ref}: the network gives an output of shape {output.shape} instead of one for "
                f"{self.info.num_classes} classes or channels: its description is of another model"
            )
        check_finite(output)
        return output[0]

    def encode(self, image: ImageLike) -> Embedding:
        """Encode an image once, for any number of prompts: ``encode(image).prompt(points=, labels=, boxes=, masks=)``.

        Raises:
            ConfigError: the model is not promptable.
            InputError: an image that cannot be read.
        """
        runner, pixels = self.prompter(), read_image(image)
        features = runner(prepare(pixels, self.info.preprocess))
        check_finite(features)
        return Embedding(features, (pixels.shape[0], pixels.shape[1]), self.info.ref, runner, pixels)

    def everything(
        self, image: ImageLike, *, progress: Callable[[int], object] | None = None, **options: Any
    ) -> EverythingResult:
        """Find the masks of all objects in an image, without prompts from the user.

        Args:
            image: path, Pillow image or uint8 ``(H, W, 3)`` array.
            progress: called with the number of points just done; they add up to ``EverythingOptions.points``.
            **options: fields of :class:`foveal.EverythingOptions`, with SAM's names and defaults:
                ``points_per_side=32``, ``output_mode="binary_mask"``, ...; ``fast=True`` uses far fewer prompts.
                ``pred_iou_thresh`` and ``stability_score_thresh`` are by default those of the weights, or SAM's 0.88
                and 0.95.

        Raises:
            ConfigError: the model is not promptable, an unknown option, or a value out of range.
            InputError: an image that cannot be read.
            DependencyError: ``output_mode="coco_rle"`` without pycocotools.
        """
        self.prompter()
        checked, own = EverythingOptions.of(options), self.info.mask_thresholds
        found = find_everything(self.encode, read_image(image), checked, own, progress)
        if not found and not self._warned and (excess := checked.above_own(own)):
            self._warned = True
            _LOG.warning("%s: no masks, with thresholds above those of these weights: %s", self.info.ref, excess)
        return found

    def open_embedding(self, path: str | Path) -> Embedding:
        """Read an embedding that :meth:`Embedding.save` wrote.

        Raises:
            ConfigError: the model is not promptable.
            InputError: no such file, another kind of file, or an embedding of another model.
        """
        return open_embedding(path, self.info.ref, self.prompter())

    def prompter(self) -> PromptRunner:
        """The runner of a promptable model.

        Raises:
            ConfigError: the model is not promptable.
        """
        if not find_task(self.info.task).takes_prompts:
            raise ConfigError(
                f"{self.info.model} is for {self.info.task!r}, it takes no prompts; load a promptable model"
            )
        return cast("PromptRunner", self.runner)

    def segment(
        self,
        image: ImageLike,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        progress: Report | None = None,
    ) -> SegmentResult:
        """Segment one image; see :meth:`__call__`."""
        self._check_answers_with(Predictor._prepare_segment)
        options = self._options(None, tile=tile, overlap=overlap, flip=flip, scales=scales, progress=progress)
        return self._prepare_segment(image, options).run(self.runner)

    def _prepare_segment(self, image: ImageLike, options: Options) -> Prepared:
        return self._prepare_map(image, options, lambda *parts: SegmentResult(*parts, labels=self.info.labels))

    def regress(
        self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None, progress: Report | None = None
    ) -> RegressResult:
        """Predict the values of each pixel of one image; see :meth:`__call__`."""
        self._check_answers_with(Predictor._prepare_regress)
        options = self._options(None, tile=tile, overlap=overlap, progress=progress)
        return self._prepare_regress(image, options).run(self.runner)

    def _prepare_regress(self, image: ImageLike, options: Options) -> Prepared:
        return self._prepare_map(image, options, lambda *parts: RegressResult.of(self.info, *parts))

    def _prepare_map(self, image: ImageLike, options: Options, result: Callable[..., Any]) -> Prepared:
        """Prepare an image for a network with a map at its stride; ``result`` takes pixels, map and scale."""
        shared = self.check_tiles(options.tile, options.overlap)

        def check(output: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._checked_logits(output, 4)

        return prepare_map(self.bands.read(image), self.runner, check, self.info, options, shared, result)

    def check_tiles(self, tile: int | None, overlap: int | None = None) -> int:
        """Return the overlap of tiles for segmentation in pixels; default: a third of ``tile``, and 0 without tiles.

        Raises:
            InputError: tiles that this model cannot use, or an overlap without tiles.
        """
        if tile is None:
            if overlap is not None:
                raise InputError(f"overlap={overlap} needs tiles: give tile, too")
            return 0
        if self.info.preprocess.size is not None:
            raise InputError("tile: this model resizes every image to a fixed size, so tiles would change the result")
        if not self.limits.fits(tile, tile):
            raise InputError(f"tile={tile}: this file takes {self.limits}: give a smaller tile")
        return check_segment_tiles(tile, overlap, self.info.output_stride)

    def upscale(
        self,
        image: ImageLike,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        progress: Report | None = None,
    ) -> UpscaleResult:
        """Upscale one image; see :meth:`__call__`. Alpha, 16 bits, grey and the colour profile are kept.

        Args:
            image: path, Pillow image or uint8 or uint16 array.
            tile: side of the tiles.
            overlap: pixels that neighbouring tiles share at least.
            exact: the result of the whole image in one pass of the network, within rounding, computed in pieces of
                ``tile`` pixels; maps between its passes are kept in memory or in a temporary folder.
            progress: called with the share of the tiles that are done, 0 to 1, and a text.

        Raises:
            ConfigError: ``exact`` with an exported file (except weights of the package in ONNX Runtime), or with a
                network that cannot be computed in pieces.
        """
        self._check_answers_with(Predictor._prepare_upscale)
        options = self._options(None, tile=tile, overlap=overlap, exact=exact, progress=progress)
        return self._prepare_upscale(image, options).run(self.runner)

    def _prepare_upscale(self, image: ImageLike, options: Options) -> Prepared:
        return prepare_picture(read_picture(image), self._enlarger(), options)

    def _enlarger(self) -> Enlarger:
        return Enlarger(self.runner, self.info, self.runtime, self.limits)

    def upscaled_bands(
        self,
        picture: Picture,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        progress: Report | None = None,
    ) -> Iterator[NDArray[Any]]:
        """The result of :meth:`upscale` in bands from top to bottom, for results that are too large for memory."""
        return self._enlarger().bands(picture, Options(tile, overlap, exact, report=progress))

    def _prepare_everything(self, image: ImageLike, options: Options) -> Prepared:
        if options.tile is not None or options.overlap is not None:
            raise InputError("tile, overlap: promptable models have crops for this, everything(crop_n_layers=1)")
        pixels = read_image(image)
        return Prepared(None, lambda _: self.everything(pixels), pixels.nbytes)


#: How ``predictor(image)`` prepares an image, by task.
_ANSWERS: dict[str, Callable[[Predictor, ImageLike, Options], Prepared]] = {
    "classify": Predictor._prepare_classify,
    "segment": Predictor._prepare_segment,
    "upscale": Predictor._prepare_upscale,
    "regress": Predictor._prepare_regress,
    "prompt": Predictor._prepare_everything,
}
