"""From image to result, on torch or on an exported file: the same first and last steps, one runner in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..images.preparing import network_size, prepare
from ..images.reading import ImageLike, Picture, read_image, read_picture
from ..info import ModelInfo
from .everything import EverythingOptions, find_everything
from .mask_results import EverythingResult
from .prompting import Embedding, open_embedding
from .results import ClassifyResult, SegmentResult, UpscaleResult
from .runner import PromptRunner, Runner
from .tiles import TILE, enlarged_bands, raised_cosine, tile_starts
from .torch_runner import TorchRunner

if TYPE_CHECKING:
    pass
_MIN_SIZE = 32


class Predictor:
    """A model ready for images.

    ``predictor(image)`` gives a result, ``predictor([image, ...])`` a list of them; ``predictor.stream(images)``
    yields results one by one, in constant memory.

    Attributes:
        info: what the model is and how it is fed.
        runtime: what runs it and where, for people.

    Raises:
        ConfigError: the model takes other than three channels.
    """

    def __init__(self, runner: Runner, info: ModelInfo, runtime: str) -> None:
        if info.in_chans != 3:
            raise ConfigError(
                f"a predictor reads RGB images, this model takes {info.in_chans} channels: call it directly"
            )
        self.runner, self.info, self.runtime = runner, info, runtime

    @overload
    def __call__(self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None) -> Any: ...
    @overload
    def __call__(self, image: list[ImageLike], *, tile: int | None = None, overlap: int | None = None) -> list[Any]: ...
    def __call__(self, image, *, tile=None, overlap=None):
        """Predict: a SegmentResult, ClassifyResult, UpscaleResult or EverythingResult, as the model's task is
        (``segment``, ``classify``, ``upscale`` and ``everything`` are typed).

        Args:
            image: path, Pillow image or uint8 ``(H, W, 3)`` array, or a list of them.
            tile: side of the square windows that a large image is cut into, at full resolution; default: the whole
                image at once, when upscaling that of up to a quarter of a megapixel.
            overlap: pixels that windows share at least, default a third of ``tile``, when upscaling 32.

        Raises:
            InputError: unreadable image, or impossible ``tile`` or ``overlap``.
        """
        if isinstance(image, list | tuple):
            return list(self.stream(image, tile=tile, overlap=overlap))
        if self.info.task == "classify":
            return self.classify(image)
        if self.info.task == "upscale":
            return self.upscale(image, tile=tile, overlap=overlap)
        if self.info.task == "prompt":
            if tile is not None or overlap is not None:
                raise InputError("tile, overlap: promptable models have crops for this, everything(crop_n_layers=1)")
            return self.everything(image)
        return self.segment(image, tile=tile, overlap=overlap)

    def classify(self, image: ImageLike) -> ClassifyResult:
        """Classify one image; see :meth:`__call__`."""
        return ClassifyResult(
            self.runner(prepare(read_image(image), self.info.preprocess, _MIN_SIZE))[0], self.info.labels
        )

    def encode(self, image: ImageLike) -> Embedding:
        """Look at an image once, to be asked many times: ``encode(image).prompt(points=, labels=, boxes=, masks=)``.

        Raises:
            ConfigError: the model is not promptable.
            InputError: unreadable image.
        """
        runner, pixels = self.prompter(), read_image(image)
        features = runner(prepare(pixels, self.info.preprocess))
        return Embedding(features, (pixels.shape[0], pixels.shape[1]), self.info.ref, runner, pixels)

    def everything(
        self, image: ImageLike, *, progress: Callable[[int], object] | None = None, **options: Any
    ) -> EverythingResult:
        """Find all masks of an image without a prompt of one's own.

        Args:
            image: path, Pillow image or uint8 ``(H, W, 3)`` array.
            progress: called with numbers of points that are done, of the ``EverythingOptions.points`` in all.
            **options: fields of :class:`foveal.prediction.everything.EverythingOptions`, with SAM's names and defaults:
                ``points_per_side=32``, ``output_mode="binary_mask"``, ...; ``fast=True`` asks far fewer prompts.
                ``pred_iou_thresh`` and ``stability_score_thresh`` are those of the weights, or SAM's 0.88 and 0.95.

        Raises:
            ConfigError: the model is not promptable, an unknown option, or a value that cannot be.
            InputError: unreadable image.
            DependencyError: ``output_mode="coco_rle"`` without pycocotools.
        """
        self.prompter()
        checked = EverythingOptions.of(options)
        return find_everything(self.encode, read_image(image), checked, self.info.mask_thresholds, progress)

    def open_embedding(self, path: str | Path) -> Embedding:
        """Read an embedding that :meth:`Embedding.save` wrote.

        Raises:
            ConfigError: the model is not promptable.
            InputError: no such file, another one, or of another model.
        """
        return open_embedding(path, self.info.ref, self.prompter())

    def prompter(self) -> PromptRunner:
        """What encodes images and answers prompts.

        Raises:
            ConfigError: the model is not promptable.
        """
        if self.info.task != "prompt":
            raise ConfigError(
                f"{self.info.model} is for {self.info.task!r}, it takes no prompts; load a promptable model"
            )
        return cast("PromptRunner", self.runner)

    def stream(
        self, images: Iterable[ImageLike], *, tile: int | None = None, overlap: int | None = None
    ) -> Iterator[Any]:
        """Predict one image after the other, keeping none."""
        for image in images:
            yield self(image, tile=tile, overlap=overlap)

    def segment(self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None) -> SegmentResult:
        """Segment one image; see :meth:`__call__`."""
        if tile is None and overlap is not None:
            raise InputError(f"overlap={overlap} is of tiles: give tile, too")
        pixels = read_image(image)
        stride = self.info.output_stride
        if tile is None:
            network_input = prepare(pixels, self.info.preprocess, _MIN_SIZE)
            logits = self.runner(network_input)[0]
            height, width = network_size(pixels.shape[0], pixels.shape[1], self.info.preprocess)
        else:
            logits = self._tiled_logits(pixels, tile, self.check_tiles(tile, overlap))
            height, width = pixels.shape[:2]
        scale = (height / (pixels.shape[0] * stride), width / (pixels.shape[1] * stride))
        return SegmentResult(pixels, logits, scale, self.info.labels)

    def upscale(
        self, image: ImageLike, *, tile: int | None = None, overlap: int | None = None, exact: bool = False
    ) -> UpscaleResult:
        """Upscale one image; see :meth:`__call__`. Alpha, 16 bits, grey and the colour profile are kept.

        Args:
            exact: windows give what the whole image would, within rounding: each attention sees the sums of the whole
                image, which takes a pass over it, and ``overlap`` is what the convolutions need.

        Raises:
            ConfigError: ``exact`` with an exported file or another network whose view is not known.
        """
        picture = read_picture(image)
        pixels = np.concatenate(list(self.upscaled_bands(picture, tile=tile, overlap=overlap, exact=exact)))
        return UpscaleResult(pixels, self.info.options["scale"], picture.icc, picture.grey)

    def upscaled_bands(
        self, picture: Picture, *, tile: int | None = None, overlap: int | None = None, exact: bool = False
    ) -> Iterator[NDArray[Any]]:
        """The same in bands from top to bottom, for results that are too large for memory."""
        scale: int = self.info.options["scale"]

        def enlarge(window: NDArray[np.float32]) -> NDArray[np.float32]:
            height, width = window.shape[:2]
            margin = ((0, max(0, _MIN_SIZE - height)), (0, max(0, _MIN_SIZE - width)), (0, 0))
            padded = np.pad(window, margin, mode="edge") if height < _MIN_SIZE or width < _MIN_SIZE else window
            found = self.runner(np.ascontiguousarray(padded.transpose(2, 0, 1)[None]))[0]
            return found[:, : height * scale, : width * scale].transpose(1, 2, 0)

        if not exact:
            yield from enlarged_bands(enlarge, picture, scale, tile, overlap)
            return
        reach = getattr(self.runner.model.backbone, "reach", 0) if isinstance(self.runner, TorchRunner) else 0
        if not reach:
            raise ConfigError("exact windows need a torch model of Foveal's: load the checkpoint, not an exported file")
        if overlap is not None:
            raise ConfigError(f"overlap={overlap}: exact windows share what the network's view needs; leave it out")
        from .exact_tiles import whole_context

        assert isinstance(self.runner, TorchRunner)
        tile = TILE if tile is None else tile
        with whole_context(self.runner.model, picture.pixels, tile, reach):
            yield from enlarged_bands(enlarge, picture, scale, tile, 2 * reach, discard_margin=reach)

    def check_tiles(self, tile: int, overlap: int | None = None) -> int:
        """Return the overlap in pixels, a third of ``tile`` by default.

        Raises:
            InputError: windows that this model cannot use.
        """
        if self.info.preprocess.size is not None:
            raise InputError("tile: this model resizes every image to a fixed size, so tiles would change the result")
        overlap = tile // 3 if overlap is None else overlap
        grid = max(self.info.output_stride, _MIN_SIZE)
        if tile < 2 * grid or tile % grid or not 0 <= overlap <= tile - grid:
            raise InputError(
                f"tile={tile}, overlap={overlap}: tile must be a multiple of {grid} from {2 * grid} up, "
                f"overlap at most {tile - grid}"
            )
        return overlap

    def _tiled_logits(self, pixels: NDArray[np.uint8], tile: int, overlap: int) -> NDArray[np.float32]:
        """Logits of overlapping windows that start on the stride, blended with raised-cosine weights."""
        stride = self.info.output_stride
        height, width = pixels.shape[:2]
        preprocess = dataclasses.replace(self.info.preprocess, max_side=None)  # tiles are for full resolution
        total: NDArray[np.float32] | None = None
        weight = np.zeros((-(-height // stride), -(-width // stride)), np.float32)
        for top in tile_starts(height, tile, overlap):
            for left in tile_starts(width, tile, overlap):
                y, x = top // stride * stride, left // stride * stride
                # A window that starts a little earlier, to sit on the stride, still ends where it should.
                window = pixels[y : top + tile, x : left + tile]
                logits = self.runner(prepare(window, preprocess, _MIN_SIZE))[0]
                logits = logits[:, : -(-window.shape[0] // stride), : -(-window.shape[1] // stride)]
                ramp = max(1, overlap // stride)
                blend = raised_cosine(logits.shape[1], ramp)[:, None] * raised_cosine(logits.shape[2], ramp)
                if total is None:
                    total = np.zeros((len(logits), *weight.shape), np.float32)
                rows, columns = (
                    slice(y // stride, y // stride + blend.shape[0]),
                    slice(x // stride, x // stride + blend.shape[1]),
                )
                total[:, rows, columns] += logits * blend
                weight[rows, columns] += blend
        assert total is not None
        return total / weight
