"""What the verbs that predict have in common: the request, where each result goes, and the loop over the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError, InputError

T = TypeVar("T")
Job = tuple[Path, Path]  # an image, and the file of its result


@dataclass(frozen=True)
class Request:
    """Options that the verbs ``predict``, ``segment``, ``classify``, ``upscale`` and ``prompt`` share.

    Attributes:
        images: image files and folders.
        out: folder of the results, or the file of a single result.
        overlay: whether to write overlays, too; ``None``: the verb's default.
        tile: side of the tiles; ``None``: the verb's default.
        overlap: pixels that neighbouring tiles share; ``None``: the verb's default.
        resume: whether to skip images whose result exists.
        as_json: whether to print JSON.
    """

    images: list[Path]
    out: Path = Path("foveal-out")
    overlay: bool | None = None
    tile: int | None = None
    overlap: int | None = None
    resume: bool = False
    as_json: bool = False

    def jobs(self, suffix: str = ".png") -> tuple[list[Job], bool]:
        """See :func:`list_jobs`."""
        return list_jobs(self.images, self.out, suffix)

    def remaining(self, jobs: list[Job]) -> list[Job]:
        """The jobs that are still to do: with ``resume``, those without a result."""
        return [(source, target) for source, target in jobs if not (self.resume and target.exists())]


def list_sources(images: list[Path]) -> tuple[list[tuple[Path, Path]], bool]:
    """List the image files.

    Returns:
        (file, entry of ``images`` that it comes from), and whether this is a batch: a folder or several images.

    Raises:
        InputError: a folder without images.
    """
    from ..images.folders import list_images

    many = len(images) > 1 or images[0].is_dir()
    return [(source, path) for path in images for source in (list_images(path) if path.is_dir() else [path])], many


def list_jobs(images: list[Path], out: Path, suffix: str = ".png") -> tuple[list[Job], bool]:
    """List (image, result) paths.

    Args:
        images: image files and folders.
        out: folder of the results. With a single image it may be the file of the result: a name that ends in
            ``suffix``.
        suffix: of the results.

    Returns:
        The paths, and whether this is a batch: a folder or several images.

    Raises:
        InputError: no images.
        ConfigError: a result would overwrite an image, two results have the same name, or ``out`` is a file and there
            are several results or it has another suffix.
    """
    from ..images.formats import SUFFIXES

    sources, many = list_sources(images)
    if out.suffix.lower() in (suffix, *SUFFIXES) and not out.is_dir():
        if many:
            raise ConfigError(f"--out {out}: several results need a folder, a name without {out.suffix}")
        if out.suffix.lower() != suffix:
            raise ConfigError(f"--out {out}: the result is a {suffix} file")
        if out.resolve() == images[0].resolve():
            raise ConfigError(f"--out {out} would overwrite the image: choose another name")
        return [(images[0], out)], False
    jobs: list[Job] = []
    targets: set[Path] = set()
    for source, path in sources:
        out_is_inside = path.resolve() in out.resolve().parents
        if out_is_inside and out.resolve() in source.resolve().parents:
            continue  # a result of an earlier run inside the folder of images
        target = _free_target(source, path, out, targets, suffix)
        targets.add(target)
        jobs.append((source, target))
    if not jobs:
        raise InputError(f"no images to work on in {', '.join(map(str, images))}")
    overwritten = {source.resolve() for source, _ in jobs} & {target.resolve() for target in targets}
    if overwritten:
        raise ConfigError(f"--out {out} would overwrite the image {min(overwritten)}: choose another folder")
    return jobs, many


def _free_target(source: Path, path: Path, out: Path, targets: set[Path], suffix: str) -> Path:
    """File of the result of ``source``: its own name, longer if another image has that name."""
    relative = source.relative_to(path) if path.is_dir() else Path(source.name)
    folder = path if path.is_dir() else source.resolve().parent
    for name in (relative.with_suffix(suffix), Path(f"{relative}{suffix}"), Path(folder.name) / f"{relative}{suffix}"):
        if out / name not in targets:
            return out / name
    raise ConfigError(f"{source}: another image has the same name; give the folders one by one")


def run_jobs(
    verb: str, jobs: list[Job], work: Callable[[Path, Path], T], many: bool
) -> tuple[list[T], list[dict[str, str]]]:
    """Call ``work(image, result)`` for each job, with a progress bar.

    Returns:
        What ``work`` returned for each image, and the images that cannot be used, each with its error.

    Raises:
        InputError: an image that cannot be used, unless there are ``many``.
    """
    from ..progress import Progress

    progress = Progress()
    done: list[T] = []
    failed: list[dict[str, str]] = []
    with progress.bar(verb, len(jobs)) as bar:
        for source, target in jobs:
            try:
                done.append(work(source, target))
            except InputError as error:
                if not many:
                    raise
                failed.append({"image": str(source), "error": str(error)})
                progress.note(str(error))
            bar.advance()
    return done, failed


def print_failed(failed: list[dict[str, str]]) -> int:
    """Print the images that failed, and return the exit code: 1 if there are any, else 0."""
    for failure in failed:
        print(f"failed: {failure['error']}")
    return 1 if failed else 0
