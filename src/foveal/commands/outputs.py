"""Where each result of a command is written."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, InputError


def jobs_of(images: list[Path], out: Path, suffix: str = ".png") -> tuple[list[tuple[Path, Path]], bool]:
    """(image, result) paths, and whether this is a batch: a folder or several images.

    ``out`` is the results' folder or, where it ends as a picture or as the results do, the file of the only one.

    Raises:
        InputError: no images.
        ConfigError: a result would overwrite an image, or two have one name; a file for several results, or one of
            another format.
    """
    from ..images.formats import SUFFIXES, list_images

    many = len(images) > 1 or images[0].is_dir()
    if out.suffix.lower() in (suffix, *SUFFIXES) and not out.is_dir():
        if many:
            raise ConfigError(f"--out {out}: several results need a folder, a name without {out.suffix}")
        if out.suffix.lower() != suffix:
            raise ConfigError(f"--out {out}: the result is a {suffix} file")
        if out.resolve() == images[0].resolve():
            raise ConfigError(f"--out {out} would overwrite the image: choose another name")
        return [(images[0], out)], False
    jobs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for given in images:
        for source in list_images(given) if given.is_dir() else [given]:
            inside = given.resolve() in out.resolve().parents
            if inside and out.resolve() in source.resolve().parents:
                continue  # results of an earlier run inside the folder
            target = _free_target(source, given, out, taken, suffix)
            taken.add(target)
            jobs.append((source, target))
    if not jobs:
        raise InputError(f"no images to work on in {', '.join(map(str, images))}")
    overwritten = {source.resolve() for source, _ in jobs} & {target.resolve() for target in taken}
    if overwritten:
        raise ConfigError(f"--out {out} would overwrite the image {min(overwritten)}: choose another folder")
    return jobs, many


def _free_target(source: Path, given: Path, out: Path, taken: set[Path], suffix: str) -> Path:
    """Where the result of ``source`` goes: its own name, with more of its path where two images share it."""
    relative = source.relative_to(given) if given.is_dir() else Path(source.name)
    owner = given if given.is_dir() else source.resolve().parent
    for name in (relative.with_suffix(suffix), Path(f"{relative}{suffix}"), Path(owner.name) / f"{relative}{suffix}"):
        if out / name not in taken:
            return out / name
    raise ConfigError(f"{source}: another image has the same name; give the folders one by one")
