"""What a job writes for each image: kinds of results.

A kind is one line in :data:`KINDS`: what it is in words, a test whether a model can give it, and a function from what
the predictor returns to a record. A record of a table is a dict of columns; other records are the content of a file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import ConfigError, InputError, nearest
from ..prediction.predictor import Predictor
from ..prediction.results import ClassifyResult, SegmentResult, mask_picture
from ..task import find_task
from .embeddings import embeds, load_with_features, open_embedder
from .values import gives_values, values_tiff

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any] | bytes
Answers = Iterator["Record | InputError"]


class Options(NamedTuple):
    """How a predictor is called, see :meth:`foveal.Predictor.stream`."""

    tile: int | None = None
    overlap: int | None = None
    batch_size: int | None = None


PLAIN = Options()


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        words: what is written, for messages.
        fits: whether a model can give it.
        answers: (predictor, images, options) -> a record for each image, or the error of one that cannot be used.
        columns: predictor -> (name, type) of the columns after "image", types as :func:`pyarrow.type_for_alias` and
            ``list<...>`` of them; ``None``: each record is the content of a file.
        suffix: of these files.
        open: loads a predictor, given a function that loads one in a runtime, and the runtime that the user named.
        takes_options: whether options of prediction change how the answers are made.
    """

    words: str
    fits: Callable[[Predictor], bool]
    answers: Callable[[Predictor, Iterator[Any], Options], Answers]
    columns: Callable[[Predictor], list[tuple[str, str]]] | None = None
    suffix: str = ""
    open: Callable[[Callable[[str], Predictor], str], Predictor] = field(default=lambda load, runtime: load(""))
    takes_options: bool = True

    def check(self, predictor: Predictor, options: Options, name: str) -> None:
        """Check that the model and the options go with this kind.

        Raises:
            ConfigError, InputError: they do not.
        """
        info = predictor.info
        if not self.fits(predictor):
            gives = find_task(info.task).result if info.task else "no result"
            fitting = [each for each, kind in KINDS.items() if kind.fits(predictor)]
            hint = f": choose --result {' or '.join(fitting)}" if fitting else ""
            raise ConfigError(f"--result {name} are {self.words}; {info.ref} gives {gives}{hint}")
        if not self.takes_options and options not in (PLAIN, Options(batch_size=1)):
            raise ConfigError(
                f"--tile, --overlap, --batch-size: {name} are of whole images, one by one; leave them out"
            )
        predictor.check_tiles(options.tile, options.overlap)

    def schema(self, predictor: Predictor) -> pa.Schema | None:
        """Columns of the table; ``None``: files."""
        if self.columns is None:
            return None
        import pyarrow as pa

        def parse(text: str) -> pa.DataType:
            inner = text.removeprefix("list<").removesuffix(">")
            return pa.type_for_alias(text) if inner == text else pa.list_(parse(inner))

        return pa.schema([("image", pa.string()), *((name, parse(text)) for name, text in self.columns(predictor))])


def find_kind(name: str) -> Kind:
    """Look up a kind of result.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in KINDS:
        raise ConfigError(f"--result {name}: unknown{nearest(name, KINDS)}")
    return KINDS[name]


def _each(record: Callable[[Any], Record]) -> Callable[[Predictor, Iterator[Any], Options], Answers]:
    """The answers of a kind that is made of a predictor's results."""

    def answers(predictor: Predictor, images: Iterator[Any], options: Options) -> Answers:
        for result in predictor.stream(images, **options._asdict(), errors="return"):
            yield result if isinstance(result, InputError) else record(result)

    return answers


def _labels_pixels(predictor: Predictor) -> bool:
    return find_task(predictor.info.task).labels_pixels


def _classifies(predictor: Predictor) -> bool:
    task = find_task(predictor.info.task)
    return task.has_classes and not task.labels_pixels and predictor.info.num_classes > 0


def _png(result: SegmentResult) -> bytes:
    if result.mask.dtype != np.uint8:
        raise ConfigError(f"--result masks hold at most 256 classes, not {len(result.names)}: choose --result rle")
    content = io.BytesIO()
    mask_picture(result).save(content, "PNG")
    return content.getvalue()


def _runs(result: SegmentResult) -> Record:
    """Runs of equal classes in the order of reading: ``np.repeat(values, lengths).reshape(height, width)``."""
    flat = result.mask.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size))
    height, width = result.mask.shape
    return {"height": height, "width": width, "values": flat[starts], "lengths": lengths}


_RUN_COLUMNS = [("height", "int32"), ("width", "int32"), ("values", "list<uint16>"), ("lengths", "list<uint32>")]


def _shares(result: SegmentResult) -> Record:
    """Share of the pixels of each class, 0 to 1; classes that do not occur have 0."""
    height, width = result.mask.shape
    counts = np.bincount(result.mask.ravel(), minlength=len(result.names))
    shares = zip(_class_columns(result.names), (counts / result.mask.size).tolist(), strict=True)
    return {"height": height, "width": width, **dict(shares)}


def _class_columns(names: tuple[str, ...]) -> list[str]:
    """A column for each class, by its name; where several columns would have a name, the index is added."""
    taken = ["image", "height", "width", *names]
    return [name if taken.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def _share_columns(predictor: Predictor) -> list[tuple[str, str]]:
    classes = [(name, "float") for name in _class_columns(predictor.names)]
    return [("height", "int32"), ("width", "int32"), *classes]


def _class(result: ClassifyResult) -> Record:
    best = int(result.logits.argmax())
    return {"index": best, "class": result.names[best], "probability": float(result.scores[best])}


def _vectors(predictor: Predictor, images: Iterator[Any], options: Options) -> Answers:
    embed = open_embedder(predictor)
    for image in images:
        try:
            yield {"embedding": embed(image)}
        except InputError as error:
            yield error


#: By the name that users give: ``--result NAME``.
KINDS: dict[str, Kind] = {
    "masks": Kind("class masks (PNG)", _labels_pixels, _each(_png), suffix=".png"),
    "rle": Kind("runs of classes (Parquet)", _labels_pixels, _each(_runs), lambda predictor: _RUN_COLUMNS),
    "shares": Kind("shares of classes (Parquet)", _labels_pixels, _each(_shares), _share_columns),
    "classes": Kind(
        "classes of images (Parquet)",
        _classifies,
        _each(_class),
        lambda predictor: [("index", "int32"), ("class", "string"), ("probability", "float")],
    ),
    "values": Kind("maps of values (TIFF)", gives_values, _each(values_tiff), suffix=".tif"),
    "embeddings": Kind(
        "embeddings (Parquet)",
        embeds,
        _vectors,
        lambda predictor: [("embedding", "list<float>")],
        open=load_with_features,
        takes_options=False,
    ),
}
