"""The verb ``classify``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import ConfigError, InputError
from ..text import notice
from .console import ANY_ENGINE, BatchSize, Engines, Images, Json, open_model, print_json, print_table
from .outputs import FOLDER, Request, list_sources, require_images
from .tables import Csv, check_table, write_classes

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor


def classify(
    images: Images,
    /,
    *,
    model: str = assets.DEFAULTS["classify"],
    top: int = 5,
    batch_size: BatchSize = None,
    csv: Csv = None,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Classify images: the most probable classes of each.

    Parameters
    ----------
    model
        Checkpoint or exported file of a classifier; default: published weights, downloaded once.
    top
        Number of classes to print.
    """
    if top < 1:
        raise ConfigError(f"--top {top}: give 1 or more")
    request = Request(images, as_json=json, batch_size=batch_size, csv=csv)
    check_table(csv, ".csv", "--csv", request)
    require_images(images)
    return run(open_model(model, engine, "classify"), request, top)


def _with_progress(results: Iterable[Any], total: int, shown: bool) -> Iterator[Any]:
    """The same results with a bar, where nothing is printed after each."""
    from ..progress import Progress

    with Progress(shown).bar("classify", total) as bar:
        for result in results:
            yield result
            bar.advance()


def run(predictor: Predictor, request: Request, top: int = 5) -> int:
    """Classify the requested images, printing each result at once; the exit code is 1 if some of many failed."""
    report: dict[str, Any] = {"images": [], "failed": []}
    if request.resume or request.overlay:
        raise ConfigError("--resume, --overlay: a classifier writes no images; leave them out")
    if request.out != FOLDER:
        raise ConfigError(f"--out {request.out}: a classifier writes no files; --csv FILE writes a table")
    check_table(request.csv, ".csv", "--csv", request)
    request.refuse_tiles(f"{predictor.info.ref} classifies the whole image")
    sources = [source for source, _ in list_sources(request.images)]
    results = predictor.stream(sources, batch_size=request.batch_size, errors="return" if request.many else "raise")
    for source, result in zip(sources, _with_progress(results, len(sources), request.as_json), strict=True):
        if isinstance(result, InputError):
            report["failed"].append({"image": str(source), "error": str(result)})
            notice(f"failed: {result}")
            continue
        best = result.top(top)
        report["images"].append({"image": str(source), "classes": [{"name": n, "score": round(s, 6)} for n, s in best]})
        if not request.as_json:
            print_table((str(source), "score"), [(name, f"{score:.4f}") for name, score in best])
    if request.csv is not None:
        write_classes(request.csv, report["images"], min(top, len(predictor.names)))
    if request.as_json:
        print_json(report)
    return 1 if report["failed"] else 0
