"""The verb ``batch``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..text import notice
from .console import ANY_ENGINE, NO_TILES, BatchSize, Engines, Json, Tiling, print_json, say

_SHOWN = 100  # inputs that cannot be used, by name


def batch(
    input: str,
    out: str,
    /,
    *,
    model: str,
    result: str = "masks",
    tar: Annotated[bool, Parameter(negative="")] = False,
    workers: int | None = None,
    part_size: int | None = None,
    column: str = "",
    tiles: Tiling = NO_TILES,
    batch_size: BatchSize = None,
    shard: str = "0/1",
    ray: str = "",
    resume: Annotated[bool, Parameter(negative="")] = False,
    retry_failed: Annotated[bool, Parameter(negative="")] = False,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Run a model on many images, by all cores or machines. Each image is once in the results, whatever is killed.

    A second start of the same command continues the first one.

    Parameters
    ----------
    input
        Folder, pattern in quotes, image, list of files (.txt), tar or Parquet file; a path, or a URI such as
        s3://bucket/folder.
    out
        New folder for the results; a path or a URI.
    model
        Bundled name, checkpoint, exported file or training run.
    result
        What is written for each image: masks, rle, shares, classes, values or embeddings.
    tar
        Write masks or values into tar files instead of a file for each image.
    workers
        Number of processes; default: one for each CPU, or for each GPU. With --ray the largest number of replicas.
    part_size
        Images whose results are committed together; default: up to 256.
    column
        Column of Parquet files that has the images; default: the only column of bytes.
    shard
        Share I/N of the work, I from 0 to N-1, for schedulers that start N processes.
    ray
        Address of a Ray cluster that does the work, or auto; every node needs the model, INPUT and OUT.
    resume
        Accepted as by other commands; a second start continues without it, too.
    retry_failed
        Do the parts again in which images could not be used.
    """
    from ..batch.inputs import names_one_image
    from ..batch.results import Options
    from ..batch.run import Request, parse_shard, run_batch

    request = Request(
        input,
        out,
        model,
        result,
        engine.options(),
        Options(tiles.tile, tiles.overlap, batch_size),
        tar,
        workers,
        part_size,
        column,
        parse_shard(shard),
        ray,
        retry_failed,
    )
    try:
        outcome = run_batch(request)
    except KeyboardInterrupt:
        notice("interrupted; what is committed stays, and the same command continues")
        raise
    code = 2 if outcome.failed and names_one_image(input) else 1 if outcome.failed else 0
    if json:
        failed = [{"image": name, "error": reason} for name, reason in outcome.failures]
        counts = {"done": outcome.done, "done_before": outcome.before, "failed_count": outcome.failed, "failed": failed}
        print_json({**counts, "out": out, "runtime": outcome.runtime, "seconds": round(outcome.seconds, 3)})
        return code
    complete = outcome.done + outcome.before
    before = f", {outcome.before} done before" if outcome.before else ""
    say(f"{complete} of {complete + outcome.failed} images{before} in {outcome.seconds:.1f} s, {result} in {out}")
    for _, reason in outcome.failures[:_SHOWN]:
        say(f"failed: {reason}")
    if outcome.failed > _SHOWN:
        say(f"and {outcome.failed - _SHOWN} more: --json names up to 1000, {out}/_foveal has all")
    return code
