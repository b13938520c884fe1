"""What the verbs that predict have in common: the request, where each result goes, and the loop over the images."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import ConfigError, InputError
from ..files import beside, check_overwrites, ensure_folder, ignores_case
from ..progress import Report
from .console import NO_TILES, Tiles, print_json, say
from .earlier_results import leave_out

if TYPE_CHECKING:
    from ..images.palettes import Palette
    from ..prediction.predictor import Predictor

T = TypeVar("T")
FOLDER = Path("foveal-out")  #: default folder of the results
_WAITING = 2  # results that wait to be written while the next ones are computed
_FOLDER_FORMAT = ".zarr"  # a result that is a folder
OVERLAY = ".overlay.jpg"  #: end of the name of the image with the result over it


class Job(NamedTuple):
    """An image, and the files of its result: the result itself, and a picture and polygons if they are asked for."""

    source: Path
    target: Path
    picture: Path | None = None
    polygons: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.target, self.picture, self.polygons) if file is not None]


class Plan(NamedTuple):
    """The jobs that are to do, and those that an earlier run completed."""

    jobs: list[Job]
    finished: tuple[Job, ...] = ()

    @property
    def before(self) -> int:
        """Number of images that an earlier run completed."""
        return len(self.finished)

    def tally(self, done: int) -> str:
        """``"5 of 6 images, 2 done before"``, of which this run did ``done``."""
        before = f", {self.before} done before" if self.before else ""
        return f"{done + self.before} of {len(self.jobs) + self.before} images{before}"


@dataclass(frozen=True)
class Request:
    """Options that the verbs ``predict``, ``segment``, ``classify``, ``upscale`` and ``prompt`` share.

    Attributes:
        images: image files and folders.
        out: folder of the results, or the file of a single result.
        overlay: whether to write overlays, too; ``None``: the verb's default.
        tiles: side and overlap of the tiles; ``None`` stands for the verb's default.
        resume: whether to skip images whose result exists.
        as_json: whether to print JSON.
        batch_size: images that may run at once; ``None``: 1.
        polygons: file of the polygons of a single mask; ``None``: none are written.
        csv: file of a table with a row for each image; ``None``: none is written.
    """

    images: list[Path]
    out: Path = FOLDER
    overlay: bool | None = None
    tiles: Tiles = NO_TILES
    resume: bool = False
    as_json: bool = False
    batch_size: int | None = None
    polygons: Path | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        if self.polygons is not None and self.many:
            raise ConfigError("--polygons is for a single image: give one; --coco holds the areas of several")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size {self.batch_size}: give 1 or more")
        if self.batch_size is not None and self.batch_size > 1 and not self.many:
            raise ConfigError(f"--batch-size {self.batch_size} is for several images: give them, or leave it out")

    def refuse_batches(self, what: str) -> None:
        """Refuse ``--batch-size`` for ``what`` runs image by image.

        Raises:
            ConfigError: more than 1.
        """
        if self.batch_size is not None and self.batch_size > 1:
            raise ConfigError(f"--batch-size {self.batch_size}: {what} one by one; leave it out")

    def refuse_tiles(self, why: str) -> None:
        """Refuse ``--tile`` and ``--overlap``, because of ``why``.

        Raises:
            ConfigError: one of them is given.
        """
        if self.tiles:
            raise ConfigError(f"--tile, --overlap: {why}; leave them out")

    def refuse_table(self, what: str) -> None:
        """Refuse ``--csv`` where ``what`` no classes.

        Raises:
            ConfigError: a table is asked for.
        """
        if self.csv is not None:
            raise ConfigError(f"--csv {self.csv}: {what} no classes; leave it out")

    @property
    def many(self) -> bool:
        """Whether this is a batch: a folder or several images."""
        return len(self.images) > 1 or is_folder(self.images[0])

    def plan(
        self,
        suffix: str = ".png",
        picture: str = "",
        also_read: Iterable[Path] = (),
        palette: Palette = (),
    ) -> Plan:
        """List the jobs with :func:`list_jobs`, without those whose files all exist if the run is resumed.

        Args:
            suffix: of the results.
            picture: end of the name of the picture next to each result, such as ``.overlay.jpg``; empty: none.
            also_read: files other than the images that must not be overwritten.
            palette: of the results, by which those of earlier runs are known; empty: they have none.

        Raises:
            InputError, ConfigError: as :func:`list_jobs`, and a folder that cannot be written.
        """
        listed = list_jobs(self.images, self.out, suffix, picture, palette)
        jobs = [job._replace(polygons=self.polygons) for job in listed]
        finished = {job.source for job in jobs if self.resume and all(file.exists() for file in job.files)}
        to_do = [job for job in jobs if job.source not in finished]
        _check_files(to_do, [*also_read, *(job.source for job in jobs), *self._folders()])
        if self.many:  # a single bad image leaves no folder behind
            for folder in dict.fromkeys(job.target.parent for job in to_do if job.source.exists()):
                ensure_folder(folder)
        _check_case(jobs)
        return Plan(to_do, tuple(job for job in jobs if job.source in finished))

    def _folders(self) -> list[Path]:
        """Folders in which no file is replaced: those of the images, unless the results have their default folder."""
        return [] if self.resume or self.out.name == FOLDER.name else [path for path in self.images if is_folder(path)]


def require_images(images: list[Path]) -> None:
    """Check that there are images before a model is loaded, which may have to be downloaded.

    Some of several may be missing: the verb names them among those that failed.

    Raises:
        InputError: none of the images exists, a folder has no images, or a model is named in place of an image.
    """
    from ..images.folders import has_images, list_images
    from ..images.sources import why_missing

    if all(_is_missing(path) for path in images):
        more = " (nor is any of the other images there)" if len(images) > 1 else ""
        raise InputError(f"{images[0]}: {why_missing(images[0])}{more}")
    for path in images:
        if _is_model(path):
            raise InputError(f"{path}: a model, not an image: name it with --model {path}")
        if is_folder(path) and not has_images(path):
            list_images(path)  # raises the error that names what is there


def _is_model(path: Path) -> bool:
    """Whether a path names weights, an exported file, or the folder of a training run or a saved model."""
    from ..prediction.runtimes import is_exported_file
    from ..weights.references import SUFFIXES, find_local

    if path.is_dir():
        return find_local(path) is not None
    weights = set(SUFFIXES) - {".tar"}  # which may hold images
    return path.is_file() and (path.suffix.lower() in weights or is_exported_file(str(path)))


def _is_missing(path: Path) -> bool:
    """Whether there is nothing of this name; of a path that cannot be looked up, reading says what is wrong."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of images: a Zarr folder is one image."""
    from ..images.zarr_reading import is_zarr

    return path.is_dir() and not is_zarr(path)


