"""The verb ``compare``."""

from __future__ import annotations

from pathlib import Path

from .console import Json, print_json, print_table


def compare(a: Path, b: Path, /, *, resamples: int = 10_000, seed: int = 0, json: Json = False) -> int:
    """Tell which of two evaluated models is better, and how sure that is: a paired bootstrap over the images.

    Parameters
    ----------
    a
        Folder that foveal evaluate --out wrote.
    b
        The same for the other model, on the same images.
    resamples
        How often the images are drawn.
    seed
        Of the draws.
    """
    from .. import compare as compare_reports

    found = compare_reports(a, b, resamples=resamples, seed=seed)
    if json:
        print_json({"a": str(a), "b": str(b), **found.to_dict()})
        return 0
    print_table(("report", "mIoU"), [(str(a), f"{found.miou_a:.2%}"), (str(b), f"{found.miou_b:.2%}")])
    print(f"\ndifference {100 * found.difference:+.2f} points, 95 % interval ", end="")
    print(f"{100 * found.low:+.2f} to {100 * found.high:+.2f}, p = {found.p:.2g}  ", end="")
    print(f"({found.images} images, {found.resamples} resamples, seed {found.seed})")
    return 0
