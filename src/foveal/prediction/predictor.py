"""From an image to a result: the same first and last steps for every runtime, with a runner in between."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, InputError
from ..images.bands import RGB, Bands
from ..images.preparing import network_size, prepare
from ..images.reading import ImageLike, Picture, read_image, read_picture
from ..images.sources import check_images, is_batch
from ..info import ModelInfo, Preprocess
from ..task import TASKS, find_task
from .batching import Batches, Prepared, check_batch_size
from .everything import find_everything
from .everything_options import EverythingOptions
from .exported import NetworkRunner
from .input_limits import InputLimits
from .mask_results import EverythingResult
from .prompting import Embedding, open_embedding
from .results import ClassifyResult, SegmentResult, UpscaleResult, class_names
from .runner import PromptRunner, Runner
from .tiles import (
    MIN_SIZE,
    WHOLE,
    check_segment_tiles,
    check_upscale_tiles,
    enlarged_bands,
    tiled_logits,
    upscale_window,
)
from .torch_runner import TorchRunner

_LOG = logging.getLogger(__name__)


class Predictor:
    """A model that takes images.

    ``predictor(image)`` returns a result, ``predictor([image, ...])`` a list of results; ``predictor.stream(images)``
    yields results one by one, in constant memory.

    Attributes:
        runner: runs the network on numpy arrays, see :class:`foveal.prediction.runner.Runner`.
        info: description of the model and of its preprocessing.
        runtime: what runs the model and where, as text.
        bands: what images are read as.
        limits: of the images that the network takes; others are fitted to it.

    Raises:
        ConfigError: the model takes other images than RGB of 8 bits and has no classes, or its mean has another number
            of channels than its images.
    """

    def __init__(self, runner: Runner, info: ModelInfo, runtime: str) -> None:
        self.bands = Bands(info.in_chans, info.preprocess.dtype)
        if self.bands != RGB and not (info.task in TASKS and TASKS[info.task].has_classes):
            raise ConfigError(
                f"this model takes {self.bands}; a predictor reads other bands than RGB of 8 bits for segmentation "
                "and classification only: call the model directly"
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
        """Class names by index; "class 0", ... where the model has none; empty for tasks without classes."""
        return class_names(self.info.labels, self.info.num_classes)

    def __repr__(self) -> str:
        info, classes = self.info, ""
        if info.num_classes:
            first = ", ".join(map(repr, self.names[:3])) + ", ..." * (len(self.names) > 3)
            classes = f", {info.num_classes} classes ({first})"
        scale = f", x{info.options['scale']}" if "scale" in info.options else ""
        size = _describe_size(info.preprocess)
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
    ) -> Any: ...
    @overload
    def __call__(
        self,
        image: Sequence[ImageLike] | Iterator[ImageLike],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        batch_size: int | None = None,
    ) -> list[Any]: ...
    def __call__(self, image, *, tile=None, overlap=None, exact=False, batch_size=None):
        """Predict: the model's task decides whether the result is a SegmentResult, ClassifyResult, UpscaleResult or
        EverythingResult (``segment``, ``classify``, ``upscale`` and ``everything`` are typed).

        Args:
            image: path, content of a file (bytes), open binary file, Pillow image or uint8 ``(H, W, 3)`` array; or a
                list, tuple or iterator of them. For a model of other bands: a TIFF, NPY or PNG file, or an array
                ``(H, W, C)`` of the type that the model was trained on.
            tile: side of the square tiles into which a large image is cut, at full resolution; default: the whole
                image at once (upscaling: only up to half a megapixel, equal tiles of at most that size beyond).
            overlap: pixels that neighbouring tiles share at least; default: a third of ``tile`` (upscaling: 32).
            exact: upscaling: as for :meth:`upscale`.
            batch_size: of several images, how many may run at once; see :meth:`stream`.

        Raises:
            InputError: an image that cannot be read, or a ``tile`` or ``overlap`` that cannot be used.
            ConfigError: a model without a task that gives a result, for example a backbone, or an option that it does
                not have.
        """
        if is_batch(image):
            return list(self.stream(image, tile=tile, overlap=overlap, exact=exact, batch_size=batch_size))
        self._check_options(tile, exact, batch_size)
        if batch_size is not None and batch_size > 1:
            raise ConfigError(f"batch_size={batch_size} is for several images: give a list")
        return self._prepare(image, tile, overlap, exact).run(self.runner)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        exact: bool = False,
        batch_size: int | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Any]:
        """Predict one image after the other, in their order, without holding the results.

        The images of a list or tuple, and of any iterable if ``batch_size`` is given, are read and prepared by threads
        while the network runs: at most a batch and four images ahead, and no more than 256 MiB. Arrays must therefore
        stay unchanged until their result is there. Without ``batch_size``, an iterator is asked for an image only when
        the result before was taken: it may be a camera.

        Args:
            images: as for :meth:`__call__`.
            tile: as for :meth:`__call__`, and so are ``overlap`` and ``exact``.
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
        self._check_options(tile, exact, batch_size)

        def prepare(image: ImageLike) -> Prepared:
            return self._prepare(image, tile, overlap, exact)

        batches = Batches(self.runner, prepare, batch_size or 1)
        ahead = batch_size is not None or isinstance(images, list | tuple)
        for result in batches.run(images) if ahead else map(batches.run_one, images):
            if errors == "raise" and isinstance(result, InputError):
                raise result
            yield result

    def _prepare(self, image: ImageLike, tile: int | None, overlap: int | None, exact: bool) -> Prepared:
        return _ANSWERS[self.info.task](self, image, tile, overlap, exact)

    def _check_options(self, tile: int | None, exact: bool, batch_size: int | None) -> None:
        """Refuse options that this model does not have.

        Raises:
            ConfigError: one line about the option.
        """
        check_batch_size(batch_size)
        info = self.info
        if info.task not in _ANSWERS:
            raise ConfigError(f"{info.ref} is for {info.task!r}, which gives no result: call predictor.runner directly")
        if exact and "scale" not in info.options:
            raise ConfigError(f"exact tiles are for upscaling; {info.ref} is for {info.task!r}")
        if batch_size is not None and batch_size > 1 and (tile is not None or find_task(info.task).takes_prompts):
            what = "tiles" if tile is not None else "images of promptable models"
            raise ConfigError(f"batch_size={batch_size}: {what} run one by one; leave it out")

    def classify(self, image: ImageLike) -> ClassifyResult:
        """Classify one image; see :meth:`__call__`."""
        return self._prepare_classify(image, None, None).run(self.runner)

    def _prepare_classify(self, image: ImageLike, tile: int | None, overlap: int | None) -> Prepared:
        if tile is not None or overlap is not None:
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
        """
        if output.ndim != ndim or len(output) != 1 or output.shape[1] != (self.info.num_classes or output.shape[1]):
            raise CheckpointError(
                f"{self.info.ref}: the network gives an output of shape {output.shape} instead of scores for "
                f"{self.info.num_classes} classes: its description is of another model"
            )
        return output[0]

    def encode(self, image: ImageLike) -> Embedding:
        """Encode an image once, for any number of prompts: ``encode(image).prompt(points=, labels=, boxes=, masks=)``.

        Raises:
            ConfigError: the model is not promptable.
            InputError: an image that cannot be read.
        """
        runner, pixels = self.prompter(), read_image(image)
        features = runner(prepare(pixels, self.info.preprocess))
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

    def segment(self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None) -> SegmentResult:
        """Segment one image; see :meth:`__call__`."""
        return self._prepare_segment(image, tile, overlap).run(self.runner)

    def _prepare_segment(self, image: ImageLike, tile: int | None, overlap: int | None) -> Prepared:
        if tile is None and overlap is not None:
            raise InputError(f"overlap={overlap} needs tiles: give tile, too")
        if tile is not None:
            overlap = self.check_tiles(tile, overlap)
        pixels = self.bands.read(image)
        if tile is not None and overlap is not None:
            return Prepared(None, lambda _: self._segment_tiles(pixels, tile, overlap), pixels.nbytes)
        prepared = prepare(pixels, self.info.preprocess, MIN_SIZE)
        size = network_size(pixels.shape[0], pixels.shape[1], self.info.preprocess)
        return Prepared(
            prepared,
            lambda output: self._segment_result(pixels, self._checked_logits(output, 4), size),
            pixels.nbytes + prepared.nbytes,
        )

    def _segment_tiles(self, pixels: NDArray[Any], tile: int, overlap: int) -> SegmentResult:
        full_size = dataclasses.replace(self.info.preprocess, max_side=None)  # tiles keep the full resolution

        def network(window: NDArray[Any]) -> NDArray[np.float32]:
            return self._checked_logits(self.runner(prepare(window, full_size, MIN_SIZE)), 4)

        logits = tiled_logits(network, pixels, tile, overlap, self.info.output_stride)
        return self._segment_result(pixels, logits, (pixels.shape[0], pixels.shape[1]))

    def _segment_result(
        self, pixels: NDArray[Any], logits: NDArray[np.float32], size: tuple[int, int]
    ) -> SegmentResult:
        """The result for an image that the network saw at ``size`` (H, W)."""
        stride, (height, width) = self.info.output_stride, size
        scale = (height / (pixels.shape[0] * stride), width / (pixels.shape[1] * stride))
        return SegmentResult(pixels, logits, scale, self.info.labels)

    def check_tiles(self, tile: int, overlap: int | None = None) -> int:
        """Return the overlap of tiles for segmentation in pixels; default: a third of ``tile``.

        Raises:
            InputError: tiles that this model cannot use.
        """
        if self.info.preprocess.size is not None:
            raise InputError("tile: this model resizes every image to a fixed size, so tiles would change the result")
        if not self.limits.fits(tile, tile):
            raise InputError(f"tile={tile}: this file takes {self.limits}: give a smaller tile")
        return check_segment_tiles(tile, overlap, self.info.output_stride)

    def upscale(
        self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None, exact: bool = False
    ) -> UpscaleResult:
        """Upscale one image; see :meth:`__call__`. Alpha, 16 bits, grey and the colour profile are kept.

        Args:
            image: path, Pillow image or uint8 or uint16 array.
            tile: side of the tiles.
            overlap: pixels that neighbouring tiles share at least.
            exact: the result of the whole image in one pass of the network, within rounding, computed in pieces of
                ``tile`` pixels; maps between its passes are kept in memory or in a temporary folder.

        Raises:
            ConfigError: ``exact`` with an exported file, or with a network that cannot be computed in pieces.
        """
        return self._prepare_upscale(image, tile, overlap, exact).run(self.runner)

    def _prepare_upscale(self, image: ImageLike, tile: int | None, overlap: int | None, exact: bool) -> Prepared:
        picture, scale = read_picture(image), self.info.options["scale"]
        height, width = picture.pixels.shape[:2]
        small = height * width <= WHOLE and self.limits.fits(height, width)
        whole = tile is None and not exact and small and min(height, width) >= MIN_SIZE
        if not whole:
            bands = self.upscaled_bands(picture, tile=tile, overlap=overlap, exact=exact)  # nothing runs yet
            return Prepared(None, lambda _: _upscaled(picture, scale, bands), picture.pixels.nbytes)

        def finish(output: NDArray[np.float32]) -> UpscaleResult:
            def enlarge(window: NDArray[np.float32]) -> NDArray[np.float32]:
                return upscale_window(lambda _: output, window, scale)

            return _upscaled(picture, scale, enlarged_bands(enlarge, picture, scale, None, overlap))

        window = picture.pixels.astype(np.float32) / np.float32(np.iinfo(picture.pixels.dtype).max)
        prepared = np.ascontiguousarray(window.transpose(2, 0, 1)[None])
        return Prepared(prepared, finish, picture.pixels.nbytes + prepared.nbytes)

    def upscaled_bands(
        self, picture: Picture, *, tile: int | None = None, overlap: int | None = None, exact: bool = False
    ) -> Iterator[NDArray[Any]]:
        """The result of :meth:`upscale` in bands from top to bottom, for results that are too large for memory."""
        scale: int = self.info.options["scale"]

        def enlarge(window: NDArray[np.float32]) -> NDArray[np.float32]:
            return upscale_window(self.runner, window, scale)

        if not exact:
            yield from enlarged_bands(enlarge, picture, scale, tile, overlap, largest=self.limits.size)
            return
        if not isinstance(self.runner, TorchRunner):
            raise ConfigError("exact tiles need a torch model of Foveal's: load the checkpoint, not an exported file")
        if overlap is not None:
            raise ConfigError(f"overlap={overlap}: exact tiles overlap by what the network needs; leave it out")
        check_upscale_tiles(tile, 0)
        from .streamed_bands import exact_bands

        yield from exact_bands(self.runner, picture, scale, tile)

    def _prepare_everything(self, image: ImageLike, tile: int | None, overlap: int | None) -> Prepared:
        if tile is not None or overlap is not None:
            raise InputError("tile, overlap: promptable models have crops for this, everything(crop_n_layers=1)")
        pixels = read_image(image)
        return Prepared(None, lambda _: self.everything(pixels), pixels.nbytes)


def _upscaled(picture: Picture, scale: int, bands: Iterable[NDArray[Any]]) -> UpscaleResult:
    return UpscaleResult(np.concatenate(list(bands)), scale, picture.icc, picture.grey)


def _describe_size(preprocess: Preprocess) -> str:
    """Size of the network's input in words."""
    if preprocess.size is not None:
        height, width = preprocess.size
        return f"images resized to {width}x{height}" + ", with padding" * preprocess.pad
    return f"images of up to {preprocess.max_side} pixels" if preprocess.max_side else "images of any size"


#: How ``predictor(image, tile=, overlap=, exact=)`` prepares an image, by task.
_ANSWERS: dict[str, Callable[[Predictor, ImageLike, int | None, int | None, bool], Prepared]] = {
    "classify": lambda predictor, image, tile, overlap, exact: predictor._prepare_classify(image, tile, overlap),
    "segment": lambda predictor, image, tile, overlap, exact: predictor._prepare_segment(image, tile, overlap),
    "upscale": lambda predictor, image, tile, overlap, exact: predictor._prepare_upscale(image, tile, overlap, exact),
    "prompt": lambda predictor, image, tile, overlap, exact: predictor._prepare_everything(image, tile, overlap),
}