def list_sources(images: list[Path]) -> list[tuple[Path, Path]]:
    """List the image files, each once, with the entry of ``images`` that it comes from.

    Raises:
        InputError: a folder without images.
    """
    from ..images.folders import list_images

    found: dict[str, tuple[Path, Path]] = {}
    for path in images:
        for source in list_images(path) if is_folder(path) else [path]:
            found.setdefault(os.path.abspath(source), (source, path))
    return list(found.values())


def list_jobs(
    images: list[Path],
    out: Path,
    suffix: str = ".png",
    picture: str = "",
    palette: Palette = (),
) -> list[Job]:
    """List the images and the files of their results.

    The result of an image has its name, and in a folder its place in it. Where several would have the same name, all of
    these keep their suffix (``x.jpg.png``); where that is not enough, their folder is added, as often as necessary.

    Args:
        images: image files and folders.
        out: folder of the results. With a single image it may be the file of the result: a name that ends in
            ``suffix``.
        suffix: of the results.
        picture: end of the name of the picture next to each result; empty: none.
        palette: of the results, see :func:`~.earlier_results.leave_out`.

    Raises:
        InputError: no images.
        ConfigError: ``out`` is a file and there are several results, or it has another suffix.
    """
    from ..images.formats import SUFFIXES

    if out.suffix.lower() in (suffix, *SUFFIXES) and (not out.is_dir() or out.suffix.lower() == _FOLDER_FORMAT):
        if len(images) > 1 or is_folder(images[0]):
            raise ConfigError(f"--out {out}: several results need a folder, a name without {out.suffix}")
        if out.suffix.lower() != suffix:
            raise ConfigError(f"--out {out}: the result is a {suffix} file, unless an option asks for another format")
        return [_job(images[0], out, picture)]
    sources = leave_out(list_sources(images), out, palette, OVERLAY)
    if not sources:
        raise InputError(f"no images to work on in {', '.join(map(str, images))}")
    choices = [_names(source, path, suffix) for source, path in sources]
    return _choose_names([source for source, _ in sources], choices, out, picture)


def _names(source: Path, path: Path, suffix: str) -> list[Path]:
    """Names for the result of ``source`` from the shortest: the name, with the suffix, with more and more folders."""
    in_folder = is_folder(path)
    relative = source.relative_to(path) if in_folder else Path(source.name)
    folders = Path(os.path.abspath(path if in_folder else source.parent)).parts[1:]
    whole = Path(f"{relative}{suffix}")
    longer = [Path(*folders[-count:], whole) for count in range(1, len(folders) + 1)]
    return [relative.with_suffix(suffix), whole, *longer]


def _choose_names(sources: list[Path], choices: list[list[Path]], out: Path, picture: str) -> list[Job]:
    """Give each source the first of its names that no other has; all of those with the same name get a longer one.

    Names that differ only in case are the same at first; with the suffixes of the images they may stay so.
    """
    lengths = [0] * len(sources)
    while True:
        names = [choice[length] for choice, length in zip(choices, lengths, strict=True)]
        jobs = [_job(source, out / name, picture) for source, name in zip(sources, names, strict=True)]
        same = Counter(file for job in jobs for file in job.files)
        alike = Counter(without_case(file) for file in same.elements())
        longer = [
            index
            for index, (job, length, choice) in enumerate(zip(jobs, lengths, choices, strict=True))
            if length + 1 < len(choice)
            and any((same[file] if length else alike[without_case(file)]) > 1 for file in job.files)
        ]
        if not longer:
            return jobs
        for index in longer:
            lengths[index] += 1


