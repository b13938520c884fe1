"""The verb ``compare``."""

from __future__ import annotations

from pathlib import Path

from .console import Json, print_json, print_table, say


def compare(a: Path, b: Path, /, *, resamples: int = 10_000, seed: int = 0, json: Json = False) -> int:
    """Compare two evaluated segmentation models by a paired bootstrap over the images.

    Parameters
    ----------
    a
        Folder that foveal evaluate --out wrote for a segmentation model.
    b
        The same for the second model, on the same images.
    resamples
        Number of bootstrap resamples, at least 100.
    seed
        Seed of the resampling, 0 or more.
    """
    from .. import compare as compare_reports

    result = compare_reports(a, b, resamples=resamples, seed=seed)
    if json:
        print_json({"a": str(a), "b": str(b), **result.to_dict()})
        return 0
    print_table(("report", "mIoU"), [(str(a), f"{result.miou_a:.2%}"), (str(b), f"{result.miou_b:.2%}")])
    interval = f"95 % interval {100 * result.low:+.2f} to {100 * result.high:+.2f}"
    about = f"({result.images} images, {result.resamples} resamples, seed {result.seed})"
    say()
    say(f"difference {100 * result.difference:+.2f} points, {interval}, p = {result.p:.2g}  {about}")
    return 0