def _job(source: Path, target: Path, picture: str) -> Job:
    return Job(source, target, beside(target, picture) if picture else None)


def without_case(path: Path) -> str:
    """A path as file systems see it that ignore case and the ways to write accents."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _check_files(jobs: list[Job], inputs: list[Path]) -> None:
    """Check that no file of a job is an image that is read, or a file of another job."""
    files = [file for job in jobs for file in job.files]
    check_overwrites(files, inputs, "image")
    if len(set(files)) < len(files):
        file = Counter(files).most_common(1)[0][0]
        raise ConfigError(f"{file} would be the result of several images: give the folders one by one")


def _check_case(jobs: list[Job]) -> None:
    """Check that results whose names differ only in case are several files where they are written."""
    known: dict[str, Path] = {}
    for file in (file for job in jobs for file in job.files):
        other = known.setdefault(without_case(file), file)
        if other != file and ignores_case(file.parent):
            raise ConfigError(f"{other} and {file} are one file on this file system: rename one of the images")


def run_jobs(
    verb: str, plan: Plan, work: Callable[[Job, Report], T], many: bool
) -> tuple[list[T], list[dict[str, str]]]:
    """Call ``work`` for each job, with a progress bar, which it tells the share of the job that is done.

    Returns:
        What ``work`` returned for each image, and the images that cannot be used, each with its error.

    Raises:
        InputError: an image that cannot be used, unless there are ``many``.
    """
    from ..progress import Progress

    progress = Progress()
    done: list[T] = []
    failed: list[dict[str, str]] = []
    with progress.bar(verb, len(plan.jobs) + plan.before, plan.before) as bar:
        for job in plan.jobs:
            try:
                done.append(work(job, bar.part))
            except InputError as error:
                if not many:
                    raise
                text = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
                failed.append({"image": str(job.source), "error": text})
                progress.note(text)
            bar.advance()
    return done, failed


def run_stream(
    verb: str, plan: Plan, predictor: Predictor, options: dict[str, Any], write: Callable[[Any, Job], None]
) -> tuple[int, list[dict[str, str]]]:
    """Write the result of each job in a thread while the next ones are computed, with a progress bar.

    Args:
        verb: name of the bar.
        plan: the jobs.
        predictor: the model.
        options: of :meth:`foveal.Predictor.stream`.
        write: writes a result. At most two results wait for it.

    Returns:
        Number of results written, and the images that cannot be used, each with its error.
    """
    from ..progress import Progress

    progress = Progress()
    done = 0
    failed: list[dict[str, str]] = []
    writing: deque[tuple[Job, Future[None]]] = deque()
    with (
        progress.bar(verb, len(plan.jobs) + plan.before, plan.before) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="foveal-write") as writer,
    ):

        def settle(job: Job, written: Future[None]) -> None:
            nonlocal done
            try:
                written.result()
                done += 1
            except InputError as error:
                failed.append({"image": str(job.source), "error": str(error)})
                progress.note(str(error))
            bar.advance()

        sources = [job.source for job in plan.jobs]
        results = predictor.stream(sources, errors="return", progress=bar.part, **options)
        for job, result in zip(plan.jobs, results, strict=True):
            writing.append(
                (job, _failed(result) if isinstance(result, InputError) else writer.submit(write, result, job))
            )
            if len(writing) > _WAITING:
                settle(*writing.popleft())
        for job, written in writing:
            settle(job, written)
    return done, failed


def _failed(error: InputError) -> Future[None]:
    future: Future[None] = Future()
    future.set_exception(error)
    return future


def print_images(
    request: Request,
    plan: Plan,
    done: list[dict[str, Any]],
    failed: list[dict[str, str]],
    about: dict[str, Any],
    print_report: Callable[[dict[str, Any]], None],
) -> int:
    """Print the reports of several images, and return the exit code: 1 if images failed, else 0.

    Args:
        request: says whether to print JSON.
        plan: the jobs.
        done: a report for each image.
        failed: the images that cannot be used.
        about: the ``model`` and the ``runtime``.
        print_report: prints one report as text.
    """
    from ..measuring import machine

    if request.as_json:
        counts = {"images": done, "done_before": plan.before, "failed": failed}
        print_json({**about, "machine": machine.describe(), **counts})
        return 1 if failed else 0
    for report in done:
        print_report(report)
    say(f"{plan.tally(len(done))} with {about['model']}, {about['runtime']}, on {machine.one_line()}")
    return print_failed(failed)


def print_failed(failed: list[dict[str, str]]) -> int:
    """Print the images that failed, and return the exit code: 1 if there are any, else 0."""
    for failure in failed:
        say(f"failed: {failure['error']}")
    return 1 if failed else 0
